"""Low-rank adapters in Megatron's parallel linear layers, local or Transformer Engine's.

A linear layer of the spec is replaced by a subclass with a module `adapter`, whose output is added.
Communication is that of the layer itself, of [S, B, rank] instead of [S, B, hidden]:

- column-parallel (QKV, gate and up): A is the same on every tensor-parallel rank, B has the rank's
  outputs. Under sequence parallelism A meets the rank's own tokens, and what comes out is gathered:
  each rank has a part of A's gradient, which megatron sums for parameters that are marked
  `sequence_parallel` (`finalize_model_grads`). Without it A's gradient is whole on each rank.
- row-parallel (attention's output, down): A has the rank's inputs, B is the same on every rank, and
  is marked likewise: under sequence parallelism it meets the rank's own tokens.

Shapes: S tokens, B sequences, R = rank, H and O inputs and outputs of the layer on this rank.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from nemo_gdpo.conversion.adapters import ADAPTER, A, AdapterSpec, B, is_of_adapter


class LowRank(nn.Module):
    """A [R, H] and B [O, R] of one matrix, as this rank holds them."""

    def __init__(
        self, rank: int, inputs: int, outputs: int, config: TransformerConfig, *, is_column: bool
    ) -> None:
        """Make both, without values.

        Args:
            rank: R.
            inputs: H, of this rank.
            outputs: O, of this rank.
            config: of the model.
            is_column: the outputs are shared out over tensor-parallel ranks, not the inputs.
        """
        super().__init__()
        empty = {"dtype": config.params_dtype}
        self.lora_A = nn.Parameter(torch.empty(rank, inputs, **empty))
        self.lora_B = nn.Parameter(torch.empty(outputs, rank, **empty))
        shared, same = (self.lora_B, self.lora_A) if is_column else (self.lora_A, self.lora_B)
        set_tensor_model_parallel_attributes(shared, True, 0 if is_column else 1, 1)
        same.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class Adapter(nn.Module):
    """The adapters of one Megatron linear layer: a `LowRank` for each Hugging Face matrix in it."""

    def __init__(
        self,
        spec: AdapterSpec,
        parts: Mapping[str, tuple[int, int]],
        config: TransformerConfig,
        group: torch.distributed.ProcessGroup,
        *,
        is_column: bool,
    ) -> None:
        """Make them, without values.

        Args:
            spec: rank, scale and targets.
            parts: name of each matrix in the layer, in Megatron's order -> its inputs and outputs
                on this rank; those that are no targets are left out.
            config: of the model.
            group: of the tensor-parallel ranks.
            is_column: whether the layer is column-parallel.
        """
        super().__init__()
        self.parts = {
            name: LowRank(spec.rank, inputs, outputs, config, is_column=is_column)
            for name, (inputs, outputs) in parts.items()
            if name in spec.targets
        }
        for name, part in self.parts.items():
            self.add_module(name, part)
        self.is_on = True
        self.is_column = is_column
        self.group = group
        self._scale = spec.scale
        self._config = config
        self._outputs = {name: outputs for name, (_, outputs) in parts.items()}

    def forward(self, x_SBH: Tensor) -> Tensor:
        """What is added to the layer's output, [S, B, O]."""
        stacked = torch.cat([part.lora_A for part in self.parts.values()])
        low_SBR = self._reduced(nn.functional.linear(x_SBH, stacked) * self._scale)
        lows = low_SBR.chunk(len(self.parts), dim=-1)
        changes = {
            name: nn.functional.linear(low, part.lora_B)
            for (name, part), low in zip(self.parts.items(), lows, strict=True)
        }
        return self._joined(changes)

    def _reduced(self, low_SBR: Tensor) -> Tensor:
        """The layer's communication, on what A gives."""
        if self.is_column:
            after = (
                gather_from_sequence_parallel_region
                if self._config.sequence_parallel
                else copy_to_tensor_model_parallel_region
            )
        else:
            after = (
                reduce_scatter_to_sequence_parallel_region
                if self._config.sequence_parallel
                else reduce_from_tensor_model_parallel_region
            )
        reduced: Tensor = after(low_SBR, group=self.group)
        return reduced

    def _joined(self, changes: Mapping[str, Tensor]) -> Tensor:
        """The changes of all matrices, in the order in which the layer has their outputs."""
        if len(self._outputs) == 1:
            return next(iter(changes.values()))
        some = next(iter(changes.values()))
        whole = [
            changes[name] if name in changes else some.new_zeros(*some.shape[:-1], outputs)
            for name, outputs in self._outputs.items()
        ]
        if "q_proj" not in self._outputs:
            return torch.cat(whole, dim=-1)
        # Each key-value group: its query heads, its key, its value.
        groups = self._outputs["k_proj"] // self._config.kv_channels
        grouped = [part.reshape(*part.shape[:-1], groups, -1) for part in whole]
        return torch.cat(grouped, dim=-1).flatten(-2)

    @torch.no_grad()
    def fill(self, name: str, values: Mapping[str, Tensor]) -> None:
        """Take this rank's part of complete matrices.

        Args:
            name: of the Hugging Face matrix.
            values: `lora_A` and `lora_B`.
        """
        own, size = self.parts[name], self.group.size()
        dim = 0 if self.is_column else 1
        shared = B if self.is_column else A
        for matrix, value in values.items():
            if matrix == shared:
                value = value.chunk(size, dim=dim)[self.group.rank()]
            own.get_parameter(matrix).copy_(value)

    def axes(self) -> dict[str, int]:
        """Name of each shared parameter, from the layer on -> the dimension that is shared out."""
        shared, dim = (B, 0) if self.is_column else (A, 1)
        return {f"{ADAPTER}.{name}.{shared}": dim for name in self.parts}


