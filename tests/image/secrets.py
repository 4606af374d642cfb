"""Look through the files of a layer for what should not be handed on with an image."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import certifi

NAMES = {"pip.conf", ".netrc", ".pypirc", ".git-credentials", ".env", "id_rsa", "id_ed25519"}
"""Files that nothing in the image needs."""
TOKENS = re.compile(
    rb"AKIA[0-9A-Z]{16}|gh[pousr]_[0-9A-Za-z]{36}|hf_[0-9A-Za-z]{34}|nvapi-[\w-]{60}"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY-----|https?://[^\s/:@\"']+:[^\s/:@\"']+@"
)
"""AWS, GitHub, Hugging Face and NGC keys, private keys, and passwords in addresses."""
DEBIANS = Path("/usr/share/ca-certificates")
"""The public certificates of this machine's distribution, a file of each."""
LARGE = 8 << 20
"""Bytes from which a file is a library, a table or a model, and is not read."""
PACKAGES = "site-packages"
"""Packages come from an index as they are, some with keys for their own tests."""


def certificates(bundle: str | None) -> list[bytes]:
    """The certificates of a bundle that are not publicly known, a line of each."""
    if bundle is None:
        return []
    pattern = r"-----BEGIN CERTIFICATE-----\n(.*?)\n-----END"
    public = [Path(certifi.where()), *DEBIANS.rglob("*.crt")]
    known = {t for path in public for t in re.findall(pattern, path.read_text(), re.DOTALL)}
    found = re.findall(pattern, Path(bundle).read_text(), re.DOTALL)
    # The last whole line, of the signature: the first lines are alike in many.
    return [text.splitlines()[-2].encode() for text in found if text not in known]


def suspicious(layer: Path, needles: Sequence[bytes]) -> Iterator[str]:
    """A line for each file below a folder that looks like a secret, or holds one of the needles."""
    for path in sorted(layer.rglob("*")):
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGE:
            continue
        where = path.relative_to(layer).as_posix()
        if path.name in NAMES and path.stat().st_size:
            yield f"{where} is a file of credentials"
        content = path.read_bytes()
        yield from (f"{where} has {needle!r}" for needle in needles if needle in content)
        # Programs name the headers of keys, and by chance something like the rest.
        token = None if PACKAGES in where or b"\0" in content else TOKENS.search(content)
        if token:
            yield f"{where} has {token[0][:12]!r}..."
