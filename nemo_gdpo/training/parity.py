"""Logits of a Megatron checkpoint on one rank, for `nemo-gdpo convert verify`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.compare.memory import available_bytes, check_fits
from nemo_gdpo.conversion.formats.megatron_io import read_checkpoint_model
from nemo_gdpo.errors import UserError
from nemo_gdpo.models.builder import ParallelLayout, build_gpt_chunks, transformer_config
from nemo_gdpo.models.forward import HeadOptions, forward_logits
from nemo_gdpo.models.weights import load_weights
from nemo_gdpo.platform import current_platform
from nemo_gdpo.training.mesh import build_mesh, join_world, leave_world

_WORLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class _Whole:
    """A model in one chunk on one rank."""

    gpt_chunks: list[GPTModel]


@contextmanager
def _single_rank_world() -> Iterator[torch.device]:
    """A world of one rank, gone afterwards.

    Raises:
        UserError: this process is one of several ranks.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "verify: it runs on one rank; start it without torchrun, in a single process"
        )
    before = {name: os.environ.get(name) for name in _WORLD}
    platform = current_platform()
    join_world(platform)
    try:
        yield build_mesh(ParallelLayout(), platform, seed=0).device
    finally:
        leave_world()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_bytes()


def megatron_logits(checkpoint: Path, prompts: Sequence[Tensor]) -> list[Tensor]:
    """Logits float32 [S, V] of a Megatron checkpoint for each prompt [S], in float32.

    Raises:
        UserError: the model does not fit in memory, or is damaged, or needs what is not built.
    """
    config = read_checkpoint_model(checkpoint).config
    platform, layout = current_platform(), ParallelLayout()
    with _single_rank_world() as device:
        check_fits(ModelBridge(config), sum(map(len, prompts)), checkpoint, _free_bytes(device))
        chunks = build_gpt_chunks(
            config,
            transformer_config(config, layout, "fp32", platform),
            layout,
            platform,
            max_sequence_length=max(map(len, prompts)),
        )
        load_weights(_Whole(chunks), checkpoint)
        model = chunks[0].eval()
        options = HeadOptions(config.vocab_size, logit_softcap=config.logit_softcap)
        return [
            forward_logits(model, ids[None].to(device), options)[0].cpu().clone() for ids in prompts
        ]
