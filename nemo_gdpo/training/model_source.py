"""Where the run's weights come from: a Hugging Face directory, a Megatron checkpoint, a `.nemo`."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.core import parallel_state

from nemo_gdpo.config.model_files import is_megatron_checkpoint
from nemo_gdpo.control import from_main_rank, on_every_rank
from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.cache import ENVIRONMENT
from nemo_gdpo.conversion.formats.assets import ASSETS, copy_assets
from nemo_gdpo.conversion.formats.base_name import base_name
from nemo_gdpo.conversion.formats.card import read_card
from nemo_gdpo.conversion.formats.hf_source import HuggingFaceSource
from nemo_gdpo.conversion.formats.megatron_io import (
    CheckpointModel,
    read_checkpoint_model,
    write_checkpoint_assets,
)
from nemo_gdpo.conversion.formats.tokenizer_size import check_tokenizer_fits
from nemo_gdpo.conversion.live import load_hf_into_model, open_loadable
from nemo_gdpo.conversion.model_config import MegatronModelConfig, padded_vocab_size
from nemo_gdpo.conversion.resolve import fingerprint_of, is_hf_directory, resolve_checkpoint
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.late import sizes_of, wait_for_files
from nemo_gdpo.io.remedies import unwritable
from nemo_gdpo.models.preference_model import PreferenceModel
from nemo_gdpo.models.weights import load_weights
from nemo_gdpo.training.mesh import Mesh

LOCATING, OPENING, READING = "finding the model", "opening the model", "reading the weights"
"""Stages, as errors name them."""


@contextlib.contextmanager
def _as_input() -> Iterator[None]:
    """A file of the model that cannot be read is a mistake in the input."""
    try:
        yield
    except OSError as error:
        raise unwritable(error, str(error)) from error


@dataclass(frozen=True)
class ModelSource:
    """A directory with the base weights, as this rank sees it."""

    directory: Path
    """A Megatron checkpoint, or a Hugging Face directory."""
    shards: HuggingFaceSource | None
    """Opened weights of a Hugging Face directory; None for a Megatron checkpoint."""
    bridge: ModelBridge
    padded_vocab_size: int
    """Rows of the embedding in the run's own checkpoints."""
    fingerprint: str
    """SHA-256 of the weights; the same for a Hugging Face directory and its conversion."""
    name: str
    """What the user called it, or where the conversion came from, for the model card."""

    @property
    def model_config(self) -> MegatronModelConfig:
        """The architecture."""
        return self.bridge.config

    @property
    def assets(self) -> Path:
        """Configs, tokenizer and chat template of the base model."""
        return self.directory / ASSETS if self.shards is None else self.directory

    def tokenizer(self) -> Any:
        """The base model's tokenizer, from the files that checkpoints and exports carry.

        Raises:
            UserError: it has none, or more tokens than the embedding has rows.
        """
        from transformers import AutoTokenizer

        try:
            with tempfile.TemporaryDirectory() as scratch:
                files = self.assets
                if self.shards is not None:
                    # A directory may hold further files, which an export would come without.
                    files = Path(scratch)
                    copy_assets(self.assets, files)
                tokenizer = AutoTokenizer.from_pretrained(files)
        except (OSError, ValueError) as error:
            remedy = "" if self.shards is not None else " and convert again"
            raise UserError(
                f"{self.assets}: the tokenizer cannot be loaded ({str(error).splitlines()[0]}); "
                f"put its files beside the weights{remedy}"
            ) from error
        check_tokenizer_fits(self.assets, self.bridge)
        return tokenizer

    def load_into(self, model: PreferenceModel) -> float:
        """Load the weights into a model on the mesh; returns the seconds it took. Collective.

        Raises:
            UserError: on every rank, when any of them cannot read its part.
        """
        begun = time.monotonic()
        if self.shards is None:
            load_weights(model, self.directory)
        else:
            shards = self.shards
            on_every_rank(READING, lambda: self._load_slices(model, shards))
        model.hf_assets = self.assets
        return time.monotonic() - begun

    @_as_input()
    def _load_slices(self, model: PreferenceModel, shards: HuggingFaceSource) -> None:
        """Read what this rank holds, and nothing else, out of Hugging Face's shards."""
        for chunk in model.gpt_chunks:
            layers = list(chunk.decoder.layers)
            load_hf_into_model(
                chunk, shards, self.bridge,
                layer_offset=layers[0].layer_number - 1 if layers else 0,
                tp_rank=parallel_state.get_tensor_model_parallel_rank(),
                tp_size=parallel_state.get_tensor_model_parallel_world_size(),
            )  # fmt: skip

    def write_assets(self, checkpoint: Path, *, chat_template: str | None = None) -> None:
        """Put what an export needs beside a training checkpoint.

        Args:
            checkpoint: its directory.
            chat_template: what training used in the place of the model's own.
        """
        model = CheckpointModel(self.model_config, self.padded_vocab_size, self.fingerprint)
        write_checkpoint_assets(checkpoint, model, self.assets, chat_template=chat_template)


