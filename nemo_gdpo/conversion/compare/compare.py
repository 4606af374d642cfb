"""Compare two checkpoints tensor by tensor, then by their logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_gdpo.conversion.compare.logits import MegatronLogits, compare_logits
from nemo_gdpo.conversion.compare.prompts import load_tokenizer, make_prompts
from nemo_gdpo.conversion.compare.report import Comparison
from nemo_gdpo.conversion.compare.verify import verify_views
from nemo_gdpo.conversion.compare.view import CheckpointView, open_checkpoint
from nemo_gdpo.errors import UserError

TOLERANCE = 1e-3
"""Float32 on two programs: sums in another order. Logits of models in use are about 10 to 30."""


def _tokenizer(views: Sequence[CheckpointView], notes: list[str]) -> Any | None:
    """The first checkpoint's tokenizer, or the second's."""
    for view in views:
        try:
            tokenizer = load_tokenizer(view.assets)
        except UserError as error:
            notes.append(str(error))
            continue
        if tokenizer is not None:
            return tokenizer
    return None


def compare(
    first: Path,
    second: Path,
    *,
    megatron_logits: MegatronLogits | None,
    tensors_only: bool = False,
    prompts_file: Path | None = None,
    tolerance: float = TOLERANCE,
    progress: bool = False,
) -> Comparison:
    """Compare two checkpoints tensor by tensor, then by their logits on the same prompts.

    Args:
        first: a Hugging Face directory, a Megatron checkpoint or a `.nemo`.
        second: likewise.
        megatron_logits: runs a Megatron checkpoint; None where only Hugging Face's can be run.
        tensors_only: run neither.
        prompts_file: one prompt a line; None is the built-in set.
        tolerance: largest difference of a logit that passes.
        progress: show a bar.

    Raises:
        UserError: a checkpoint is incomplete, damaged or does not fit in memory; the prompts do not
            fit.
    """
    with open_checkpoint(first) as one, open_checkpoint(second) as other:
        tensors = verify_views(one, other, progress=progress)
        names = (one.name, other.name)
        if tensors_only:
            return Comparison(*names, tensors, None, tolerance)
        if one.bridge.config.vocab_size != other.bridge.config.vocab_size:
            note = "the vocabularies have different sizes, so there are no logits to compare"
            return Comparison(*names, tensors, None, tolerance, (note,))
        notes: list[str] = []
        prompts = make_prompts(one.bridge.config, _tokenizer((one, other), notes), prompts_file)
        logits = compare_logits(
            one.logits(prompts.ids, megatron_logits),
            other.logits(prompts.ids, megatron_logits),
            prompts.ids,
            prompts.description,
        )
        return Comparison(*names, tensors, logits, tolerance, tuple(notes))
