"""The image over a base with torch, Transformer Engine and Apex of its own, as NVIDIA's has them.

The base is a stand-in: a Debian with packages of those names, a constraints file and an entry point
that prints. What is installed over it comes from a folder of small wheels.
"""

from __future__ import annotations

import json
import shutil
import stat
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.environments.packages import put, wheel
from tests.environments.test_image import LOCKS, OWN
from tests.image.engine import BASE, Engine

pytestmark = pytest.mark.parallel

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = "localhost/pytorch:stand-in"
IMAGE = "localhost/nemo-gdpo:over"
SITE = "/usr/local/lib/python3.11/dist-packages"
DOCKERFILE = f"""
FROM {BASE}
RUN apt-get update && apt-get install --yes --no-install-recommends python3 python3-pip
COPY site/ {SITE}/
COPY constraint.txt /etc/pip/
COPY nvidia_entrypoint.sh /opt/nvidia/
ENV PIP_CONSTRAINT=/etc/pip/constraint.txt LD_LIBRARY_PATH={SITE}/torch/lib
ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh"]
"""
NVIDIAS = """#!/bin/bash
echo "== PyTorch =="
export LD_LIBRARY_PATH="/usr/local/cuda/compat/lib:$LD_LIBRARY_PATH"
exec "$@"
"""


def stand_in(folder: Path) -> Path:
    """What the base is built from."""
    site = folder / "site"
    for name, version in OWN:
        put(site, name, version)
    packaging = distribution("packaging")
    for file in packaging.files or ():
        if file.suffix != ".pyc":
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), site / file)
    (folder / "constraint.txt").write_text("oldlib==1.0\nframe<3\n")
    entrypoint = folder / "nvidia_entrypoint.sh"
    entrypoint.write_text(NVIDIAS)
    entrypoint.chmod(0o755)
    (folder / "Dockerfile").write_text(DOCKERFILE)
    return folder


def clone(folder: Path) -> Path:
    """The files that the image is made from, with small locks."""
    names = ["conf", "examples", "nemo_gdpo", "tools", "LICENSE", "pyproject.toml"]
    for name in [*names, "Dockerfile", ".dockerignore"]:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name)
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / "requirements").mkdir()
    for name, lines in LOCKS.items():
        (folder / "requirements" / name).write_text("".join(f"{line}\n" for line in lines))
    (folder / "secret.env").write_text("KEY=value\n")
    (folder / "conf" / "secret.env").write_text("KEY=value\n")
    return folder


@pytest.fixture(scope="module")
def image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    engine.build(stand_in(tmp_path_factory.mktemp("base")), STAND_IN)
    wheels = tmp_path_factory.mktemp("wheels")
    for line in (*LOCKS["training.lock"], *LOCKS["assets.lock"]):
        name, version = line.replace("-", "_").split("==")
        wheel(wheels, name, version, requires=("oldlib>=2", "torch>=2") if name == "frame" else ())
    config = wheels / "pip.conf"
    config.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    flags = ["--secret", f"id=pip,src={config}", f"--volume={wheels}:/wheels:ro"]
    context = clone(tmp_path_factory.mktemp("clone"))
    engine.build(context, IMAGE, *flags, BASE_IMAGE=STAND_IN, GENERATION="none")
    return IMAGE


def test_training_sees_the_bases_torch_and_the_base_is_as_it_was(
    engine: Engine, image: str
) -> None:
    script = (
        "import json, torch, apex, transformer_engine as t, importlib.metadata as m; "
        "print(json.dumps([torch.__file__, apex.__file__, t.__file__, "
        "*(m.version(n) for n in ('torch', 'oldlib', 'frame', 'goodlib'))]))"
    )
    done = engine.run(image, "python", "-c", script)
    paths = [f"{SITE}/{name}/__init__.py" for name in ("torch", "apex", "transformer_engine")]
    own = dict(OWN)
    assert json.loads(done.stdout) == [*paths, own["torch"], "2.0", "3.0", own["goodlib"]]

    before = engine.json("image", "inspect", STAND_IN)["RootFS"]["Layers"]
    after = engine.json("image", "inspect", image)["RootFS"]["Layers"]
    assert after[: len(before)] == before
    # No later layer has a file below the base's packages; the topmost layers come first.
    ours = engine.layers(image)[: len(after) - len(before)]
    assert not [layer for layer in ours if list(layer.glob(f"{SITE[1:]}/**/*.py"))]


def test_the_record_names_what_the_base_had(engine: Engine, image: str) -> None:
    record = json.loads(engine.run(image, "cat", "/opt/nemo_gdpo/base-packages.json").stdout)
    assert record["torch"] == [dict(OWN)["torch"], SITE]
    assert record["transformer-engine"][0] == dict(OWN)["transformer_engine"]
    assert "frame" not in record


def test_the_bases_entry_point_runs_and_stdout_stays_the_programs(
    engine: Engine, image: str
) -> None:
    done = engine.run(image, "sh", "-c", "echo out; echo err >&2; env | grep ^LD_; exit 75",
                      check=False)  # fmt: skip
    assert done.returncode == 75
    path = f"/usr/local/cuda/compat/lib:{SITE}/torch/lib"
    assert done.stdout == f"out\nLD_LIBRARY_PATH={path}\n"
    assert done.stderr == "== PyTorch ==\nerr\n"


def test_only_what_is_listed_is_copied(engine: Engine, image: str) -> None:
    listed = engine.run(image, "ls", "-A", "/opt/nemo_gdpo").stdout.split()
    assert set(listed) == {
        ".venv", "LICENSE", "base-packages.json", "conf", "examples", "nemo_gdpo",
        "pyproject.toml", "tools",
    }  # fmt: skip
    assert "secret.env" not in engine.run(image, "ls", "/opt/nemo_gdpo/conf").stdout
    mode = int(engine.run(image, "stat", "-c", "%f", "/workspace").stdout, 16)
    assert stat.S_IMODE(mode) == 0o1777
