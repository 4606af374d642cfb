"""Contents of one micro-batch, and the way from its log-probs to objective inputs.

Shapes: B pairs, N = 2B rows (all chosen, then all rejected), T response tokens of all rows in
order, C columns (label; EOS; tempered EOS).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_gdpo.data.collate import PackedBatch, PaddedBatch, responses_from_flat
from nemo_gdpo.objectives import PairLogps, PairTargets, TokenLogps


@dataclass(frozen=True)
class PreferenceMicroBatch:
    """B pairs on their way through megatron's schedule."""

    rows: PaddedBatch | PackedBatch
    batch_index_B: Tensor
    """Position of each pair in the global batch, int64; -1 marks a sentinel of weight zero."""
    reference_TC: Tensor | None = None
    """Reference log-probs in the layout of the policy's, float32; None while computing them."""
    pairs_of_group: int = 1
    """Neighbours in the global batch that are answers to one prompt, and compared as one group."""

    oracle_B: Tensor | None = None
    """int8: what somebody who was asked says of each pair, see `PairTargets`."""

    @property
    def weight_B(self) -> Tensor:
        """1 for a pair that counts, 0 for a sentinel that only fills the batch; float32."""
        return (self.batch_index_B >= 0).float()

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, labels, positions), int64 [N, S], or [1, S] when packed."""
        rows = self.rows
        if isinstance(rows, PackedBatch):
            return rows.tokens_1S, rows.labels_1S, rows.position_ids_1S
        return rows.tokens_NS, rows.labels_NS, rows.position_ids_NS

    @property
    def targets(self) -> PairTargets:
        """What the data says of the pairs, which of them are one group, and what people said."""
        rows, group_B = self.rows, None
        if self.pairs_of_group > 1:
            # Sentinels, at -1, are a group of their own.
            group_B = self.batch_index_B.div(self.pairs_of_group, rounding_mode="floor")
        return PairTargets(
            chosen_score_N=rows.chosen_score_B,
            rejected_score_N=rows.rejected_score_B,
            weight_N=rows.weight_B,
            margin_N=rows.margin_B,
            chosen_label_N=rows.chosen_label_B,
            rejected_label_N=rows.rejected_label_B,
            group_N=group_B,
            oracle_N=self.oracle_B,
        )


COLUMNS = ("label", "eos", "tempered_eos")
"""Of token log-probs, in the order in which the head gives them."""


def pair_logps(
    values_TC: Tensor, rows: PaddedBatch | PackedBatch, names: Sequence[str] = COLUMNS
) -> PairLogps:
    """Lay flat token log-probs out as a `PairLogps`.

    Args:
        values_TC: float32.
        rows: the micro-batch they were computed from.
        names: of the columns, `label` among them; there may be fewer columns.
    """
    columns: dict[str, Tensor] = {}
    mask_NT: Tensor | None = None
    for name, column in zip(names, values_TC.unbind(dim=1), strict=False):
        columns[name], mask_NT = responses_from_flat(column, rows.response_lengths_N)
    assert mask_NT is not None
    pairs = mask_NT.shape[0] // 2

    def half(start: int) -> TokenLogps:
        rows_of_half = slice(start, start + pairs)
        picked = {name: column[rows_of_half] for name, column in columns.items()}
        return TokenLogps(
            label_NT=picked["label"],
            mask_NT=mask_NT[rows_of_half],
            eos_NT=picked.get("eos"),
            tempered_eos_NT=picked.get("tempered_eos"),
            complete_N=rows.complete_N[rows_of_half],
        )

    return PairLogps(chosen=half(0), rejected=half(pairs))


def finite_or_flag(values: Tensor) -> Tensor:
    """Per-row flag, float32: 1 where a row of [N, ...] holds a value that is not finite."""
    return (~torch.isfinite(values)).reshape(values.shape[0], -1).any(dim=1).float()
