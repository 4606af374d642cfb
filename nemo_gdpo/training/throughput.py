"""What a step computes and how fast: model FLOPs, TFLOP/s of a device, utilisation (MFU).

FLOPs are counted as the model's arithmetic needs them (Chowdhery et al. 2022, PaLM, appendix B;
Narayanan et al. 2021, appendix; Megatron-LM's `num_floating_point_operations`): matrix products
only, 2 m n k each, backward twice the forward, nothing for recomputation. Where those assume rows
of one length, this counts what is there:

- projections and MLP for every real token: padding is no useful work, `train/padding_fraction` says
  how much of it there was;
- attention, 4 x query size for every position that a query sees, with the row's own length, causal
  and within the layer's window: n (n + 1) / 2 positions without one (Megatron-LM halves n^2);
- the head at labels only, since it is computed nowhere else;
- of a shared prompt (`data.prefix_sharing`) one computation, which serves both responses;
- the forward pass of a reference that each step computes on top (a copy, or the policy without its
  adapters); a cached reference costs a step nothing;
- with adapters, the gradient of a frozen weight is not computed: backward is one product for it
  instead of two. The adapters' own products are left out: rank / hidden size of the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nemo_gdpo.conversion.model_config import MegatronModelConfig
from nemo_gdpo.data.types import TokenizedPair
from nemo_gdpo.plan.hardware import peak_of
from nemo_gdpo.training.metrics import (
    DATA_SECONDS,
    MFU,
    STEP_SECONDS,
    TFLOPS_PER_GPU,
    TOKENS_PER_SECOND,
    TOKENS_PER_SECOND_PER_GPU,
)

FORWARD, FORWARD_AND_BACKWARD = 1, 3
"""Products for one of the forward pass."""


def peak_tflops(device: str, precision: str) -> float | None:
    """Dense TFLOP/s of a device; None where it is not known, which nothing is made up for.

    Args:
        device: its name, as CUDA gives it.
        precision: value of the `precision` key.
    """
    peak = peak_of(device)
    return None if peak is None else peak.of(precision)


def attended(length: int, window: int | None) -> int:
    """Pairs of positions in causal attention over one row.

    Args:
        length: of the row.
        window: positions that a query sees, its own included; None is all before it.
    """
    if window is None or window >= length:
        return length * (length + 1) // 2
    return window * (window + 1) // 2 + (length - window) * window


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of a model's forward pass, part by part."""

    per_token: int
    """Projections and MLP of all layers."""
    per_position: int
    """One layer's scores and sums, for one position that one query sees."""
    per_label: int
    """The head."""
    windows: tuple[tuple[int | None, int], ...]
    """(window, layers that have it)."""

    @classmethod
    def of(cls, model: MegatronModelConfig) -> FlopCount:
        """Of a gated decoder with grouped queries."""
        hidden, query = model.hidden_size, model.query_size
        projections = hidden * (query + 2 * model.key_value_size) + query * hidden
        mlp = 3 * hidden * model.ffn_hidden_size  # gate, up, down
        windows = Counter(model.layer_windows or [None] * model.num_layers)
        return cls(
            per_token=2 * model.num_layers * (projections + mlp),
            per_position=2 * 2 * query,
            per_label=2 * hidden * model.vocab_size,
            windows=tuple(windows.items()),
        )

    def forward(self, length: int, labels: int) -> int:
        """FLOPs of one row.

        Args:
            length: its tokens, without padding.
            labels: positions at which the head is computed.
        """
        return self.attention(length) + length * self.per_token + labels * self.per_label

    def attention(self, length: int) -> int:
        """FLOPs of one row that no weight takes part in."""
        positions = sum(layers * attended(length, window) for window, layers in self.windows)
        return positions * self.per_position

    def of_pairs(self, pairs: Iterable[TokenizedPair], *, prefix_sharing: bool = False) -> int:
        """FLOPs of both rows of every pair, forward; of shared prompts once, but for a token."""
        pairs = list(pairs)
        whole = sum(self.forward(length, labels) for length, labels in _rows(pairs))
        repeated = sum(self.forward(len(pair.prompt_ids) - 1, 0) for pair in pairs)
        return whole - (repeated if prefix_sharing else 0)

    def attention_of_pairs(
        self, pairs: Iterable[TokenizedPair], *, prefix_sharing: bool = False
    ) -> int:
        """The part of `of_pairs` that no weight takes part in."""
        pairs = list(pairs)
        whole = sum(self.attention(length) for length, _ in _rows(pairs))
        repeated = sum(self.attention(len(pair.prompt_ids) - 1) for pair in pairs)
        return whole - (repeated if prefix_sharing else 0)


def _rows(pairs: Iterable[TokenizedPair]) -> Iterator[tuple[int, int]]:
    """(tokens, labels) of both rows of every pair."""
    for pair in pairs:
        for prompt, response in pair.sequences:
            yield len(prompt) + len(response.ids), len(response.ids)


@dataclass(frozen=True)
class Speedometer:
    """A step's columns of speed."""

    flops: FlopCount
    devices: int
    """That share the work."""
    passes: int
    """Products for one of the policy's forward pass: `FORWARD_AND_BACKWARD`, and the reference."""
    peak: float | None
    """TFLOP/s of one device; None where it is not known."""
    why_no_peak: str
    """One line; empty where there is one."""
    prefix_sharing: bool = False
    """Prompts are computed once for both responses."""
    frozen: bool = False
    """No weight of the model has a gradient: adapters are trained."""

    @classmethod
    def of(
        cls,
        model: MegatronModelConfig,
        *,
        devices: int,
        live_reference: bool,
        device: str,
        precision: str,
        configured_peak: float | None,
        prefix_sharing: bool,
        frozen: bool = False,
    ) -> Speedometer:
        """Of a run.

        Args:
            model: the policy's architecture, and the reference's.
            devices: ranks, one device each.
            live_reference: every step computes the reference, too, in whichever way.
            device: name of this rank's device.
            precision: value of the `precision` key.
            configured_peak: `logger.peak_tflops`.
            prefix_sharing: `data.prefix_sharing`.
            frozen: adapters alone are trained.
        """
        peak = configured_peak or peak_tflops(device, precision)
        why = f"the peak of {device} in {precision} is not known; set logger.peak_tflops"
        passes = FORWARD_AND_BACKWARD + (FORWARD if live_reference else 0)
        flops = FlopCount.of(model)
        return cls(flops, devices, passes, peak, "" if peak else why, prefix_sharing, frozen)

    def columns(
        self, pairs: Sequence[TokenizedPair], tokens: int, seconds: float, data_seconds: float
    ) -> dict[str, float]:
        """Columns of one update.

        Args:
            pairs: of the global batch.
            tokens: of them, without padding.
            seconds: of the whole update.
            data_seconds: of them, laying out its tokens on this rank.
        """
        forward = self.flops.of_pairs(pairs, prefix_sharing=self.prefix_sharing)
        flops = self.passes * forward
        if self.frozen:
            flops -= forward - self.flops.attention_of_pairs(
                pairs, prefix_sharing=self.prefix_sharing
            )
        tflops = flops / seconds / self.devices / 1e12
        found = {
            TOKENS_PER_SECOND: tokens / seconds,
            TOKENS_PER_SECOND_PER_GPU: tokens / seconds / self.devices,
            TFLOPS_PER_GPU: tflops,
            STEP_SECONDS: seconds,
            DATA_SECONDS: data_seconds,
        }
        return found if self.peak is None else found | {MFU: tflops / self.peak}
