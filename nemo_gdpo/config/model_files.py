"""The model at `model.restore_from_path`: its kind, weight files and architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nemo_gdpo.config.problem import Problem
from nemo_gdpo.errors import UserError

KEY = "model.restore_from_path"
MODEL_CONFIG = "model_config.json"
"""File of a Megatron checkpoint with its architecture."""
ADAPTER_RECORD = "adapter.json"
"""File of a training checkpoint that holds an adapter alone, with what it is and of which base."""
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_CONVERT = (
    "save model and tokenizer again, both by from_pretrained(...).save_pretrained(NEW_DIRECTORY), "
    "and give that directory"
)
_MEGATRON_NAMES = {
    "num_layers": "num_hidden_layers",
    "num_query_groups": "num_key_value_heads",
    "ffn_hidden_size": "intermediate_size",
    "kv_channels": "head_dim",
    "rotary_scaling": "rope_scaling",
}
"""Fields of a Megatron checkpoint's model_config.json -> config.json of Hugging Face."""


def is_megatron_checkpoint(path: Path) -> bool:
    """Whether a directory is a Megatron checkpoint of this program, or its `dist/`.

    It has its weights (`*.distcp`) in it or in `dist/`, or a `model_config.json`. A `.nemo` of
    NeMo 1 that was unpacked has them in `model_weights/` and is not one.
    """
    has_shards = any(path.glob("*.distcp")) or any(path.glob("dist/*.distcp"))
    return has_shards or (path / MODEL_CONFIG).is_file()


def megatron_checkpoint_root(path: Path) -> Path | None:
    """The directory with `model_config.json` of a Megatron checkpoint; None where there is none.

    Args:
        path: the checkpoint, or its `dist/`.
    """
    for candidate in (path, path.parent):
        if (candidate / MODEL_CONFIG).is_file():
            return candidate
    return None


def read_model_config(path: str | Path) -> dict[str, Any] | None:
    """The architecture under Hugging Face's names; None where no JSON file of its kind has it.

    Args:
        path: a Hugging Face directory, or a Megatron checkpoint with its `model_config.json`.

    Raises:
        UserError: the file is there but is not a JSON object.
    """
    directory = Path(path)
    if not directory.is_dir():
        return None
    root = megatron_checkpoint_root(directory) if is_megatron_checkpoint(directory) else None
    file = directory / "config.json" if root is None else root / MODEL_CONFIG
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error}); restore the file") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds no JSON object; restore the file")
    return {_MEGATRON_NAMES.get(str(name), str(name)): value for name, value in found.items()}


def model_file_problems(configured: str | None) -> list[Problem]:
    """Everything wrong with the files of the starting model, without opening the weights."""
    if configured is None:
        remedy = f"set {KEY}=DIRECTORY, or export NEMO_GDPO_MODEL"
        return [Problem(KEY, "is not set", remedy)]
    path = Path(configured)
    if path.is_file():
        if path.suffix == ".nemo":
            return []
        reason = f"{path} is a file, but not a .nemo archive"
        return [Problem(KEY, reason, "give the directory that holds the checkpoint")]
    if not path.is_dir():
        return [Problem(KEY, f"{path} does not exist", "correct the path")]
    if is_megatron_checkpoint(path):
        if megatron_checkpoint_root(path) is None:
            reason = f"{path} is a Megatron checkpoint without its {MODEL_CONFIG}"
            return [Problem(KEY, reason, "convert the model again with `nemo-gdpo convert`")]
        return _adapter_problems(path)
    return hugging_face_problems(path)


def _adapter_problems(path: Path) -> list[Problem]:
    root = megatron_checkpoint_root(path)
    if root is None or not (root / ADAPTER_RECORD).is_file():
        return []
    return [
        Problem(
            KEY,
            f"{path} holds an adapter alone, without the model that it belongs to",
            "give its base; to go on from the adapter, set lora.restore_from_path to the run's "
            f"peft, or merge both: nemo-gdpo convert megatron-to-hf {path} DIRECTORY --base BASE",
        )
    ]


def hugging_face_problems(path: Path) -> list[Problem]:
    """Problems of a Hugging Face directory's files, without opening the weights."""
    found: list[Problem] = []
    if not (path / "config.json").is_file():
        reason = f"{path} has no config.json"
        found.append(Problem(KEY, reason, "give a complete Hugging Face directory"))
    index = path / "model.safetensors.index.json"
    if index.is_file():
        return found + _index_problems(path, index)
    if any(path.glob("*.safetensors")):
        return found
    pickled = sorted(f.name for f in path.iterdir() if f.suffix in _PICKLED)
    if pickled:
        reason = (
            f"{path} has pickled weights only ({', '.join(pickled[:3])}), which can run code when "
            "they are loaded; safetensors are needed"
        )
        found.append(Problem(KEY, reason, _CONVERT))
    elif any(path.glob("*.gguf")):
        reason = f"{path} has GGUF weights only; safetensors are needed"
        found.append(Problem(KEY, reason, _CONVERT))
    else:
        reason = f"{path} has no weights (no *.safetensors)"
        found.append(Problem(KEY, reason, "download the model completely"))
    return found


def _index_problems(path: Path, index: Path) -> list[Problem]:
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [Problem(KEY, f"{index} cannot be read", "download the model again")]
    missing = sorted(name for name in shards if not (path / str(name)).is_file())
    if not missing:
        return []
    some = f"{', '.join(missing[:3])}{' and more' if len(missing) > 3 else ''}"
    reason = f"{path} lacks {len(missing)} of {len(shards)} weight files ({some})"
    return [Problem(KEY, reason, "download the model completely")]
