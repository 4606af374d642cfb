"""Low-rank adapters: what they are, and which tensors of a model they change, under all names.

An adapter adds `scale * B A` to the weight of a linear layer; A [rank, in], B [out, rank]. A matrix
that Megatron fuses with others (query, key and value; gate and up) has its own A and B here as in
PEFT, so that a change of format moves numbers and computes none.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_gdpo.config.lora import LoraConfig
from nemo_gdpo.conversion.bridge import ModelBridge

ADAPTER = "adapter"
"""Name of the module in a linear layer of the live model, and so in names of tensors."""
A, B = "lora_A", "lora_B"
"""Names of both matrices, which are PEFT's."""
WEIGHT = ".weight"


def is_of_adapter(name: str) -> bool:
    """Whether a parameter of the live model, or a tensor of a checkpoint, belongs to an adapter."""
    return f".{ADAPTER}." in name


@dataclass(frozen=True)
class AdapterSpec:
    """What an adapter is, whatever the model."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Names of linear layers, as `lora.targets`."""

    @classmethod
    def of(cls, config: LoraConfig) -> AdapterSpec | None:
        """As configured; None where every weight is trained."""
        if config.rank is None:
            return None
        return cls(config.rank, config.alpha, tuple(sorted(config.targets)))

    @property
    def scale(self) -> float:
        """Factor of B A."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class AdaptedMatrix:
    """One linear layer of a Hugging Face model that has an adapter."""

    layer: int
    """From 0."""
    target: str
    """Its last name, as in `lora.targets`."""
    hf: str
    """Its whole name there: `model.layers.0.self_attn.q_proj`."""
    megatron: str
    """Of Megatron's linear layer that it is part of: `decoder.layers.0.self_attention.linear_qkv`.
    """
    outputs: int
    inputs: int

    def megatron_name(self, matrix: str) -> str:
        """Name of `lora_A` or `lora_B` in a training checkpoint."""
        return f"{self.megatron}.{ADAPTER}.{self.target}.{matrix}"

    def peft_name(self, matrix: str) -> str:
        """Name of `lora_A` or `lora_B` in PEFT's format."""
        return f"base_model.model.{self.hf}.{matrix}{WEIGHT}"

    def shape(self, matrix: str, rank: int) -> tuple[int, int]:
        """Shape of `lora_A` or `lora_B`, complete."""
        return (rank, self.inputs) if matrix == A else (self.outputs, rank)


def adapted_matrices(bridge: ModelBridge, spec: AdapterSpec) -> list[AdaptedMatrix]:
    """Every linear layer of a model that has an adapter, layer by layer."""
    found = []
    for mapping in bridge.mappings:
        for tensor in mapping.hf_tensors:
            module = tensor.name.removesuffix(WEIGHT)
            target = module.rpartition(".")[2]
            if mapping.layer is None or module == tensor.name or target not in spec.targets:
                continue
            outputs, inputs = tensor.shape(bridge.config)
            megatron = mapping.name.removesuffix(WEIGHT)
            found.append(AdaptedMatrix(mapping.layer, target, module, megatron, outputs, inputs))
    return found
