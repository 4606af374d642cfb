"""Run by test_megatron_reads_it.py in a separate process: megatron-core against our files.

    python -m tests.conversion.formats.megatron_check DIRECTORY...

For each DIRECTORY with `hf/` and its conversion `megatron/`: loads the conversion with megatron's
own loader, strictly, into models of several vocabulary paddings; compares with the values that are
filled in directly from `hf/`; saves with megatron to `new/`.
"""

# ruff: noqa: E402 - the platform comes before megatron

from __future__ import annotations

import json
import sys
from pathlib import Path

from nemo_gdpo.platform import current_platform

PLATFORM = current_platform()  # before megatron is imported

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.formats.assets import ASSETS
from nemo_gdpo.conversion.formats.hf_source import open_hf
from nemo_gdpo.conversion.formats.megatron_io import (
    CheckpointModel,
    read_checkpoint_model,
    write_checkpoint_assets,
)
from nemo_gdpo.conversion.live import load_hf_into_model
from nemo_gdpo.models.builder import ParallelLayout, build_gpt_chunks, transformer_config

SHARDING = {"non_homogeneous_layers": True}


def build(model: CheckpointModel, divisible_by: int) -> GPTModel:
    layout = ParallelLayout(vocab_divisible_by=divisible_by)
    config = transformer_config(model.config, layout, "fp32", PLATFORM)
    chunks = build_gpt_chunks(model.config, config, layout, PLATFORM, max_sequence_length=64)
    gpt = chunks[0].eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.fill_(float("nan"))
    return gpt


def join() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(1)
    model_parallel_cuda_manual_seed(1)


def check(hf: Path, converted: Path, new: Path) -> None:
    model = read_checkpoint_model(converted)
    bridge = ModelBridge(model.config)
    found: dict[str, object] = {}
    for divisible_by in (64, 96, 128):  # 128, 192 and 128 rows; the file has 128
        gpt, direct = build(model, divisible_by), build(model, divisible_by)
        sharded = gpt.sharded_state_dict(metadata=dict(SHARDING))
        keys = {value.key for value in sharded.values()}
        names = set(bridge.by_name)
        assert {key for key in keys if not key.endswith("_extra_state")} == names
        gpt.load_state_dict(
            dist_checkpointing.load(sharded, str(converted / "dist"), strict="raise_unexpected")
        )
        load_hf_into_model(direct, open_hf(hf, bridge), bridge)
        filled = dict(direct.named_parameters())
        for name, parameter in gpt.named_parameters():
            assert torch.equal(parameter, filled[name]), name
        found[f"rows_{divisible_by}"] = gpt.embedding.word_embeddings.weight.shape[0]
    tokens = torch.arange(7)[None] * 7
    with torch.no_grad():
        logits = gpt(tokens, torch.arange(7)[None], None)[..., : model.config.vocab_size]
    found["logits"] = logits[0].tolist()
    (new / "dist").mkdir(parents=True)
    dist_checkpointing.save(
        {"model": gpt.sharded_state_dict(metadata=dict(SHARDING))}, str(new / "dist")
    )
    write_checkpoint_assets(new, model, converted / ASSETS)
    (new / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    join()
    for root in map(Path, sys.argv[1:]):
        check(root / "hf", root / "megatron", root / "new")
