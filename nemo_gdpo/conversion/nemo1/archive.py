"""Unpacks `.nemo` archives, which come from elsewhere and are not trusted."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath

from nemo_gdpo.errors import UserError
from nemo_gdpo.io.remedies import remedy_of, unwritable

MAX_MEMBERS = 200_000
"""zarr made a file of every piece of every tensor; more than this is not a checkpoint."""
MAX_EXPANSION = 100
"""Weights hardly compress: an archive that claims to hold more than this many times its size is
made to fill the disk."""
_SMALL = 1 << 26
"""Bytes that any archive may unpack to."""


def _check(archive: Path, members: list[tarfile.TarInfo], directory: Path) -> None:
    """Refuse what could write elsewhere, or more than there is room for, before anything does."""
    if len(members) > MAX_MEMBERS:
        raise UserError(f"{archive}: has {len(members)} members; it is not a checkpoint, refused")
    for member in members:
        if not (member.isreg() or member.isdir()) or member.issparse():
            raise UserError(f"{archive}: member {member.name} is not a plain file; refused")
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            raise UserError(f"{archive}: member {member.name} leads out of the directory; refused")
        tarfile.data_filter(member, str(directory))
    total = sum(member.size for member in members)
    limit = max(_SMALL, MAX_EXPANSION * archive.stat().st_size)
    if total > limit:
        raise UserError(
            f"{archive}: claims to hold {total / 2**30:.1f} GiB, more than {MAX_EXPANSION} times "
            "its own size; refused"
        )
    free = shutil.disk_usage(directory).free
    if total > free:
        raise UserError(
            f"{archive}: unpacks to {total / 2**30:.2f} GiB, and {directory} has "
            f"{free / 2**30:.2f} GiB free; free space, or choose another disk"
        )


def _members(tar: tarfile.TarFile, archive: Path) -> list[tarfile.TarInfo]:
    members = []
    for member in tar:
        members.append(member)
        if len(members) > MAX_MEMBERS:
            break
    if not members:
        raise UserError(f"{archive}: is empty; copy it again")
    return members


def extract(archive: Path, directory: Path) -> None:
    """Unpack an archive, compressed or not. All members are looked at before the first is written.

    Args:
        archive: a tar file.
        directory: made if needed. Members cannot leave it; links, devices and sparse files are
            refused.

    Raises:
        UserError: it is not a readable archive, is refused, or does not fit.
        RunError: the disk filled up or failed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive) as tar:
            members = _members(tar, archive)
            _check(archive, members, directory)
            for member in members:
                tar.extract(member, directory, filter="data")
    except tarfile.FilterError as error:
        raise UserError(f"{archive}: refused, {error}") from None
    except FileNotFoundError:
        raise UserError(f"{archive} does not exist; give a .nemo file") from None
    except (tarfile.TarError, EOFError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{archive}: is not a readable .nemo archive ({error})") from None
    except OSError as error:
        raise unwritable(
            error,
            f"{archive}: could not be unpacked to {directory} ({error.strerror or error}); "
            f"{remedy_of(error)}, or copy the archive again if it is damaged",
        ) from None