@dataclass(frozen=True)
class _Located:
    """What the main rank found, for the others."""

    directory: Path
    is_hf: bool
    fingerprint: str
    name: str
    contents: dict[str, Any]
    """Result of `_contents` there."""
    made: dict[str, int]
    """Files that it may just have made, with their sizes."""


def open_source(
    path: str,
    mesh: Mesh,
    *,
    divisible_by: int,
    cache_converted: bool = False,
    key: str = "model.restore_from_path",
) -> ModelSource:
    """Open what training starts from. Collective.

    Args:
        path: `model.restore_from_path`.
        mesh: this rank's place.
        divisible_by: `model.make_vocab_size_divisible_by`.
        cache_converted: `model.cache_converted`: convert a Hugging Face directory first, in the
            cache, instead of reading it directly.
        key: that names the path.

    Raises:
        UserError: on every rank, when the main rank cannot use `path`, or any rank does not see
            what the main rank sees.
    """
    configured = Path(path).absolute()
    located = from_main_rank(LOCATING, lambda: _locate(configured, cache_converted, key))
    bridge, shards = on_every_rank(OPENING, lambda: _open_here(located))
    padded = padded_vocab_size(bridge.config.vocab_size, divisible_by, mesh.layout.tensor)
    return ModelSource(located.directory, shards, bridge, padded, located.fingerprint, located.name)


@_as_input()
def _locate(path: Path, cache_converted: bool, key: str) -> _Located:
    """Find the weights, and check them as a conversion does."""
    if not path.exists():
        raise UserError(f"{key}={path}: there is no such file or directory")
    if is_hf_directory(path) and not cache_converted:
        bridge, shards = open_loadable(path)
        contents = _contents(bridge, shards)
        return _Located(path, True, fingerprint_of(path), base_name(path), contents, {})
    checkpoint = resolve_checkpoint(path)
    contents = _contents(ModelBridge(read_checkpoint_model(checkpoint).config), None)
    is_made = checkpoint not in (path, path.parent)
    name = base_name(path)
    if not is_made:
        name = str(read_card(checkpoint).get("base_model") or name)
    made = sizes_of(checkpoint) if is_made else {}
    return _Located(checkpoint, False, fingerprint_of(checkpoint), name, contents, made)


def _contents(bridge: ModelBridge, shards: HuggingFaceSource | None) -> dict[str, Any]:
    """What ranks have to see alike: the architecture, and files and tensors of the shards."""
    found: dict[str, Any] = {"config": bridge.config.to_dict()}
    if shards is not None:
        found["files"] = shards.files()
        found["tensors"] = {n: (s, str(shards.dtype(n))) for n, s in shards.shapes().items()}
    return found


@_as_input()
def _open_here(located: _Located) -> tuple[ModelBridge, HuggingFaceSource | None]:
    """Open what the main rank found, on this rank.

    Raises:
        UserError: this rank does not see it, or sees something else.
    """
    path = located.directory
    shards: HuggingFaceSource | None = None
    if located.is_hf:
        if not is_hf_directory(path):
            raise UserError(
                f"{path}: rank 0 sees this model and this rank does not; put it where all nodes "
                "see it"
            )
        bridge, shards = ModelBridge.from_hf(path), HuggingFaceSource(path)
    else:
        if located.made:
            remedy = f"set {ENVIRONMENT} to a directory that all nodes share"
            wait_for_files(path, located.made, remedy)
        if not is_megatron_checkpoint(path):
            raise UserError(
                f"{path}: rank 0 sees this converted model and this rank does not; set "
                f"{ENVIRONMENT} to a directory that all nodes share"
            )
        bridge = ModelBridge(read_checkpoint_model(path).config)
    if _contents(bridge, shards) != located.contents:
        raise UserError(
            f"{path}: this rank sees other files than rank 0; give all nodes the same model"
        )
    return bridge, shards
