"""The image for CPUs, really built and run: without network, by a uid that nobody knows.

`make image-test`. The base is a minimal Debian, so that whatever is missing is missing.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import nemo_gdpo
from tests.image.conftest import MEASURED
from tests.image.engine import BASE, Engine, PackageIndex, package_index
from tests.image.secrets import certificates, suspicious
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model

pytestmark = pytest.mark.parallel

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "localhost/nemo-gdpo:cpu"
UID = "4321"
"""Of no user in the image."""
PYTHON = "/opt/nemo_gdpo/.venv/{}/bin/python"
STEPS = ["trainer.max_epochs=null", "model.global_batch_size=4", "model.micro_batch_size=2"]
TRAINING = [
    "train", "objective=gdpo", "parallel=pp2", "model.restore_from_path=/data/megatron",
    "data.train_path=/data/pairs.jsonl", "data.max_length=96", "data.max_prompt_length=48", *STEPS,
]  # fmt: skip


@pytest.fixture(scope="session")
def index() -> PackageIndex:
    return package_index()


@pytest.fixture(scope="session")
def image(
    engine: Engine, index: PackageIndex, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The built image."""
    flags = index.flags(tmp_path_factory.mktemp("secrets"))
    engine.build(
        ROOT, IMAGE, *flags,
        BASE_IMAGE=BASE, TRAINING="training", GENERATION="generation", REVISION="0123abc",
        SOURCE="https://example.org/nemo_gdpo",
    )  # fmt: skip
    for size, made_by in engine.history(IMAGE):
        step = re.sub(r"^/bin/sh -c (#\(nop\) )?", "", made_by)[:60]
        MEASURED.append(f"{size / 1e6:8.1f} MB  {step}")
    yield IMAGE


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is mounted as /data: it belongs to the container's user."""
    folder = tmp_path_factory.mktemp("work")
    save_model(folder / "model", head_dim=32, max_position_embeddings=256)
    write_jsonl(folder / "pairs.jsonl", pairs(16))
    prompts = [{"id": word, "prompt": f"{word} film"} for word in ("good", "dull")]
    write_jsonl(folder / "prompts.jsonl", prompts)
    subprocess.run(["chown", "-R", f"{UID}:{UID}", str(folder)], check=True)
    # pytest's own folders are for root only, and a container's root is another directory.
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def user(work: Path) -> list[str]:
    """Flags under which a container writes nothing but its mounted folder and /tmp."""
    return [
        f"--user={UID}:{UID}", "--read-only", f"--volume={work}:/data", "--workdir=/data",
        "--env=OMP_NUM_THREADS=1", "--env=HF_HUB_OFFLINE=1", "--env=HOME=/data/home",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def converted(engine: Engine, image: str, user: list[str]) -> None:
    """/data/megatron is there: the model, converted in a container."""
    with engine.timed("convert in the container"):
        engine.run(image, "convert", "hf-to-megatron", "/data/model", "/data/megatron", flags=user)


def test_the_image_says_what_it_is(engine: Engine, image: str) -> None:
    found = engine.json("image", "inspect", image)
    config = found["Config"]
    prefix = "org.opencontainers.image."
    labels = {k.removeprefix(prefix): v for k, v in config["Labels"].items() if prefix in k}
    assert labels | {"description": ""} == {
        "title": "nemo_gdpo",
        "description": "",
        "source": "https://example.org/nemo_gdpo",
        "licenses": "Apache-2.0",
        "version": nemo_gdpo.__version__,
        "revision": "0123abc",
        "base.name": BASE,
    }
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert config["WorkingDir"] == "/workspace"
    assert config["Entrypoint"] == ["tini", "-s", "--", "nemo-gdpo-entrypoint"]
    check = found.get("HealthCheck") or found["Healthcheck"]
    assert check["Test"] == ["CMD", "nemo-gdpo", "doctor"]


def test_without_arguments_it_is_the_help_and_a_program_is_itself(
    engine: Engine, image: str, user: list[str]
) -> None:
    assert "usage: nemo-gdpo VERB" in engine.run(image, flags=user).stdout
    done = engine.run(image, "bash", "-c", "id -u; command -v python; echo $PPID", flags=user)
    assert done.stdout.split() == [UID, "/opt/nemo_gdpo/.venv/training/bin/python", "1"]
    assert engine.run(image, "bash", "-c", "exit 75", flags=user, check=False).returncode == 75
    slip = engine.run(image, "trian", flags=user, check=False)
    assert (slip.returncode, "see nemo-gdpo --help" in slip.stderr) == (2, True)


def test_it_is_healthy_and_finds_both_environments(engine: Engine, image: str) -> None:
    """By the image's own user, in its own home and working directory."""
    container = engine.start(image, "sleep", "600")
    try:
        engine.call("healthcheck", "run", container)
        said = engine.call("exec", container, "nemo-gdpo", "doctor").stdout
        rows = dict(re.findall(r"^(\S.*?\S)  +(.*)$", said, re.MULTILINE))
        assert rows["platform"] == "cpu"
        assert rows["training python"] == PYTHON.format("training")
        assert rows["generation python"] == PYTHON.format("generation")
        written = engine.call("exec", container, "sh", "-c", "touch ~/a /workspace/a && pwd")
        assert written.stdout == "/workspace\n"
        for place in ("/opt/nemo_gdpo/a", "/opt/environments/a", "/etc/a"):
            assert engine.call("exec", container, "touch", place, check=False).returncode == 1
    finally:
        engine.call("rm", "--force", "--time=0", container)


@pytest.mark.parametrize(
    ("environment", "module"),
    [
        ("training", "torch"),
        ("training", "megatron.core"),
        ("training", "nemo"),
        ("training", "examples.film_reviews.demo"),
        ("generation", "vllm"),
        ("generation", "ray"),
        ("generation", "nemo_gdpo.generation.run"),
    ],
)
def test_it_imports(
    environment: str, module: str, engine: Engine, image: str, user: list[str]
) -> None:
    engine.run(image, PYTHON.format(environment), "-c", f"import {module}", flags=user)


def test_vllms_torch_is_its_own_whatever_the_loader_is_told(
    engine: Engine, image: str, user: list[str], work: Path
) -> None:
    """As in NVIDIA's image, whose LD_LIBRARY_PATH names the folder of another torch."""
    other = work / "other"
    other.mkdir(exist_ok=True)
    for name in ("libtorch.so", "libc10.so", "libtorch_cpu.so", "libtorch_python.so"):
        (other / name).write_bytes(b"not a library")
    flags = [*user, "--env=LD_LIBRARY_PATH=/data/other"]
    done = engine.run(
        image, PYTHON.format("generation"), "-c", "import torch; print(torch.__file__)", flags=flags
    )
    assert done.stdout.startswith("/opt/environments/environments/generation-")


@pytest.mark.usefixtures("converted")
def test_convert_train_export_sample_evaluate(
    engine: Engine, image: str, user: list[str], work: Path
) -> None:
    """The demo's stages with a tiny model: two ranks, two steps, one container a stage."""
    stages = [
        [*TRAINING, "trainer.max_steps=2", "output_dir=/data/run"],
        [
            "generate", "model.restore_from_path=/data/run/hf", "output_dir=/data/samples",
            "data.prompts_path=/data/prompts.jsonl", "generation.num_samples=2",
            "generation.max_tokens=8", "generation.dtype=fp32",
        ],
        ["evaluate", "evaluation.runs={gdpo: /data/samples}", "output_dir=/data/report"],
    ]  # fmt: skip
    for stage in stages:
        with engine.timed(f"{stage[0]} in the container"):
            engine.run(image, *stage, flags=user)
    metrics = (work / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [0, 1]
    assert (work / "run" / "hf" / "model.safetensors").stat().st_uid == int(UID)
    rows = [json.loads(line) for line in (work / "samples" / "generations-00000.jsonl").open()]
    assert [len(row["outputs"]) for row in rows] == [2, 2]
    assert (work / "report" / "report.html").is_file()


@pytest.mark.usefixtures("converted")
@pytest.mark.parametrize("ranks", [2, 1])
def test_stopping_the_container_saves_and_the_same_command_goes_on(
    ranks: int, engine: Engine, image: str, user: list[str], work: Path
) -> None:
    """`docker stop`: SIGTERM to process 1, a checkpoint, 75; here by podman and runc."""
    output = work / f"stopped-{ranks}"
    command = [*TRAINING, f"output_dir=/data/{output.name}", "export_hf=false"]
    if ranks == 1:
        command.remove("parallel=pp2")
    container = engine.start(image, *command, "trainer.max_steps=100000", flags=user)
    _wait_for_step(output, 2, engine, container)
    engine.call("stop", "--time=120", container)
    status, said = engine.end(container)
    assert status == 75, said
    stopped = max(int(path.name[5:]) for path in (output / "checkpoints").glob("step_*"))
    assert stopped >= 3

    done = engine.run(image, *command, f"trainer.max_steps={stopped + 1}", flags=user)
    steps = [json.loads(line)["step"] for line in (output / "metrics.jsonl").open()]
    assert steps == list(range(stopped + 1)), done.stderr


def _wait_for_step(output: Path, step: int, engine: Engine, container: str) -> None:
    limit = time.monotonic() + 300
    path = output / "metrics.jsonl"
    while not (path.is_file() and f'"step": {step},' in path.read_text()):
        if (
            time.monotonic() > limit
            or engine.json("inspect", container)["State"]["Status"] == "exited"
        ):
            raise AssertionError(engine.end(container, timeout=1.0))
        time.sleep(0.2)


def test_a_signal_before_anything_listens_ends_it_too(
    engine: Engine, image: str, user: list[str]
) -> None:
    """Process 1 of a container is deaf to signals that it has no handler for, but for an init."""
    container = engine.start(image, *TRAINING, "output_dir=/data/early", flags=user)
    begun = time.monotonic()
    engine.call("kill", "--signal=TERM", container)
    status, said = engine.end(container)
    assert status in (75, 128 + 15), said
    assert time.monotonic() - begun < 20


def test_no_secret_and_nothing_of_this_machine_is_in_a_layer(
    engine: Engine, image: str, index: PackageIndex
) -> None:
    own = certificates(index.settings.get("cert"))
    needles = [path.encode() for path in index.folders] + own
    found = [line for layer in engine.layers(image) for line in suspicious(layer, needles)]
    assert found == []
    whole = json.dumps([engine.json("image", "inspect", image), engine.history(image)])
    assert not [path for path in index.folders if path in whole]


def test_a_secret_in_a_layer_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt" / "config").write_text("url = https://me:word@index.example/simple\n")
    (tmp_path / "opt" / ".netrc").write_text("machine a\n")
    (tmp_path / "opt" / "ca").write_text("of this machine\n")
    found = list(suspicious(tmp_path, [b"this machine"]))
    assert found == [
        "opt/.netrc is a file of credentials",
        "opt/ca has b'this machine'",
        "opt/config has b'https://me:w'...",
    ]
