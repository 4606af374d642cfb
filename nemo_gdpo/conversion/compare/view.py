"""One checkpoint of a comparison: a Hugging Face directory, a Megatron checkpoint, or a `.nemo`."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from nemo_gdpo.config.model_files import is_megatron_checkpoint
from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.compare.logits import MegatronLogits, hf_logits
from nemo_gdpo.conversion.formats.assets import ASSETS
from nemo_gdpo.conversion.formats.hf_source import open_hf
from nemo_gdpo.conversion.formats.megatron_io import open_megatron, read_checkpoint_model
from nemo_gdpo.conversion.layouts import TensorMapping
from nemo_gdpo.conversion.nemo1.archive import extract
from nemo_gdpo.conversion.nemo1.nemo_import import convert_nemo_to_megatron
from nemo_gdpo.conversion.own_archive import SUFFIX
from nemo_gdpo.errors import UserError

Reader = Callable[[TensorMapping], list[Tensor]]
"""A mapping -> its Hugging Face tensors."""


@dataclass(frozen=True)
class CheckpointView:
    """A checkpoint on disk, unpacked."""

    name: str
    """Path as the user gave it."""
    directory: Path
    bridge: ModelBridge
    is_megatron: bool

    @property
    def assets(self) -> Path:
        """Directory of its tokenizer."""
        return self.directory / ASSETS if self.is_megatron else self.directory

    def reader(self) -> Reader:
        """Open the weights; tensors are read one by one, under Hugging Face's names.

        Raises:
            UserError: they are incomplete or damaged.
        """
        config = self.bridge.config
        if self.is_megatron:
            weights = open_megatron(self.directory).weights
            return lambda mapping: mapping.split(weights.tensor(mapping.name), config)
        source = open_hf(self.directory, self.bridge)
        return lambda mapping: [source.tensor(name) for name in mapping.hf_names]

    def logits(
        self, prompts: Sequence[Tensor], megatron_logits: MegatronLogits | None
    ) -> list[Tensor]:
        """Logits float32 [S, V] for each prompt [S].

        Raises:
            UserError: it cannot be run here.
        """
        if not self.is_megatron:
            return hf_logits(self.directory, self.bridge, prompts)
        if megatron_logits is None:
            raise UserError(
                f"{self.name}: to run a Megatron checkpoint use the command nemo-gdpo convert, or "
                "compare the tensors only with --tensors-only"
            )
        return megatron_logits(self.directory, prompts)


def view_directory(directory: Path, name: str | None = None) -> CheckpointView:
    """The view of a directory.

    Args:
        directory: a Hugging Face directory or a Megatron checkpoint.
        name: what the user called it; None is the directory.

    Raises:
        UserError: it holds no model.
    """
    shown = str(directory) if name is None else name
    if is_megatron_checkpoint(directory):
        bridge = ModelBridge(read_checkpoint_model(directory).config)
        return CheckpointView(shown, directory, bridge, True)
    return CheckpointView(shown, directory, ModelBridge.from_hf(directory), False)


@contextlib.contextmanager
def open_checkpoint(path: Path) -> Iterator[CheckpointView]:
    """View a checkpoint; a `.nemo` is unpacked, and NeMo's own converted, to a temporary directory.

    Temporary directories are made under TMPDIR.

    Raises:
        UserError: `path` holds no model.
    """
    if path.suffix != SUFFIX or path.is_dir():
        yield view_directory(path)
        return
    with tempfile.TemporaryDirectory(prefix="nemo_gdpo-") as scratch:
        directory = Path(scratch) / "archive"
        extract(path, directory)
        if not is_megatron_checkpoint(directory):
            converted = Path(scratch) / "converted"
            convert_nemo_to_megatron(directory, converted)
            directory = converted
        yield view_directory(directory, str(path))
