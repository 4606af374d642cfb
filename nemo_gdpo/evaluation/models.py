"""Opening the models that measure: local directories, safetensors, float32, no remote code."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from nemo_gdpo.config.model_files import hugging_face_problems
from nemo_gdpo.config.problem import Problem
from nemo_gdpo.conversion.fingerprint import weights_fingerprint
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import file_sha256


def directory_problems(key: str, configured: str) -> list[Problem]:
    """Problems of a Hugging Face directory, without opening its weights."""
    path = Path(configured)
    if not path.is_dir():
        reason = f"{path} is a file" if path.exists() else f"{path} does not exist"
        return [Problem(key, reason, "give the directory of a Hugging Face model")]
    return [Problem(key, p.reason, p.remedy) for p in hugging_face_problems(path)]


def resolve_device(name: str) -> torch.device:
    """`auto`, or a device's name.

    Raises:
        UserError: this machine lacks the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(
            f"evaluation.device: {str(error).splitlines()[0]}; set auto, cpu or cuda"
        ) from None
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type not in ("cpu", "cuda") or (
        device.type == "cuda" and (device.index or 0) >= here
    ):
        raise UserError(
            f"evaluation.device: this machine has no {name} ({here} GPUs); set auto or cpu"
        )
    return device


@contextmanager
def loading(what: str, path: Path) -> Iterator[None]:
    """Turn what transformers says about a directory it cannot read into one line.

    Its bars and its tables of parameters are silenced meanwhile; what the tables would warn of is
    checked by us.
    """
    from transformers.utils import logging as untyped

    transformers_logging: Any = untyped
    logger = logging.getLogger("transformers")
    level = logger.level
    bars = transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{what}: {path} cannot be loaded ({type(error).__name__}: {reason}); give a complete "
            "directory of the right kind"
        ) from None
    finally:
        logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()


def refuse_new_weights(what: str, path: Path, info: Mapping[str, Any]) -> None:
    """Refuse a model of which some weights are not in its files: they would be random.

    Args:
        what: the setting.
        path: its directory.
        info: `from_pretrained(..., output_loading_info=True)`'s second value.

    Raises:
        UserError: naming some of the weights.
    """
    missing = sorted({*info["missing_keys"], *(str(k[0]) for k in info["mismatched_keys"])})
    if missing:
        raise UserError(
            f"{what}: {path} lacks weights of the model ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}), which would be random numbers; give a "
            "directory that was trained for this"
        )


def load_strictly(
    what: str,
    directory: Path,
    architecture: Any,
    device: torch.device,
    *,
    dtype: torch.dtype | str = torch.float32,
    unused: Collection[str] = (),
    **options: Any,
) -> Any:
    """A model in evaluation mode with all of its weights, from safetensors alone.

    Args:
        what: the setting, for messages.
        directory: a Hugging Face directory.
        architecture: a class of transformers with `from_pretrained`, such as `AutoModel`.
        device: to run on.
        dtype: of the weights; `auto` keeps the one they are stored in.
        unused: weights that may be missing, since the caller does not use them.
        options: further arguments of `from_pretrained`.

    Raises:
        UserError: it cannot be loaded, or lacks weights.
    """
    with loading(what, directory):
        model, info = architecture.from_pretrained(
            directory, use_safetensors=True, dtype=dtype, output_loading_info=True, **options
        )
    needed = {**info, "missing_keys": set(info["missing_keys"]) - set(unused)}
    refuse_new_weights(what, directory, needed)
    return model.eval().to(device)


def greatest_length(model: Any) -> int | None:
    """Tokens that a model of transformers reads at once; None where nothing limits it.

    A table of positions may hold rows that no token gets: RoBERTa's and MPNet's begin after the
    padding token, OPT's after two.
    """
    config = model.config.get_text_config()
    fields = config.to_dict()
    if fields.get("relative_attention"):  # DeBERTa
        return None
    limits = [fields.get("max_position_embeddings"), fields.get("n_positions")]
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in _POSITION_TABLES and isinstance(module, torch.nn.Embedding):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - reserved)
    known = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    return min(known) if known else None


def class_index(what: str, path: Path, labels: Mapping[int, str], wanted: str | int) -> int:
    """The number of a classifier's class.

    Args:
        what: the setting, for messages.
        path: the classifier's directory.
        labels: its id2label.
        wanted: a name there (upper and lower case are alike where no two names differ in that
            alone), or a number.

    Raises:
        UserError: it has no such class.
    """
    for same in (str, lambda name: str(name).lower()):
        fitting = [int(i) for i, name in labels.items() if same(name) == same(wanted)]
        if len(fitting) == 1 and isinstance(wanted, str):
            return fitting[0]
    if isinstance(wanted, int) and wanted in labels:
        return wanted
    names = ", ".join(f"{index} {name}" for index, name in sorted(labels.items()))
    raise UserError(f"{what}: {path} has no label {wanted}; its labels are {names}")


def load_tokenizer(what: str, directory: Path) -> Any:
    """The tokenizer of a directory.

    Raises:
        UserError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    with loading(what, directory):
        return AutoTokenizer.from_pretrained(directory)


_POSITION_TABLES = ("position_embeddings", "wpe", "embed_positions")
_DESCRIBING = (".json", ".jinja", ".model", ".txt")


def directory_fingerprint(path: Path) -> str:
    """SHA-256 over a model's weights, its configuration and its tokenizer."""
    whole = hashlib.sha256(weights_fingerprint(path, progress=True).encode())
    for file in sorted(path.iterdir()):
        if file.suffix in _DESCRIBING and file.is_file():
            whole.update(f"{file.name}\0{file_sha256(file)}".encode())
    return whole.hexdigest()
