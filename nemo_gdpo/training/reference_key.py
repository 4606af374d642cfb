"""What the reference's numbers, and a run, depend on: every input of the function by name.

A key names what changes the numbers by more than the order of additions: weights, architecture,
tokens, template, precision, the layers and attention kernels, the code. Left out on purpose are the
mesh (TP, PP, CP, DP), micro-batches, packing and chunks: they change a number by rounding alone,
and a cache is shared over them. In fp32 that is 1e-5 of it; in bf16 what the check of step 0 allows
(`nemo_gdpo.training.sanity`), which measures it. Work that was stopped in the middle is continued
under the same cut only (`Cut`): a cache is one function's, to the bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from nemo_gdpo.config.packing import packed_row
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.conversion.model_config import MegatronModelConfig
from nemo_gdpo.models.preference_model import PreferenceModel

FORMAT_VERSION = 2
SCORER = 1
"""Raised by hand when the code that computes log-probs (`models`, `logprobs`, `data/collate.py`)
changes a number by more than rounding. The version of this package is no part of a key: a release
that mends something else keeps the caches."""


@dataclass(frozen=True)
class ReferenceKey:
    """Everything that the cached numbers depend on."""

    weights: str
    """SHA-256 of the reference model's weights."""
    architecture: Mapping[str, Any]
    """Fields of its `MegatronModelConfig`."""
    data: str
    """Fingerprint of the tokenised pairs; the end token is in it."""
    template: str
    """SHA-256 of the chat template, or `none`."""
    truncation: str
    precision: str
    device: str
    """`cuda` or `cpu`."""
    layers: str
    """`transformer_engine` or `local`."""
    attention_backend: str
    libraries: Mapping[str, str]
    """Name -> major and minor version of what computes."""
    scorer: int
    """`SCORER`."""
    eos_temperature: float
    columns: tuple[str, ...]
    """`label`, then `eos` or `tempered_eos` where the objective reads one."""

    def plain(self) -> dict[str, Any]:
        """A JSON object."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def digest(self) -> str:
        """SHA-256 over all fields, hex."""
        text = json.dumps({"version": FORMAT_VERSION, **self.plain()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def differing(self, stored: Mapping[str, Any]) -> list[str]:
        """Names of the fields in which a stored key (`plain`) is another."""
        own, other = dict(_leaves(self.plain())), dict(_leaves(stored))
        return sorted(name for name in {*own, *other} if own.get(name) != other.get(name))


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict) and not prefix:
            yield from _leaves(value, f"{name}.")
        else:
            yield prefix + name, value


@dataclass(frozen=True)
class Cut:
    """How pairs are laid out for the model: with the key it decides the numbers to the bit.

    Which rank computes a micro-batch changes nothing; but packed rows are as many as the ranks
    need, so that what is in one depends on their number.
    """

    global_batch_size: int
    micro_batch_size: int
    pack_tokens: int | None
    prefix_sharing: bool
    packed_for: int | None
    """Data-parallel ranks; None for padded rows."""
    tensor: int
    pipeline: int
    context: int
    sequence_parallel: bool
    vocab_divisible_by: int
    logprob_chunk_tokens: int

    @classmethod
    def of(cls, config: RunConfig, data_size: int) -> Cut:
        """The cut of a run on so many data-parallel ranks."""
        model, pack_tokens = config.model, packed_row(config)
        return cls(
            global_batch_size=model.global_batch_size,
            micro_batch_size=model.micro_batch_size,
            pack_tokens=pack_tokens,
            prefix_sharing=config.data.prefix_sharing,
            packed_for=None if pack_tokens is None else data_size,
            tensor=model.tensor_model_parallel_size,
            pipeline=model.pipeline_model_parallel_size,
            context=model.context_parallel_size,
            sequence_parallel=model.sequence_parallel,
            vocab_divisible_by=model.make_vocab_size_divisible_by,
            logprob_chunk_tokens=model.logprob_chunk_tokens,
        )


def model_identity(weights: str, architecture: MegatronModelConfig) -> dict[str, Any]:
    """What makes two models the same function, as plain JSON: weights alone do not.

    Args:
        weights: SHA-256 of them.
        architecture: what is computed with them, `rotary_base` in config.json, say.
    """
    return {"weights": weights, "architecture": json.loads(json.dumps(architecture.to_dict()))}


def libraries_of(layers: str) -> dict[str, str]:
    """Major and minor versions of the libraries whose code computes the numbers."""
    names = ["torch", "megatron-core"]
    names += ["transformer-engine"] if layers == "transformer_engine" else []
    return {name: ".".join(version(name).split(".")[:2]) for name in names}


def _precision_of(config: RunConfig) -> str:
    """Of the products, and of the base where that is another."""
    base = config.lora.base_precision
    return config.precision if base == "run" else f"{config.precision} over {base}"


def reference_key(
    config: RunConfig,
    model: PreferenceModel,
    *,
    weights: str,
    data: str,
    template: str,
) -> ReferenceKey:
    """The key of a run's reference.

    Args:
        config: of the run.
        model: as it was built: which layers it has is known from it.
        weights: SHA-256 of the weights that it starts from.
        data: fingerprint of the tokenised pairs.
        template: SHA-256 of the chat template, or `none`.
    """
    identity, limits = model_identity(weights, model.model_config), config.data
    layers = str(model.megatron_config.transformer_impl)
    return ReferenceKey(
        weights=identity["weights"],
        architecture=identity["architecture"],
        data=data,
        template=template,
        truncation=f"{limits.truncation_mode} prompt {limits.max_prompt_length} "
        f"total {limits.max_length}",
        precision=_precision_of(config),
        device=model.platform.capabilities.device_type,
        layers=layers,
        attention_backend=config.model.attention_backend,
        libraries=libraries_of(layers),
        scorer=SCORER,
        eos_temperature=model.objective.reference_eos_temperature,
        columns=model.reference_columns,
    )
