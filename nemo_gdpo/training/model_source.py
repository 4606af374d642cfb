"""Where the run's weights come from: a Hugging Face directory or a Megatron checkpoint."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nemo_gdpo.conversion.assets import ASSETS
from nemo_gdpo.conversion.convert import convert_hf_to_megatron
from nemo_gdpo.conversion.fingerprint import weights_fingerprint
from nemo_gdpo.conversion.megatron_io import (
    CheckpointModel,
    is_megatron_checkpoint,
    read_checkpoint_model,
    write_checkpoint_assets,
)
from nemo_gdpo.conversion.model_config import MegatronModelConfig, padded_vocab_size
from nemo_gdpo.errors import UserError
from nemo_gdpo.models.nemo_archive import extract
from nemo_gdpo.models.preference_model import MegatronGPTPreferenceModel
from nemo_gdpo.models.weights import load_weights
from nemo_gdpo.training.mesh import Mesh


@dataclass(frozen=True)
class ModelSource:
    """A Megatron checkpoint directory with the base weights."""

    checkpoint: Path
    model_config: MegatronModelConfig
    padded_vocab_size: int
    """Rows of the embedding in the run's own checkpoints."""
    fingerprint: str
    """SHA-256 of the weights."""
    name: str
    """What the user called it, for the model card."""

    @property
    def assets(self) -> Path:
        """Configs, tokenizer and chat template of the base model."""
        return self.checkpoint / ASSETS

    def tokenizer(self) -> Any:
        """The base model's tokenizer.

        Raises:
            UserError: it has none, or more tokens than the embedding has rows.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.assets)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.assets}: the tokenizer cannot be loaded ({str(error).splitlines()[0]}); "
                "put its files beside the weights and convert again"
            ) from error
        if len(tokenizer) > self.model_config.vocab_size:
            raise UserError(
                f"{self.assets}: the tokenizer has {len(tokenizer)} tokens, the embedding only "
                f"{self.model_config.vocab_size} rows; they do not belong together"
            )
        return tokenizer

    def load_into(self, model: MegatronGPTPreferenceModel) -> None:
        """Load the weights into a model on the mesh. Collective."""
        load_weights(model, self.checkpoint)
        model.hf_assets = self.assets

    def write_assets(self, checkpoint: Path) -> None:
        """Put what an export needs beside a training checkpoint."""
        model = CheckpointModel(self.model_config, self.padded_vocab_size, self.fingerprint)
        write_checkpoint_assets(checkpoint, model, self.assets)


def _locate(path: Path, converted: Path) -> Path:
    """The Megatron checkpoint of `path`, converting a Hugging Face directory first if need be."""
    if not path.exists():
        raise UserError(f"model.restore_from_path={path}: there is no such file or directory")
    if path.suffix == ".nemo":
        # Unpacked anew at every start: the archive may have changed under its name.
        shutil.rmtree(converted, ignore_errors=True)
        extract(path, converted)
        return converted
    if is_megatron_checkpoint(path):
        return path
    if not (path / "config.json").is_file():
        raise UserError(
            f"model.restore_from_path={path}: is neither a Hugging Face directory (no config.json) "
            "nor a Megatron checkpoint (no model_config.json with dist/)"
        )
    if is_megatron_checkpoint(converted):
        # An earlier start of this run converted it already, if the source is still the same.
        if read_checkpoint_model(converted).source_sha256 == weights_fingerprint(path):
            print(f"converted model: reused {converted}", flush=True)
            return converted
        shutil.rmtree(converted)
    convert_hf_to_megatron(path, converted, progress=True)
    return converted


def _fingerprint(checkpoint: Path) -> str:
    """Of the weights: what a conversion started from, or, of a training checkpoint, its own."""
    source = read_checkpoint_model(checkpoint).source_sha256
    trained = (checkpoint / "trainer_state.json").is_file()
    return weights_fingerprint(checkpoint) if trained or source is None else source


def open_source(path: str, output_dir: Path, mesh: Mesh, *, divisible_by: int) -> ModelSource:
    """Find or make the Megatron checkpoint that training starts from. Collective.

    Args:
        path: `model.restore_from_path`.
        output_dir: of the run; a Hugging Face directory is converted to its `base-megatron`.
        mesh: this rank's place.
        divisible_by: `model.make_vocab_size_divisible_by`.

    Raises:
        UserError: on every rank, when the main rank cannot use `path`.
    """
    answer: list[Any] = [None, None, None]
    if mesh.is_main:
        try:
            checkpoint = _locate(Path(path).absolute(), output_dir / "base-megatron")
            answer = [None, str(checkpoint), _fingerprint(checkpoint)]
        except UserError as error:
            answer = [str(error), None, None]
    dist.broadcast_object_list(answer, src=0)
    if answer[0] is not None:
        raise UserError(answer[0])
    checkpoint = Path(answer[1])
    config = read_checkpoint_model(checkpoint).config
    padded = padded_vocab_size(config.vocab_size, divisible_by, mesh.layout.tensor)
    return ModelSource(checkpoint, config, padded, answer[2], Path(path).name)
