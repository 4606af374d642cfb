"""Every model of the zoo, converted once, and run on two meshes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from nemo_gdpo.conversion.convert import convert_hf_to_megatron
from tests.support import models
from tests.support.ranks import run_ranks

DEADLINE = 500.0


def _launch(folder: Path, tensor: int, pipeline: int) -> None:
    """Run the ranks of one mesh.

    Raises:
        AssertionError: a rank failed, or the launch hangs; with the end of what they said.
    """
    size = tensor * pipeline
    logs = [folder / f"rank{rank}of{size}.log" for rank in range(size)]
    arguments = [str(folder), str(tensor), str(pipeline)]
    codes = run_ranks("tests.families.rank_main", arguments, logs, deadline=DEADLINE)
    said = "\n".join(log.read_text()[-3000:] for log in logs)
    assert not any(codes), f"{size} ranks ended with {codes}:\n{said}"


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<kind>/hf` by transformers and `<kind>/megatron` by the conversion."""
    root = tmp_path_factory.mktemp("families")
    for kind in models.KINDS:
        models.save(kind, root / kind / "hf")
        convert_hf_to_megatron(root / kind / "hf", root / kind / "megatron")
    cut = root / "llama_untied" / "cut"
    shutil.copytree(root / "llama_untied" / "hf", cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    stored = root / models.STORED_IN_BF16
    models.build("llama_untied").bfloat16().save_pretrained(stored / "hf")
    convert_hf_to_megatron(stored / "hf", stored / "megatron")
    return root


@pytest.fixture(scope="session")
def on_mesh(converted: Path) -> Callable[[int, int], Path]:
    """(TP, PP) -> the folder, after that mesh has run and saved every model."""

    @cache
    def run(tensor: int, pipeline: int) -> Path:
        _launch(converted, tensor, pipeline)
        return converted

    return run
