"""Adapters in PEFT's format: `adapter_config.json` beside `adapter_model.safetensors`.

Field names and names of tensors are those of peft 0.21 (`LoraConfig`, `save_pretrained`). The file
with the tensors says of which base they are in its own header: a field of the configuration that
PEFT does not know would be a warning there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nemo_gdpo.config.lora import ADAPTER_CONFIG
from nemo_gdpo.conversion.adapters import A, AdapterSpec, B, adapted_matrices
from nemo_gdpo.conversion.atomic import staged_directory
from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.engine import check_shapes
from nemo_gdpo.conversion.model_config import read_json_object
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import file_sha256
from nemo_gdpo.io.tensor_file import with_ordered_metadata

ADAPTER_MODEL = "adapter_model.safetensors"
BASE_SHA256 = "base_sha256"
"""Key in the header of the tensors: fingerprint of the base's weights."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "alora_invocation_tokens": (None,),
    "alpha_pattern": (None, {}),
    "arrow_config": (None,),
    "bias": ("none",),
    "exclude_modules": (None, []),
    "fan_in_fan_out": (False,),
    # Other ways to begin change the base as well.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
    "kasa_config": (None,),
    "layer_replication": (None,),
    "layers_pattern": (None, []),
    "layers_to_transform": (None, []),
    "lora_bias": (False,),
    "megatron_config": (None,),
    "modules_to_save": (None, []),
    "monteclora_config": (None,),
    "rank_pattern": (None, {}),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "use_bdlora": (None,),
    "use_dora": (False,),
    "use_qalora": (False,),
    "use_rslora": (False,),
    "velora_config": (None,),
}
"""Fields of PEFT that change what is computed -> the values with which they do not."""


def write_peft(
    directory: Path,
    bridge: ModelBridge,
    spec: AdapterSpec,
    tensor: Callable[[str], Tensor],
    *,
    base: str,
    base_sha256: str,
) -> None:
    """Write an adapter; all of it appears, or nothing.

    Args:
        directory: absent, empty, or an earlier export.
        bridge: of the base.
        spec: of the adapter.
        tensor: reads a complete A or B by its name in Megatron.
        base: name or path of the base, as the user has it.
        base_sha256: fingerprint of its weights.

    Raises:
        UserError: the directory holds something else, or cannot be written.
    """
    tensors = {
        one.peft_name(matrix): tensor(one.megatron_name(matrix)).contiguous()
        for one in adapted_matrices(bridge, spec)
        for matrix in (A, B)
    }
    settings = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": spec.alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": spec.rank,
        "target_modules": list(spec.targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    expected = sum(value.numel() * value.element_size() for value in tensors.values())
    with staged_directory(directory, kind="peft", key={}, expected_bytes=expected) as staging:
        text = json.dumps(settings, indent=2) + "\n"
        (staging.path / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
        header = {"format": "pt", BASE_SHA256: base_sha256}
        content = with_ordered_metadata(save(tensors, metadata=header))
        (staging.path / ADAPTER_MODEL).write_bytes(content)


@dataclass(frozen=True)
class PeftFiles:
    """What an adapter says of itself, whoever has made it."""

    rank: int
    base_sha256: str | None
    """Fingerprint of its base's weights; None where that is not said."""
    sha256: str
    """Of both files."""


def look_at_peft(directory: Path) -> PeftFiles:
    """Read what is not tensors.

    Raises:
        UserError: a file is missing or damaged, or it is no adapter of this kind.
    """
    settings, path = read_json_object(directory / ADAPTER_CONFIG), directory / ADAPTER_MODEL
    rank = settings.get("r")
    if settings.get("peft_type") != "LORA" or not isinstance(rank, int):
        raise UserError(
            f"{directory / ADAPTER_CONFIG}: peft_type is {settings.get('peft_type')} and r {rank}; "
            "an adapter of type LORA is needed"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
        both = f"{file_sha256(directory / ADAPTER_CONFIG)} {file_sha256(path)}"
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore the adapter") from None
    return PeftFiles(rank, header.get(BASE_SHA256), hashlib.sha256(both.encode()).hexdigest())


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter that was read, and fits the run."""

    tensors: Mapping[str, Tensor]
    """A and B under PEFT's names, on the host."""
    sha256: str
    """Of the file with the tensors."""


def read_peft(
    directory: Path, bridge: ModelBridge, spec: AdapterSpec, base_sha256: str
) -> PeftAdapter:
    """Read an adapter for a run.

    Args:
        directory: has both files.
        bridge: of the run's base.
        spec: of the run.
        base_sha256: fingerprint of the run's base.

    Raises:
        UserError: it is damaged, computes something that is not built, or has another rank, alpha,
            targets or base than the run.
    """
    _check_settings(directory / ADAPTER_CONFIG, spec)
    path = directory / ADAPTER_MODEL
    if not path.is_file():
        raise UserError(
            f"lora.restore_from_path={directory}: it has no {ADAPTER_MODEL}; save the adapter with "
            "save_pretrained (safetensors)"
        )
    wanted: dict[str, tuple[int, ...]] = {
        one.peft_name(matrix): one.shape(matrix, spec.rank)
        for one in adapted_matrices(bridge, spec)
        for matrix in (A, B)
    }
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}); restore the adapter") from None
    made_for = header.get(BASE_SHA256)
    if made_for is not None and made_for != base_sha256:
        raise UserError(
            f"lora.restore_from_path={directory}: the adapter is of another base than "
            f"model.restore_from_path (weights {made_for[:12]}, here {base_sha256[:12]}); give the "
            "model that it was trained on"
        )
    check_shapes(str(path), wanted, {n: tuple(t.shape) for n, t in tensors.items()})
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise UserError(f"{path}: some values are not finite; give another adapter")
    return PeftAdapter(tensors, file_sha256(path))


def _check_settings(path: Path, spec: AdapterSpec) -> None:
    """Refuse what is not this run's kind of adapter.

    Raises:
        UserError: naming the field here and there.
    """
    found = read_json_object(path)
    if found.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is {found.get('peft_type')}; only LORA is built")
    for name, neutral in NEUTRAL.items():
        if name in found and found[name] not in neutral:
            raise UserError(
                f"{path}: {name} is {json.dumps(found[name])}, which is not built; give an adapter "
                "without it"
            )
    targets = found.get("target_modules")
    named = sorted(targets) if isinstance(targets, list) else targets
    for key, theirs, ours in (
        ("lora.rank", found.get("r"), spec.rank),
        ("lora.alpha", found.get("lora_alpha"), spec.alpha),
        ("lora.targets", named, sorted(spec.targets)),
    ):
        if theirs != ours:
            raise UserError(
                f"{key} is {json.dumps(ours)}, and the adapter at lora.restore_from_path has "
                f"{json.dumps(theirs)} ({path}); set {key} to that, or give another adapter"
            )
