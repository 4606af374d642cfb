"""Per-pair values from all ranks, reduced once, alike everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_gdpo.errors import RunError
from nemo_gdpo.io.rows import RowFile, encode_row, repair
from nemo_gdpo.models.preference_model import LOSS, NOT_FINITE
from nemo_gdpo.objectives import Objective

TOKENS_PER_SECOND, STEP_SECONDS = "perf/tokens_per_second", "perf/step_seconds"
TOKENS_PER_SECOND_PER_GPU = "perf/tokens_per_second_per_gpu"
TFLOPS_PER_GPU, MFU = "perf/model_tflops_per_gpu", "perf/mfu"
DATA_SECONDS, VALIDATION_SECONDS = "perf/data_seconds", "perf/validation_seconds"
CHECKPOINT_SECONDS = "perf/checkpoint_seconds"
"""Of the checkpoint between the step before and this one."""
PEAK_MEMORY, PEAK_MEMORY_OF_ALL = "perf/peak_memory_gib", "perf/peak_memory_gib_all_ranks"
TIMING = frozenset(
    {
        TOKENS_PER_SECOND, TOKENS_PER_SECOND_PER_GPU, TFLOPS_PER_GPU, MFU, STEP_SECONDS,
        DATA_SECONDS, VALIDATION_SECONDS, CHECKPOINT_SECONDS, PEAK_MEMORY, PEAK_MEMORY_OF_ALL,
    }
)  # fmt: skip
"""What a line of the log says of the machine, not of the training."""


PADDING, SHARED = "train/padding_fraction", "train/shared_fraction"
"""Share of positions that hold no token; and, of tokens, of those that sharing prompts saved."""
SKIPPED_STEPS = "train/skipped_steps"
"""Updates left out so far."""
SKIPPED_FILE = "skipped_steps.jsonl"
_REFERENCE = "reference_logps/"
"""Per-pair values of the reference begin so."""


class NotFiniteError(RunError):
    """A loss, a log-prob or the gradient norm is not finite; the update was not made."""

    agreed = True  # every rank has the same sums

    def __init__(self, text: str, *, pairs: list[str] | None = None, may_skip: bool = False):
        """Make one.

        Args:
            text: one line.
            pairs: ids of those whose values are not finite; None where they cannot be told.
            may_skip: the update may be left out: it is the policy's, and training goes on without.
        """
        super().__init__(text)
        self.pairs = pairs
        self.may_skip = may_skip

    def after(self, skipped: int) -> NotFiniteError:
        """The same after as many skipped updates as there may be."""
        return NotFiniteError(
            f"{self}; {skipped} updates were left out before (trainer.max_skipped_steps={skipped}, "
            f"{SKIPPED_FILE} names their pairs)"
        )


def gather_per_pair(
    results: list[dict[str, Any]],
    names: list[str],
    global_batch_size: int,
    *,
    contributes: bool,
    device: torch.device,
) -> dict[str, Tensor]:
    """Put every pair's values at its position in the global batch, on every rank.

    Args:
        results: of `get_loss_and_metrics` on this rank.
        names: the values to gather, the same list on all ranks.
        global_batch_size: pairs in it.
        contributes: this rank's results count (one rank a model-parallel group).
        device: of the collective.

    Returns:
        name -> float32 [global_batch_size] on the CPU.
    """
    table = torch.zeros(len(names), global_batch_size, dtype=torch.float32, device=device)
    if contributes:
        for result in results:
            batch_indices = result["batch_index_B"]
            real = batch_indices >= 0
            for row, name in enumerate(names):
                table[row, batch_indices[real]] = result["per_pair"][name][real].float()
    dist.all_reduce(table)
    host = table.cpu()
    return {name: host[row] for row, name in enumerate(names)}


def refuse_not_finite(per_pair: dict[str, Tensor], pair_ids: list[str], step: int) -> None:
    """Stop, naming the pairs, when any loss or log-prob is not finite.

    Raises:
        NotFiniteError: with the ids of the pairs. The update may be skipped unless the reference is
            what is not finite.
    """
    bad = (per_pair[NOT_FINITE] > 0) | ~torch.isfinite(per_pair[LOSS])
    if bool(bad.any()):
        named = [pair_ids[i] for i in bad.nonzero().flatten().tolist()]
        reference = [v for name, v in per_pair.items() if name.startswith(_REFERENCE)]
        raise NotFiniteError(
            f"step {step}: loss or log-probs are not finite for pairs {', '.join(named[:8])}"
            f"{' and more' if len(named) > 8 else ''}; the weights were not changed",
            pairs=named,
            may_skip=all(bool(torch.isfinite(values).all()) for values in reference),
        )


def note_skipped(output_dir: Path, step: int, pair_ids: list[str], error: NotFiniteError) -> None:
    """Write why an update was left out into skipped_steps.jsonl, once for each step.

    Raises:
        RunError: it cannot be written.
    """
    row = {
        "step": step,
        "reason": str(error),
        "pairs": pair_ids if error.pairs is None else error.pairs,
        "pairs_are": "the batch" if error.pairs is None else "not finite",
    }
    path, line = output_dir / SKIPPED_FILE, encode_row(row)
    try:
        if path.is_file():
            repair(path)
        # A run that was resumed from before that step comes to it again.
        if not path.is_file() or line not in path.read_bytes().splitlines(keepends=True):
            with RowFile(path) as file:
                file.append(line)
    except OSError as failed:
        raise RunError(
            f"{error}; {path} could not be written ({failed.strerror or failed}); free space or "
            "fix the permissions, then start again"
        ) from failed


def reduce_metrics(
    objective: Objective, per_pair: dict[str, Tensor], count: int
) -> dict[str, float]:
    """One number a metric over the first `count` pairs, as the objective reduces its own."""
    return objective.reduce(
        {name: values[:count] for name, values in per_pair.items() if name != NOT_FINITE}
    )
