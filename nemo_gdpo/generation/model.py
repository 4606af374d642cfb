"""The model to sample from: what its directory has to hold, and what identifies it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_gdpo.config.generation import GenerateConfig
from nemo_gdpo.config.lora import ADAPTER_CONFIG
from nemo_gdpo.config.model_files import (
    KEY,
    hugging_face_problems,
    is_megatron_checkpoint,
    read_model_config,
)
from nemo_gdpo.config.problem import Problem
from nemo_gdpo.config.stop_tokens import stop_token_ids
from nemo_gdpo.data import PairEncoder
from nemo_gdpo.data.templates import read_template
from nemo_gdpo.errors import UserError
from nemo_gdpo.generation.engine_arguments import MAX_RANK
from nemo_gdpo.generation.manifest import sampled_date
from nemo_gdpo.importing import uncollected
from nemo_gdpo.io.files import file_sha256

ENCODING_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
"""Files that decide the tokens of a prompt, where they exist."""
ADAPTER = "model.adapter_path"
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class ModelInfo:
    """Hashes and limits of the model, as rows and manifest record them."""

    path: Path
    model_hash: str
    """SHA-256 over the weight files; `server:NAME` where only a server has the weights."""
    encoding_hash: str
    """SHA-256 over the tokenizer's files and the chat template."""
    context: int
    """Greatest length of prompt and answer together, in tokens."""
    adapter: Path | None = None
    """In PEFT's format; its hash is in `model_hash`."""
    adapter_rank: int = 0


def model_problems(config: GenerateConfig) -> list[Problem]:
    """Everything wrong with the model's files, without opening the weights."""
    if config.model.restore_from_path is None:
        remedy = f"set {KEY}=DIRECTORY, or export NEMO_GDPO_MODEL"
        return [Problem(KEY, "is not set", remedy)]
    path = Path(config.model.restore_from_path)
    if not path.is_dir():
        reason = f"{path} is a file" if path.exists() else f"{path} does not exist"
        return [Problem(KEY, reason, "give the directory of a Hugging Face model")]
    if is_megatron_checkpoint(path):
        return [
            Problem(
                KEY,
                f"{path} is a Megatron checkpoint, which vLLM cannot read",
                f"export it with `nemo-gdpo convert megatron-to-hf {path} DIRECTORY`, or give the "
                "hf/ of its training run",
            )
        ]
    adapter = _adapter_problems(config)
    if adapter:
        return adapter
    if config.generation.backend == "server":
        return []  # tokenizer and context length are enough; they are read later
    return hugging_face_problems(path)


def _adapter_problems(config: GenerateConfig) -> list[Problem]:
    path, backend = config.model.adapter_path, config.generation.backend
    if path is None:
        return []
    if backend != "vllm":
        reason = f"is set, and with generation.backend={backend} nothing would read it"
        return [Problem(ADAPTER, reason, "set backend=vllm, or give the merged model")]
    if not (Path(path) / ADAPTER_CONFIG).is_file():
        reason = f"{path} has no {ADAPTER_CONFIG}"
        return [Problem(ADAPTER, reason, "give the directory of an adapter in PEFT's format")]
    return []


def context_length(config: GenerateConfig) -> int:
    """The model's own limit, or `max_model_len`.

    Raises:
        UserError: config.json does not say, or the setting is above what it says.
    """
    asked = config.generation.max_model_len
    assert config.model.restore_from_path is not None
    found = read_model_config(config.model.restore_from_path) or {}
    inner = found.get("text_config")  # of models that read more than text
    for values in (found, inner if isinstance(inner, dict) else {}):
        own = values.get("max_position_embeddings")
        if isinstance(own, int) and own > 0:
            if asked is not None and asked > own:
                raise UserError(
                    f"generation.max_model_len={asked}: the model was made for {own} tokens "
                    "(max_position_embeddings); lower it, or set null"
                )
            return asked or own
    if asked is None:
        raise UserError(
            f"{config.model.restore_from_path}: config.json has no max_position_embeddings; set "
            "generation.max_model_len"
        )
    return asked


