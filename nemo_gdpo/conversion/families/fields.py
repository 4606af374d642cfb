"""Reading config.json strictly: a field is mapped, refused unless neutral, or irrelevant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_gdpo.errors import UserError

IRRELEVANT = frozenset(
    {
        # Where it came from, and how it was stored. Tensors keep the type they have.
        "_commit_hash", "_model_name_or_path", "_name_or_path", "architectures", "dtype",
        "finetuning_task", "model_type", "torch_dtype",
        # Code of the repository, which nothing here runs: the arithmetic is that of model_type.
        "auto_map",
        "transformers.js_config", "transformers_version", "unsloth_fixed", "unsloth_version",
        # Only new weights are drawn with it.
        "initializer_range",
        # What a forward pass returns or keeps, or which kernel computes it.
        "_attn_implementation", "attn_implementation", "output_attentions",
        "output_hidden_states", "return_dict", "torchscript", "use_cache",
        # Token ids, for the tokenizer, generation and the gradient of the padding row.
        "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id",
        "decoder_start_token_id",
        "prefix", "tokenizer_class",
        # Defaults of generation, which older files keep here.
        "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample",
        "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty",
        "forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length", "min_length",
        "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
        "output_scores", "remove_invalid_values", "repetition_penalty", "return_dict_in_generate",
        "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss", "top_k",
        "top_p", "typical_p", "use_bfloat16",
        # Heads other than the language model's.
        "chunk_size_feed_forward", "id2label", "label2id", "problem_type",
    }
)  # fmt: skip
"""Fields of every family that change no logit."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "pruned_heads": (None, {}),
    "tie_encoder_decoder": (False,),
}
"""Fields of every family, with the values that change nothing. Any other value is refused."""


class ConfigFields:
    """A config.json that remembers which of its fields somebody has dealt with."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self._where = where
        self._seen: set[str] = set(IRRELEVANT)

    @property
    def where(self) -> str:
        """The file, for errors."""
        return self._where

    def error(self, message: str) -> UserError:
        """An error about this file."""
        return UserError(f"{self._where}: {message}")

    def refuse_quantized(self) -> None:
        """Refuse a quantised checkpoint, whose tensors are not the weights."""
        if self._values.get("quantization_config") is not None:
            raise self.error(
                "quantization_config is set: the checkpoint is quantised and cannot be converted "
                "exactly; give the unquantised model"
            )
        self._seen.add("quantization_config")

    def size(self, name: str, default: int | None = None) -> int:
        """A positive integer; without a default it has to be there."""
        value = self.optional(name)
        if value is None:
            if default is None:
                raise self.error(f"{name} is missing; restore the file")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(f"{name} is {value!r} instead of a positive integer; restore the file")
        return value

    def number(self, name: str, default: float) -> float:
        """A positive number."""
        value = self.optional(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise self.error(f"{name} is {value!r} instead of a positive number; restore the file")
        return float(value)

    def number_or_none(self, name: str, default: float | None) -> float | None:
        """A positive number; null means no number, not the default."""
        if name in self._values and self.optional(name) is None:
            return None
        return default if self.optional(name) is None else self.number(name, 1.0)

    def flag(self, name: str, default: bool) -> bool:
        """A truth value."""
        value = self.optional(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(f"{name} is {value!r} instead of true or false; restore the file")
        return value

    def optional(self, name: str) -> Any:
        """The value as it stands; None when it is absent."""
        self._seen.add(name)
        return self._values.get(name)

    def mapping(self, name: str) -> dict[str, Any]:
        """A JSON object; empty when it is absent."""
        value = self.optional(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.error(f"{name} is {value!r} instead of an object; restore the file")
        return dict(value)

    def refuse_unless_neutral(self, neutral: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse fields whose value changes the arithmetic in a way that is not built."""
        for name, allowed in {**NEUTRAL, **neutral}.items():
            value = self.optional(name)
            if name in self._values and value not in allowed:
                raise self.error(
                    f"{name} is {value!r}, which is not supported (supported: "
                    f"{' or '.join(repr(a) for a in allowed)}); use another model"
                )

    def refuse_unknown(self) -> None:
        """Refuse fields that nobody asked for: they may change the arithmetic."""
        unknown = sorted(self._values.keys() - self._seen)
        if unknown:
            raise self.error(
                f"unknown fields {', '.join(unknown)}; they may change the arithmetic: if they do "
                "not, remove them from the file"
            )