Parts = Callable[[TransformerConfig, int, int], Mapping[str, tuple[int, int]]]
"""(config, inputs, outputs of the whole layer) -> inputs and outputs of each matrix in it."""


def _qkv(config: TransformerConfig, inputs: int, outputs: int) -> dict[str, tuple[int, int]]:
    del outputs
    key = config.kv_channels * config.num_query_groups
    query = config.kv_channels * config.num_attention_heads
    return {"q_proj": (inputs, query), "k_proj": (inputs, key), "v_proj": (inputs, key)}


def _gate_up(config: TransformerConfig, inputs: int, outputs: int) -> dict[str, tuple[int, int]]:
    del config
    return dict.fromkeys(("gate_proj", "up_proj"), (inputs, outputs // 2))


def _one(name: str) -> Parts:
    def parts(config: TransformerConfig, inputs: int, outputs: int) -> dict[str, tuple[int, int]]:
        del config
        return {name: (inputs, outputs)}

    return parts


LAYERS: dict[str, tuple[Parts, bool, tuple[str, ...]]] = {
    "linear_qkv": (_qkv, True, ("q_proj", "k_proj", "v_proj")),
    "linear_proj": (_one("o_proj"), False, ("o_proj",)),
    "linear_fc1": (_gate_up, True, ("gate_proj", "up_proj")),
    "linear_fc2": (_one("down_proj"), False, ("down_proj",)),
}
"""Megatron's linear layer -> the matrices in it, whether it is column-parallel, their names."""


def has_adapter(name: str, spec: AdapterSpec) -> bool:
    """Whether a linear layer has adapters.

    Args:
        name: a key of `LAYERS`.
        spec: which matrices have one.
    """
    return not set(LAYERS[name][2]).isdisjoint(spec.targets)


def adapted(linear: type[nn.Module], name: str, spec: AdapterSpec) -> type[nn.Module]:
    """A linear layer of a spec with its adapters.

    Args:
        linear: megatron's or Transformer Engine's, column- or row-parallel, without a norm in it.
        name: a key of `LAYERS`, which has adapters.
        spec: which matrices have one.
    """
    parts_of, is_column, _ = LAYERS[name]

    class AdaptedLinear(linear):  # type: ignore[misc, valid-type]
        def __init__(
            self, input_size: int, output_size: int, *, config: Any, tp_group: Any, **named: Any
        ) -> None:
            super().__init__(input_size, output_size, config=config, tp_group=tp_group, **named)
            size = tp_group.size()
            whole = parts_of(config, input_size, output_size)
            own = {
                part: (inputs, outputs // size) if is_column else (inputs // size, outputs)
                for part, (inputs, outputs) in whole.items()
            }
            self.adapter = Adapter(spec, own, config, tp_group, is_column=is_column)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
            output, bias = super().forward(x)
            if self.adapter.is_on:
                output = output + self.adapter(x)
            return output, bias

        def sharded_state_dict(
            self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None
        ) -> dict[str, Any]:
            found: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)
            own = {
                name: value
                for name, value in self.state_dict(prefix="", keep_vars=True).items()
                if name.startswith(f"{ADAPTER}.")
            }
            found |= make_sharded_tensors_for_checkpoint(
                own, prefix, self.adapter.axes(), sharded_offsets,
                tp_group=self.adapter.group, dp_cp_group=metadata["dp_cp_group"],
            )  # fmt: skip
            return found

    AdaptedLinear.__name__ = f"Adapted{linear.__name__}"
    return AdaptedLinear


def adapters(chunks: Sequence[nn.Module]) -> Iterator[Adapter]:
    """All adapters of a model's chunks."""
    for chunk in chunks:
        yield from (module for module in chunk.modules() if isinstance(module, Adapter))


def freeze_base(chunk: nn.Module) -> None:
    """Leave the adapters alone to be trained."""
    for name, parameter in chunk.named_parameters():
        parameter.requires_grad_(is_of_adapter(name))


def _initial_A(seed: int, layer: int, name: str, shape: tuple[int, int]) -> Tensor:
    """Kaiming's uniform as PEFT and torch's linear layers have it; the same for every mesh."""
    digest = hashlib.sha256(f"{seed} {layer} {name}".encode()).digest()
    draw = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
    bound = 1.0 / math.sqrt(shape[1])
    return torch.empty(shape, device="cpu").uniform_(-bound, bound, generator=draw)


def initialise(chunks: Sequence[Any], seed: int) -> None:
    """Begin at the base itself: A at random, B at zero.

    Args:
        chunks: megatron's GPT models of this rank.
        seed: of the run.
    """
    for chunk in chunks:
        for layer in chunk.decoder.layers:
            for adapter in adapters([layer]):
                for name, part in adapter.parts.items():
                    rank, inputs = part.lora_A.shape
                    inputs *= 1 if adapter.is_column else adapter.group.size()
                    first = _initial_A(seed, layer.layer_number, name, (rank, inputs))
                    adapter.fill(name, {A: first})
                    nn.init.zeros_(part.lora_B)
