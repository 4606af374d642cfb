"""Check that no two distributions of a lock own the same file.

    python tools/check_locks.py                    # every list of requirements/files
    python tools/check_locks.py generation-gpu     # write one anew, from the environment

Run by the training environment's Python, whose own files are looked at too. Neither an index nor
the GPU environments are needed: their lists are compared with the locks. An environment that is
made is checked by itself (`tools/environment.py`), whether it has a list or not.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from environments.file_lists import LISTS, installed, listed, problems, write
from environments.ownership import conflicts


def main(names: list[str]) -> int:
    """Write the lists that are named, then check all; returns the exit status."""
    unknown = sorted(set(names) - set(listed()))
    if unknown:
        print(
            f"check_locks: no list for {unknown[0]}; one of {', '.join(listed())}", file=sys.stderr
        )
        return 2
    try:
        below = installed(Path(str(distribution("torch").locate_file(""))))
    except PackageNotFoundError:
        print("check_locks: run it with the Python that `make -s python` prints", file=sys.stderr)
        return 2
    for name in names:
        write(name)
    found = [f"training.lock: {what}" for what in conflicts(below)]
    for name in listed():
        path = LISTS / f"{name}.json"
        found += [f"{path.name}: {what}" for what in problems(name, path, below)]
    for line in found:
        print(f"check_locks: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
