"""Runs checkpoints on the same prompts and compares their logits, in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.compare.memory import available_bytes, check_fits
from nemo_gdpo.errors import UserError

MegatronLogits = Callable[[Path, Sequence[Tensor]], list[Tensor]]
"""(checkpoint, prompts [S]) -> logits float32 [S, V]; passed in, because conversion imports no
megatron."""


@dataclass(frozen=True)
class LogitsComparison:
    """Differences of two models' logits on a set of prompts."""

    prompts: str
    """Description of the prompts."""
    positions: int
    max_abs_difference: float
    mean_abs_difference: float
    """Both over all positions and the whole vocabulary."""
    argmax_agreement: float
    """Share of positions where both have the same most likely token."""
    max_logprob_gap: float
    mean_logprob_gap: float
    """Mean of the gaps of log p(next token), over the positions that have a next token."""

    def within(self, tolerance: float) -> bool:
        """Whether every logit differs by at most `tolerance`."""
        return self.max_abs_difference <= tolerance


def hf_logits(directory: Path, bridge: ModelBridge, prompts: Sequence[Tensor]) -> list[Tensor]:
    """Logits float32 [S, V] of a Hugging Face directory, by transformers, on the CPU.

    Raises:
        UserError: the model does not fit in memory, or transformers cannot load it.
    """
    check_fits(bridge, sum(map(len, prompts)), directory, available_bytes())
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]  # this command has its own
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=torch.float32,
            # The only attention of transformers with Gemma 2's soft-cap on every machine.
            attn_implementation="eager",
            use_safetensors=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{directory}: transformers cannot load it ({reason})") from None
    model.eval()
    with torch.inference_mode():
        return [model(ids[None]).logits[0].float() for ids in prompts]


def compare_logits(
    first: Sequence[Tensor], second: Sequence[Tensor], prompts: Sequence[Tensor], description: str
) -> LogitsComparison:
    """Compare two models' logits [S, V] on the same prompts [S].

    Raises:
        UserError: a model has logits that are not finite.
    """
    largest = total = gap_largest = gap_total = 0.0
    agreeing = positions = values = gaps = 0
    for mine_SV, theirs_SV, ids_S in zip(first, second, prompts, strict=True):
        for logits_SV in (mine_SV, theirs_SV):
            if not torch.isfinite(logits_SV).all():
                raise UserError("a model gives logits that are not finite; its weights are damaged")
        difference_SV = (mine_SV - theirs_SV).abs()
        largest = max(largest, difference_SV.max().item())
        total += difference_SV.double().sum().item()
        values += difference_SV.numel()
        agreeing += int((mine_SV.argmax(-1) == theirs_SV.argmax(-1)).sum())
        positions += len(ids_S)
        next_T1 = ids_S[1:, None]
        one_T, other_T = (
            logits_SV[:-1].log_softmax(-1).gather(1, next_T1)[:, 0]
            for logits_SV in (mine_SV, theirs_SV)
        )
        gap_T = (one_T - other_T).abs()
        gap_largest = max(gap_largest, gap_T.max().item())
        gap_total += gap_T.double().sum().item()
        gaps += len(gap_T)
    return LogitsComparison(
        prompts=description,
        positions=positions,
        max_abs_difference=largest,
        mean_abs_difference=total / values,
        argmax_agreement=agreeing / positions,
        max_logprob_gap=gap_largest,
        mean_logprob_gap=gap_total / gaps,
    )
