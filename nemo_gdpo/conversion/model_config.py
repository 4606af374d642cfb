"""The architecture of a model, for both sides of a conversion and for the model builder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nemo_gdpo.errors import UserError
from nemo_gdpo.io import files


@dataclass(frozen=True)
class MegatronModelConfig:
    """All that a decoder's arithmetic depends on, under Megatron's names. Sizes count elements."""

    family: str
    """Key of `families.FAMILIES`."""
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    """Key-value heads."""
    kv_channels: int
    """Dimensions of one head; not always hidden_size / num_attention_heads."""
    vocab_size: int
    """Rows of the embedding that mean something, without padding."""
    max_position_embeddings: int
    rotary_base: float
    layernorm_epsilon: float
    rotary_scaling: dict[str, Any] | None = None
    """None, or `rope_type` ("linear" | "dynamic" | "llama3" | "yarn") with that type's numbers."""
    local_rotary_base: float | None = None
    """Base of the layers with a window, which then have no scaling; None is the same for all."""
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    """Biases on query, key and value."""
    activation: str = "silu"
    """Activation of the gate: "silu", or "gelu_tanh", GELU by its tanh formula."""
    softmax_scale: float | None = None
    """Factor of the attention scores; None is 1 / sqrt(kv_channels)."""
    attention_softcap: float | None = None
    """c in c * tanh(score / c), on scaled attention scores; None leaves them as they are."""
    logit_softcap: float | None = None
    """The same on the logits."""
    layer_windows: list[int | None] | None = None
    """Positions that a query of each layer sees, its own included; None is all of them."""
    qk_norms: bool = False
    """RMS norms of every query head and every key head, before the rotation."""
    post_norms: bool = False
    """RMS norms of what attention and MLP give, before it is added to the residual stream."""
    zero_centered_norms: bool = False
    """Norm weights are stored minus one."""
    embedding_scale: float | None = None
    """Factor of the embeddings that enter the first layer, not of a tied output layer."""

    @property
    def query_size(self) -> int:
        """Rows of the query projection."""
        return self.num_attention_heads * self.kv_channels

    @property
    def key_value_size(self) -> int:
        """Rows of the key projection, and of the value projection."""
        return self.num_query_groups * self.kv_channels

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str | Path) -> MegatronModelConfig:
        """Read what `to_dict` gave.

        Args:
            values: exactly the fields of this class.
            where: named in errors.

        Raises:
            UserError: a field is missing, unknown, or of another type.
        """
        known = {field.name: field for field in fields(cls)}
        missing = sorted(known.keys() - values.keys())
        unknown = sorted(values.keys() - known.keys())
        if missing or unknown:
            raise UserError(
                f"{where}: lacks the fields {missing} and has the unknown fields {unknown}; "
                "convert the model again with this version"
            )
        for name, value in values.items():
            if not _fits(value, str(known[name].type)):
                raise UserError(
                    f"{where}: {name} is {value!r}, which is not of type {known[name].type}; "
                    "convert the model again"
                )
        return cls(**values)


def _fits(value: object, annotation: str) -> bool:
    match annotation:
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "float":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "float | None":
            return value is None or _fits(value, "float")
        case "list[int | None] | None":
            return value is None or (
                isinstance(value, list) and all(v is None or _fits(v, "int") for v in value)
            )
        case "bool":
            return isinstance(value, bool)
        case "str":
            return isinstance(value, str)
        case _:
            return value is None or isinstance(value, dict)


def padded_vocab_size(vocab_size: int, divisible_by: int, tensor_parallel: int) -> int:
    """Rows of the embedding in Megatron: the next multiple of `divisible_by * tensor_parallel`."""
    multiple = divisible_by * tensor_parallel
    return -(-vocab_size // multiple) * multiple


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: the file is missing, is not JSON, or holds something else.
    """
    return files.read_json_object(path, missing="give a complete model directory")