def engine_dtype(config: GenerateConfig) -> str:
    """vLLM's name of the type to run in.

    Raises:
        UserError: `stored`, and the weights are stored in several types, or in one that vLLM does
            not compute in.
    """
    if config.generation.dtype != "stored":
        return _DTYPES[config.generation.dtype]
    from nemo_gdpo.conversion.formats.hf_source import HuggingFaceSource

    assert config.model.restore_from_path is not None
    source = HuggingFaceSource(Path(config.model.restore_from_path))
    found = {str(source.dtype(name)).removeprefix("torch.") for name in source.shapes()}
    if len(found) != 1 or not found <= set(_DTYPES.values()):
        raise UserError(
            f"generation.dtype=stored: the weights are stored as {', '.join(sorted(found))}; name "
            "one type to run in: fp32, bf16 or fp16"
        )
    return found.pop()


def chat_template(config: GenerateConfig) -> str | None:
    """The template that replaces the tokenizer's own.

    Raises:
        UserError: the file cannot be read.
    """
    return read_template(config.data.chat_template)


def encoder(config: GenerateConfig) -> PairEncoder:
    """The encoder that training uses, with this model's tokenizer and end tokens.

    A template with a clock writes the day on which the first samples of output_dir were made.

    Raises:
        UserError: the tokenizer is missing, or needs custom code.
    """
    with uncollected():
        from transformers import AutoTokenizer

    path = Path(str(config.model.restore_from_path))
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{KEY}: {path} has no tokenizer that can be loaded ({reason}); copy the tokenizer's "
            "files of the model it was made from"
        ) from None
    made = PairEncoder(
        tokenizer,
        stop_token_ids=stop_token_ids(path),
        chat_template=chat_template(config),
        date=config.data.date or sampled_date(Path(config.output_dir)),
    )
    if config.data.date is not None and made.date is None:
        raise UserError(
            f"data.date: {config.data.date} would not be read: the chat template has no clock; set "
            "it to null"
        )
    return made


def _encoding_hash(path: Path, template: str | None) -> str:
    whole = hashlib.sha256()
    for name in ENCODING_FILES:
        if (path / name).is_file():
            own = file_sha256(path / name)
            whole.update(f"{name}\0{own}\n".encode())
    if template is not None:
        whole.update(b"chat_template\0" + hashlib.sha256(template.encode()).digest())
    return whole.hexdigest()


def _with_adapter(directory: Path, base_hash: str) -> tuple[str, int]:
    """The hash of base and adapter together, and the adapter's rank.

    Raises:
        UserError: it is damaged, no LoRA, or of another base.
    """
    from nemo_gdpo.conversion.formats.peft import look_at_peft

    found = look_at_peft(directory)
    if found.base_sha256 not in (None, base_hash):
        raise UserError(
            f"{ADAPTER}: {directory} is an adapter of another model than {KEY} (weights "
            f"{str(found.base_sha256)[:12]}, here {base_hash[:12]}); give the model that it was "
            "trained on"
        )
    if found.rank > MAX_RANK:
        raise UserError(
            f"{ADAPTER}: its rank is {found.rank}, and vLLM adds adapters up to {MAX_RANK}; merge "
            f"it with its base, and give that as {KEY}"
        )
    return hashlib.sha256(f"{base_hash}+{found.sha256}".encode()).hexdigest(), found.rank


def model_info(config: GenerateConfig) -> ModelInfo:
    """Hash the weights (with a progress bar) and the tokenizer's files.

    Raises:
        UserError: incomplete weights, or no known context length.
    """
    from nemo_gdpo.conversion.fingerprint import weights_fingerprint

    path = Path(str(config.model.restore_from_path))
    if config.generation.backend == "server" and hugging_face_problems(path):
        name = config.generation.server.model
        if name is None:
            raise UserError(
                f"{KEY}: {path} has no weights, so the server's model cannot be told by them; set "
                "generation.server.model to its name there"
            )
        model_hash = f"server:{name}"
    else:
        model_hash = weights_fingerprint(path, progress=True)
    rank, adapter = 0, config.model.adapter_path
    if adapter is not None:
        model_hash, rank = _with_adapter(Path(adapter), model_hash)
    return ModelInfo(
        path=path,
        adapter=None if adapter is None else Path(adapter),
        adapter_rank=rank,
        model_hash=model_hash,
        encoding_hash=_encoding_hash(path, chat_template(config)),
        context=context_length(config),
    )
