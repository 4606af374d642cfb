"""megatron-core itself reads what we write and writes what we read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from nemo_gdpo.conversion.compare.verify import verify
from nemo_gdpo.conversion.convert import convert_hf_to_megatron
from tests.conversion.conftest import LLAMA3_ROPE, ModelMaker

pytestmark = pytest.mark.slow

pytest.importorskip("megatron.core.package_info")
ROOT = Path(__file__).parents[3]


def test_strict_load_logits_and_save(make_model: ModelMaker, tmp_path: Path) -> None:
    roots = [tmp_path / "tied", tmp_path / "untied"]
    for root in roots:
        tied = root.name == "tied"
        source = make_model(
            f"{root.name}/hf", tie_word_embeddings=tied, rope_parameters=LLAMA3_ROPE
        )
        convert_hf_to_megatron(source, root / "megatron")
    done = subprocess.run(
        [sys.executable, "-m", "tests.conversion.formats.megatron_check", *map(str, roots)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for root in roots:
        found = json.loads((root / "new" / "found.json").read_text())
        assert [found[f"rows_{d}"] for d in (64, 96, 128)] == [128, 192, 128]
        with torch.no_grad():
            hf = LlamaForCausalLM.from_pretrained(root / "hf")(torch.arange(7)[None] * 7).logits[0]
        torch.testing.assert_close(torch.tensor(found["logits"]), hf, atol=1e-4, rtol=0)
        assert verify(root / "hf", root / "new").same
