"""Sizes of a gated decoder with grouped queries, and what follows from them: parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_WIDE_NORMS, _HEAD_NORMS = ("gemma2", "gemma3_text"), ("qwen3", "gemma3_text")
"""Values of `model_type` with norms of what attention and MLP give, too; and of query and key."""


@dataclass(frozen=True)
class Shape:
    """Sizes count elements; `norms` are those of a layer, each as wide as the hidden state."""

    layers: int
    hidden: int
    heads: int
    groups: int
    """Key-value heads."""
    head: int
    """Dimensions of one head."""
    ffn: int
    vocabulary: int
    tied: bool = False
    norms: int = 2
    biased: bool = False
    """Biases on query, key and value."""
    head_norms: bool = False
    """Norms of query and key heads."""
    capped: bool = False
    """Attention scores have a soft-cap, for which they are written out."""

    @property
    def matrices(self) -> int:
        """Parameters of a layer that tensor-parallel ranks share out."""
        return self.linear + self.biased * self.head * (self.heads + 2 * self.groups)

    @property
    def linear(self) -> int:
        """Those of them that are of a matrix, and not of its bias."""
        attention = 2 * self.hidden * self.head * (self.heads + self.groups)
        return attention + 3 * self.hidden * self.ffn

    @property
    def vectors(self) -> int:
        """Parameters of a layer that each tensor-parallel rank has whole."""
        return self.norms * self.hidden + 2 * self.head_norms * self.head

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and of the head."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Of the model, once each."""
        ends = self.embedding * (1 if self.tied else 2) + self.hidden
        return self.layers * (self.matrices + self.vectors) + ends


KNOWN = {
    "llama3_8b": Shape(32, 4096, 32, 8, 128, 14336, 128256),
    "llama3_70b": Shape(80, 8192, 64, 8, 128, 28672, 128256),
    "gemma2_9b": Shape(42, 3584, 16, 8, 256, 14336, 256000, tied=True, norms=4, capped=True),
    "smollm2_135m": Shape(30, 576, 9, 3, 64, 1536, 49152, tied=True),
}
"""Published models (their config.json), under the names of the presets in `conf/model`."""


def read_shape(values: Mapping[str, Any]) -> Shape | None:
    """Sizes of a config.json, under Hugging Face's names; None where one is missing.

    Args:
        values: see `nemo_gdpo.config.model_files.read_model_config`.
    """
    hidden, heads = _whole(values, "hidden_size"), _whole(values, "num_attention_heads")
    layers, ffn = _whole(values, "num_hidden_layers"), _whole(values, "intermediate_size")
    vocabulary = _whole(values, "vocab_size")
    if not (hidden and heads and layers and ffn and vocabulary):
        return None
    family = str(values.get("model_type") or values.get("family") or "")
    return Shape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        groups=_whole(values, "num_key_value_heads") or heads,
        head=_whole(values, "head_dim") or hidden // heads,
        ffn=ffn,
        vocabulary=vocabulary,
        tied=bool(values.get("tie_word_embeddings", family.startswith("gemma"))),
        norms=4 if values.get("post_norms", family in _WIDE_NORMS) else 2,
        biased=bool(values.get("attention_bias", family == "qwen2")),
        head_norms=bool(values.get("qk_norms", family in _HEAD_NORMS)),
        capped=bool(values.get("attn_logit_softcapping", values.get("attention_softcap"))),
    )


def _whole(values: Mapping[str, Any], name: str) -> int | None:
    found = values.get(name)
    return found if isinstance(found, int) and found > 0 else None
