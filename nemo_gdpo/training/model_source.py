"""Where the run's weights come from: a Hugging Face directory, a Megatron checkpoint, a `.nemo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nemo_gdpo.conversion.assets import ASSETS
from nemo_gdpo.conversion.cache import ENVIRONMENT
from nemo_gdpo.conversion.card import read_facts
from nemo_gdpo.conversion.megatron_io import (
    CheckpointModel,
    is_megatron_checkpoint,
    read_checkpoint_model,
    write_checkpoint_assets,
)
from nemo_gdpo.conversion.model_config import MegatronModelConfig, padded_vocab_size
from nemo_gdpo.conversion.obtain import as_megatron, fingerprint_of
from nemo_gdpo.conversion.tokenizer_size import check_tokenizer_fits
from nemo_gdpo.errors import UserError
from nemo_gdpo.models.preference_model import PreferenceModel
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
    """What the user called it, or where the conversion came from, for the model card."""

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
        check_tokenizer_fits(self.assets, self.model_config)
        return tokenizer

    def load_into(self, model: PreferenceModel) -> None:
        """Load the weights into a model on the mesh. Collective."""
        load_weights(model, self.checkpoint)
        model.hf_assets = self.assets

    def write_assets(self, checkpoint: Path) -> None:
        """Put what an export needs beside a training checkpoint."""
        model = CheckpointModel(self.model_config, self.padded_vocab_size, self.fingerprint)
        write_checkpoint_assets(checkpoint, model, self.assets)


def open_source(path: str, mesh: Mesh, *, divisible_by: int) -> ModelSource:
    """Find the Megatron checkpoint that training starts from, or make it in the cache. Collective.

    Args:
        path: `model.restore_from_path`.
        mesh: this rank's place.
        divisible_by: `model.make_vocab_size_divisible_by`.

    Raises:
        UserError: on every rank, when the main rank cannot use `path`; on a rank that does not see
            what the main rank made.
    """
    answer: list[Any] = [None, None, None]
    if mesh.is_main:
        try:
            answer = [None, *_locate(Path(path).absolute())]
        except UserError as error:
            answer = [str(error), None, None]
    dist.broadcast_object_list(answer, src=0)
    if answer[0] is not None:
        raise UserError(answer[0])
    checkpoint = Path(answer[1])
    if not is_megatron_checkpoint(checkpoint):
        raise UserError(
            f"{checkpoint}: rank 0 has this converted model and rank {mesh.rank} does not see it; "
            f"set {ENVIRONMENT} to a directory that all nodes share"
        )
    config = read_checkpoint_model(checkpoint).config
    padded = padded_vocab_size(config.vocab_size, divisible_by, mesh.layout.tensor)
    name = Path(path).absolute().name
    if checkpoint == Path(path).absolute():
        name = str(read_facts(checkpoint).get("base_model") or name)
    return ModelSource(checkpoint, config, padded, answer[2], name)


def _locate(path: Path) -> tuple[str, str]:
    """(the Megatron checkpoint of `path`, its fingerprint)."""
    if not path.exists():
        raise UserError(f"model.restore_from_path={path}: there is no such file or directory")
    checkpoint = as_megatron(path)
    return str(checkpoint), fingerprint_of(checkpoint)
