"""Every model of the zoo, converted once, and run on two meshes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from nemo_gdpo.conversion.convert import convert_hf_to_megatron
from tests.families import zoo

ROOT = Path(__file__).parents[2]
DEADLINE = 500.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _launch(folder: Path, tensor: int, pipeline: int) -> str:
    """Run the ranks of one mesh; the end of what a failed rank said, or nothing."""
    size, port = tensor * pipeline, _free_port()
    ranks = []
    for rank in range(size):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "tests.families.rank_main", str(folder)]
        with (folder / f"rank{rank}of{size}.log").open("w") as log:
            ranks.append(
                subprocess.Popen(
                    [*command, str(tensor), str(pipeline)],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    cwd=ROOT,
                )
            )
    try:
        codes = [rank.wait(timeout=DEADLINE) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    failed = [rank for rank, code in enumerate(codes) if code]
    return "\n".join((folder / f"rank{r}of{size}.log").read_text()[-3000:] for r in failed)


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<kind>/hf` by transformers and `<kind>/megatron` by the conversion."""
    root = tmp_path_factory.mktemp("families")
    for kind in zoo.ZOO:
        zoo.save(kind, root / kind / "hf")
        convert_hf_to_megatron(root / kind / "hf", root / kind / "megatron")
    cut = root / "llama_untied" / "cut"
    shutil.copytree(root / "llama_untied" / "hf", cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    stored = root / zoo.STORED_IN_BF16
    zoo.build("llama_untied").bfloat16().save_pretrained(stored / "hf")
    convert_hf_to_megatron(stored / "hf", stored / "megatron")
    return root


@pytest.fixture(scope="session")
def on_mesh(converted: Path) -> Callable[[int, int], Path]:
    """(TP, PP) -> the folder, after that mesh has run and saved every model."""

    @cache
    def run(tensor: int, pipeline: int) -> Path:
        said = _launch(converted, tensor, pipeline)
        assert not said, said
        return converted

    return run
