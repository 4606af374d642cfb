"""What to do about a file that cannot be written: its cause decides, on the exit status too."""

from __future__ import annotations

import errno

from nemo_gdpo.errors import RunError, UserError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_BROKEN = frozenset({errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT})
_REMEDIES = {
    errno.EACCES: "fix the permissions",
    errno.EPERM: "fix the permissions",
    errno.EROFS: "choose another place: its file system is read-only",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "choose another path: a part of it is a file",
    errno.EISDIR: "choose another path: it is a directory",
    errno.EEXIST: "choose another path: something else is there",
    errno.ENOENT: "make its directory",
    errno.ELOOP: "correct the links of its path",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "end other programs: the machine has too many files open",
    errno.ETXTBSY: "end the program that uses it",
    errno.EBUSY: "end the program that uses it",
}


def remedy_of(error: OSError) -> str:
    """What to do about it, as a part of a line."""
    number = error.errno
    if number in _FULL:
        return "free space"
    if number in _BROKEN:
        return "look at the disk, or choose another"
    if number is None:  # an error of a library, which says no more
        return "free space or fix the permissions"
    return _REMEDIES.get(number, "fix that")


def is_disk_failure(error: OSError) -> bool:
    """Whether the machine failed (a full or broken disk), and not a setting is wrong."""
    return error.errno in _FULL | _BROKEN


def unwritable(error: OSError, message: str) -> UserError | RunError:
    """The error of a file that cannot be read or written, with the exit status of its cause."""
    return RunError(message) if is_disk_failure(error) else UserError(message)
