"""Show that an image's own packages are as they were before an environment was put on top.

    python3 tools/image/base_packages.py record FILE     # before: all, with where they lie
    python3 tools/image/base_packages.py compare FILE    # after, by the same Python: all the same
    ENVIRONMENT/bin/python tools/image/base_packages.py kept FILE    # it sees the base's torch

Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import distributions
from pathlib import Path

KEPT = ("torch", "transformer-engine", "apex", "triton", "flash-attn")
"""What an environment on top of NVIDIA's image may not replace, where the base has it."""

Packages = dict[str, list[str]]
"""Name as PEP 503 compares it -> [version, folder]."""


def packages() -> Packages:
    """What this interpreter sees; the first of two with one name counts, as on import."""
    found: Packages = {}
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        found.setdefault(name, [distribution.version, str(distribution.locate_file(""))])
    return found


def differences(before: Packages, now: Packages, names: list[str]) -> list[str]:
    """A line for each of the named packages that is not what it was."""
    missing = ["missing", "nowhere"]
    return [
        f"{name} was {' in '.join(before.get(name, missing))}, and is "
        f"{' in '.join(now.get(name, missing))}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def main(arguments: list[str]) -> int:
    """Record or compare; returns the exit status."""
    if len(arguments) != 2 or arguments[0] not in ("record", "compare", "kept"):
        print("usage: base_packages.py record|compare|kept FILE", file=sys.stderr)
        return 2
    what, path = arguments[0], Path(arguments[1])
    now = packages()
    if what == "record":
        path.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return 0
    before: Packages = json.loads(path.read_text(encoding="utf-8"))
    names = sorted({*before, *now}) if what == "compare" else [n for n in KEPT if n in before]
    found = differences(before, now, names)
    for line in found:
        print(f"base_packages: {line}", file=sys.stderr)
    for name in KEPT if not found else ():
        if name in before:
            print(f"base_packages: {name} is the base's, {before[name][0]}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
