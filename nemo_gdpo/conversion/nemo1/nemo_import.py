"""Imports the weights of a NeMo 1 or NeMo-Aligner GPT archive (`.nemo`), Llama or Gemma.

The layout, from NeMo's `nemo/collections/nlp/parts/nlp_overrides.py` (`NLPSaveRestoreConnector`)
and `nemo/core/connectors/save_restore_connector.py`: a tar file, compressed in older versions, with

    model_config.yaml              the model's configuration
    model_weights/                 megatron's distributed checkpoint, keys under `model.`
    <32 hex digits>_<name>         tokenizer files, which the configuration calls `nemo:<file>`

and, from older versions, `model_weights.ckpt` or `mp_rank_00/model_weights.ckpt`: pickles. NeMo
keeps one key for all layers (`model.decoder.layers.self_attention.linear_qkv.weight`), with the
layer as the first dimension. NeMo-Aligner writes and reads the same
(`nemo_aligner/utils/utils.py`, `CustomSaveRestoreConnector`).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_gdpo.config.model_files import is_megatron_checkpoint
from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.convert import VOCAB_DIVISIBLE_BY
from nemo_gdpo.conversion.engine import TensorSpec, check_megatron_source
from nemo_gdpo.conversion.fingerprint import hash_files
from nemo_gdpo.conversion.formats.assets import CONFIG, asset_files, tokenizer_files
from nemo_gdpo.conversion.formats.megatron_io import (
    CheckpointModel,
    write_megatron_checkpoint,
)
from nemo_gdpo.conversion.formats.tokenizer_size import check_tokenizer_fits, last_token
from nemo_gdpo.conversion.layouts import ReplicatedMapping, TensorMapping, VocabMapping
from nemo_gdpo.conversion.model_config import padded_vocab_size, read_json_object
from nemo_gdpo.conversion.nemo1.archive import extract
from nemo_gdpo.conversion.nemo1.nemo_config import NemoModel, read_nemo_config
from nemo_gdpo.conversion.nemo1.nemo_weights import NemoTensorSource, find_weights
from nemo_gdpo.conversion.own_archive import convert_unpacked_archive
from nemo_gdpo.errors import UserError
from nemo_gdpo.progress import progress_bar

CONFIG_YAML = "model_config.yaml"
_TOKENIZER_CLASSES = {"llama": "LlamaTokenizer", "gemma": "GemmaTokenizer"}
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


@contextlib.contextmanager
def _unpacked(source: Path, beside: Path) -> Iterator[Path]:
    """The archive's directory, unpacked on the disk that the result goes to."""
    if source.is_dir():
        yield source
        return
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{source.name}.", dir=beside) as scratch:
        directory = Path(scratch) / "archive"
        extract(source, directory)
        yield directory


def _sentencepiece(archive: Path, nemo: NemoModel) -> Path | None:
    """The SentencePiece model that the configuration names inside the archive, if it does."""
    named = nemo.tokenizer.get("model")
    if nemo.tokenizer.get("library") != "sentencepiece" or not isinstance(named, str):
        return None
    name = named.removeprefix("nemo:")
    path = archive / name
    if Path(name).name != name or not path.is_file():
        return None
    return path


def _special_ids(model: Path) -> dict[str, int]:
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(model))
    found = zip(_SPECIAL, (pieces.bos_id(), pieces.eos_id(), pieces.pad_id()), strict=True)
    return {name: number for name, number in found if number >= 0}


