"""Inside NVIDIA's image: its own torch, Transformer Engine and Apex stay, the rest is added.

The image is an interpreter with distributions of those names; what is missing comes from wheels in
a folder, among them a torch that nothing may take.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.environments.packages import Clone, image, put, site_of, versions, wheel

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

TORCH = "2.10.0a0+b4e4ee8.nv25.12"
OWN = (
    ("torch", TORCH),
    ("transformer_engine", "2.10.0+769ed77"),
    ("apex", "0.1"),
    ("triton", "3.5.0"),
    ("numpy", "2.1.0"),
    ("oldlib", "1.0"),
    ("goodlib", "1.0"),
)
LOCKS = {
    "training.lock": (
        "torch==2.13.0", "triton==3.7.1", "cuda-bindings==13.5.0", "numpy==2.4.6", "frame==3.0",
        "oldlib==2.0", "goodlib==2.0",
    ),
    "assets.lock": ("texts==1.0",),
}  # fmt: skip


def clone(tmp_path: Path, frame_requires: Sequence[str] = ("oldlib>=2", "torch>=2")) -> Clone:
    """A clone whose index has everything that is locked."""
    made = Clone(tmp_path, LOCKS)
    for line in (*LOCKS["training.lock"], *LOCKS["assets.lock"]):
        name, version = line.replace("-", "_").split("==")
        wheel(made.wheels, name, version, requires=frame_requires if name == "frame" else ())
    return made


def constraints(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "constraint.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def test_the_images_own_packages_stay_and_what_is_missing_is_added(tmp_path: Path) -> None:
    own = image(tmp_path / "image", OWN)
    put(site_of(own), "imagetool", "1.0", requires=("oldlib<2",))
    put(site_of(own), "nvidia_tool", "1.0", requires=("oldlib<2",))
    made = clone(tmp_path)
    named = constraints(tmp_path, f"torch=={TORCH}", "oldlib==1.0", "frame<3", "goodlib==1.0")
    done = made.make("training-ngc", own, PIP_CONSTRAINT=named)
    assert done.returncode == 0, done.stderr
    python = Path(done.stdout.strip())
    assert python == made.root / ".venv" / "training-ngc" / "bin" / "python"
    assert versions(python, [name for name, _ in OWN]) == {
        **dict(OWN),
        "numpy": "2.4.6",  # pyproject.toml asks for 2.2 or newer
        "oldlib": "2.0",  # frame asks for 2 or newer
    }
    assert versions(python, ["frame", "texts"]) == {"frame": "3.0", "texts": "1.0"}
    where = "import torch, transformer_engine, apex; print(torch.__file__, apex.__file__)"
    seen = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True)
    assert all(path.startswith(str(tmp_path / "image")) for path in seen.stdout.split())
    # The image itself is as it was.
    assert versions(own, [name for name, _ in OWN]) == dict(OWN)

    said = done.stderr.splitlines()
    assert [line for line in said if "PIP_CONSTRAINT" in line] == [
        f"environment: PIP_CONSTRAINT ({named}) is left out: the image's packages are kept "
        "anyway, and training.lock says the rest"
    ]
    conflicts = [
        line.removeprefix(f"environment: {named} has ") for line in said if " has " in line
    ]
    assert conflicts[0] == (
        "oldlib==1.0; oldlib==2.0 is installed on top all the same, because "
        "frame 3.0 has requirement oldlib>=2, but you have oldlib 1.0"
    )
    assert conflicts[1] == (
        "frame<3; frame==3.0 is installed on top all the same, because the image has none"
    )
    for line, tool in zip(conflicts[2:], ("imagetool", "nvidia-tool"), strict=True):
        assert f"of no use to this project: {tool} 1.0 has requirement oldlib<2" in line

    again = made.make("training-ngc", own, PIP_CONSTRAINT=named)
    assert again.stdout == done.stdout
    assert "installing" not in again.stderr


def test_a_torch_over_the_images_is_found_and_taken_away(tmp_path: Path) -> None:
    own = image(tmp_path / "image", OWN)
    made = clone(tmp_path)
    python = Path(made.make("training-ngc", own).stdout.strip())
    (cached,) = (tmp_path / "cache" / "environments").glob("training-ngc-*/bin/python")
    put(site_of(cached), "torch", "2.13.0")
    assert versions(python, ["torch"]) == {"torch": "2.13.0"}
    done = made.make("training-ngc", own)
    assert "torch, which lies over the image's); installing it again" in done.stderr
    assert versions(python, ["torch"]) == {"torch": TORCH}


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            [("torch", "2.9.0a0+x"), *OWN[1:]],
            "the image's torch 2.9.0a0+x is not what pyproject.toml asks for "
            "(torch<2.14,>=2.10.0a0)",
        ),
        ([OWN[0], *OWN[2:]], "this Python ({python}) has no transformer_engine"),
        ([OWN[0], OWN[1], *OWN[4:]], "this image has no triton, which megatron-core imports"),
    ],
    ids=["old torch", "no Transformer Engine", "no triton"],
)
def test_an_image_that_cannot_work_is_refused_before_anything_is_installed(
    own: list[tuple[str, str]], message: str, tmp_path: Path
) -> None:
    python = image(tmp_path / "image", own)
    done = clone(tmp_path).make("training-ngc", python)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert message.format(python=python) in line
    assert not list((tmp_path / "cache").rglob("site-packages"))


def test_an_engine_of_the_images_that_no_longer_fits_is_one_line(tmp_path: Path) -> None:
    own = image(tmp_path / "image", [OWN[0], *OWN[2:]])
    put(site_of(own), "transformer_engine", "2.10.0", requires=("oldlib<2",))
    done = clone(tmp_path).make("training-ngc", own)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "environment: error: the image and training.lock do not fit together: transformer-engine "
        "2.10.0 has requirement oldlib<2, but you have oldlib 2.0. Take another image"
    )


def test_a_locked_package_that_wants_another_torch_is_one_line(tmp_path: Path) -> None:
    own = image(tmp_path / "image", OWN)
    done = clone(tmp_path, frame_requires=("torch>=2.11",)).make("training-ngc", own)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "environment: error: the image and training.lock do not fit together: frame 3.0 has "
        f"requirement torch>=2.11, but you have torch {TORCH}. Take another image"
    )
