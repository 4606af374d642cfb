"""Check that no two distributions of a lock own the same file.

    python tools/check_locks.py                    # every list of requirements/files
    python tools/check_locks.py generation-gpu     # write one anew, from the environment

Without an index and without the environments: the lists are compared with the locks. An environment
that is made is checked by itself (`tools/environment.py`), whether it has a list or not.
"""

from __future__ import annotations

import sys

from environments.file_lists import LISTS, listed, problems, write


def main(names: list[str]) -> int:
    """Write the lists that are named, then check all; returns the exit status."""
    unknown = sorted(set(names) - set(listed()))
    if unknown:
        print(
            f"check_locks: no list for {unknown[0]}; one of {', '.join(listed())}", file=sys.stderr
        )
        return 2
    for name in names:
        write(name)
    paths = {name: LISTS / f"{name}.json" for name in listed()}
    found = [f"{path}: {what}" for name, path in paths.items() for what in problems(name, path)]
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