def _tokenizer_assets(
    archive: Path, nemo: NemoModel, tokenizer: Path | None, assets: Path
) -> dict[str, Any]:
    """Put the tokenizer's files into `assets`; returns its special tokens for config.json."""
    assets.mkdir()
    if tokenizer is not None:
        files = [name for name in asset_files(tokenizer) if name.name != CONFIG]
        if not tokenizer_files(tokenizer):
            raise UserError(f"--tokenizer {tokenizer}: has no tokenizer files")
        for name in files:
            (assets / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(tokenizer / name, assets / name)
        path = tokenizer / CONFIG
        values = read_json_object(path) if path.is_file() else {}
        return {name: values[name] for name in _SPECIAL if values.get(name) is not None}
    model = _sentencepiece(archive, nemo)
    if model is None:
        return {}
    if nemo.tokenizer.get("sentencepiece_legacy") or nemo.tokenizer.get(
        "additional_special_tokens"
    ):
        raise UserError(
            f"{archive / CONFIG_YAML}: the tokenizer has tokens beyond its SentencePiece model; "
            "give all of it with --tokenizer"
        )
    shutil.copyfile(model, assets / "tokenizer.model")
    values = {"tokenizer_class": _TOKENIZER_CLASSES[nemo.family]}
    (assets / "tokenizer_config.json").write_text(json.dumps(values) + "\n")
    return dict(_special_ids(model))


def _vocab_size(where: Path, nemo: NemoModel, assets: Path, chosen: int | None) -> int:
    """Rows of the embedding that are tokens. NeMo does not store it: it asks the tokenizer."""
    last = last_token(assets)
    found = chosen or nemo.override_vocab_size or (None if last is None else last[0] + 1)
    if found is None:
        kind = nemo.tokenizer.get("type") or nemo.tokenizer.get("library")
        raise UserError(
            f"{where}: has no tokenizer inside (it names {kind!r}), so that padding rows of the "
            "embedding cannot be told from tokens; give the tokenizer with --tokenizer "
            "HF_DIRECTORY, or the number of tokens with --vocab-size"
        )
    return found


@dataclass(frozen=True)
class _Reader:
    """Tensors of the result, from those of the archive."""

    bridge: ModelBridge
    source: NemoTensorSource
    norm_offset: float
    padded: int
    dtype: torch.dtype | None

    def spec(self, mapping: TensorMapping) -> TensorSpec:
        """Spec of what `tensor` gives."""
        shape = mapping.megatron_shape(self.bridge.config, self.padded)
        return TensorSpec(mapping.name, shape, self.dtype or self.source.dtype(mapping.name))

    def tensor(self, mapping: TensorMapping) -> Tensor:
        """One tensor; the archive's padding rows are replaced by zeros."""
        config = self.bridge.config
        found = self.source.tensor(mapping.name)
        if isinstance(mapping, VocabMapping):
            found = mapping.merge(mapping.split(found, config), config, self.padded)
        if isinstance(mapping, ReplicatedMapping) and self.norm_offset:
            return self._shifted(found, mapping.name)
        return found.to(self.dtype or found.dtype)

    def _shifted(self, norm: Tensor, name: str) -> Tensor:
        """Norm weights in Hugging Face's convention.

        Raises:
            UserError: the type cannot hold them: 0.3 has digits that 0.3 - 1 has no room for.
        """
        target = self.dtype or norm.dtype
        exact = norm.double() + self.norm_offset
        shifted = exact.to(target)
        if target is not torch.float32 and not torch.equal(shifted.double(), exact):
            raise UserError(
                f"{self.source.where}: {name} is stored with 1 added, and without it does not fit "
                f"{target} exactly; convert with --dtype fp32"
            )
        return shifted


def _write_config(assets: Path, values: dict[str, Any]) -> None:
    (assets / CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def convert_nemo_to_megatron(
    source: Path,
    destination: Path,
    *,
    tokenizer: Path | None = None,
    vocab_size: int | None = None,
    ignored_fields: frozenset[str] = frozenset(),
    vocab_divisible_by: int = VOCAB_DIVISIBLE_BY,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> CheckpointModel:
    """Convert a `.nemo` archive to a Megatron checkpoint of this program.

    The archive is one of NeMo 1 or NeMo-Aligner, or of this program.

    Args:
        source: a `.nemo` file, or the directory that it unpacks to.
        destination: absent, empty, or an earlier conversion.
        tokenizer: Hugging Face directory with the tokenizer, where NeMo's archive has none.
        vocab_size: tokens without padding; None asks the configuration, then the tokenizer.
        ignored_fields: unknown fields of NeMo's configuration that change nothing.
        vocab_divisible_by: as in `convert_hf_to_megatron`.
        dtype: cast the weights; None keeps them as they are.
        progress: show bars.

    Raises:
        UserError: the archive is refused or not convertible exactly, or the destination cannot be
            written.
    """
    if is_megatron_checkpoint(source):
        raise UserError(f"{source} is a Megatron checkpoint already; use megatron-to-hf")
    destination = destination.absolute()
    with _unpacked(source, destination.parent) as archive:
        if is_megatron_checkpoint(archive):
            if tokenizer is not None or vocab_size is not None or ignored_fields:
                raise UserError(
                    f"{source} was written by this program and says all of it itself; leave out "
                    "--tokenizer, --vocab-size and --ignore-field"
                )
            return convert_unpacked_archive(
                archive, destination, vocab_divisible_by=vocab_divisible_by, dtype=dtype,
                progress=progress,
            )  # fmt: skip
        nemo = read_nemo_config(archive / CONFIG_YAML, ignored_fields)
        found = find_weights(archive, source, nemo.family)
        weights = NemoTensorSource(found, nemo.hf_config, nemo.family)
        with tempfile.TemporaryDirectory() as scratch:
            assets = Path(scratch) / "assets"
            special = _tokenizer_assets(archive, nemo, tokenizer, assets)
            count = _vocab_size(source, nemo, assets, vocab_size)
            stored = str(dtype or weights.common_dtype()).removeprefix("torch.")
            _write_config(
                assets, {**nemo.hf_config, **special, "vocab_size": count, "torch_dtype": stored}
            )
            bridge = ModelBridge.from_hf(assets)
            check_megatron_source(bridge, weights)
            check_tokenizer_fits(assets, bridge)
            padded = padded_vocab_size(count, vocab_divisible_by, 1)
            files = [archive / CONFIG_YAML, *weights.files()]
            model = CheckpointModel(bridge.config, padded, hash_files(files, progress=progress))
            reader = _Reader(bridge, weights, nemo.norm_offset, padded, dtype)
            _write(reader, model, assets, destination, source.absolute().stem, progress)
    return model


def _write(
    reader: _Reader,
    model: CheckpointModel,
    assets: Path,
    destination: Path,
    name: str,
    progress: bool,
) -> None:
    bridge = reader.bridge
    specs = [reader.spec(mapping) for mapping in bridge.mappings]
    with progress_bar(total=len(specs), unit="tensor", label="import", enabled=progress) as bar:

        def fetch(name: str) -> Tensor:
            bar.update()
            return reader.tensor(bridge.by_name[name])

        write_megatron_checkpoint(
            destination, model, bridge, assets, specs, fetch, card={"base_model": name}
        )
