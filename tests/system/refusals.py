"""Starts that are refused in the output_dir of a run, and every change of a key on resuming one."""

from __future__ import annotations

from pathlib import Path


def snapshot(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Names, times and contents of everything from `directory` down; who looks changes nothing."""
    return {
        str(path.relative_to(directory)): (
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in [directory, *sorted(directory.rglob("*"))]
    }


def damage(path: Path) -> None:
    """Change one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_checkpoints(output: Path) -> None:
    """No checkpoint is left whole."""
    for checkpoint in (output / "checkpoints").glob("step_*"):
        damage(next((checkpoint / "dist").glob("*.distcp")))


def lose_checkpoints(output: Path) -> None:
    """Their directories are gone, the name of the newest is not."""
    import shutil

    for checkpoint in (output / "checkpoints").glob("step_*"):
        shutil.rmtree(checkpoint)
