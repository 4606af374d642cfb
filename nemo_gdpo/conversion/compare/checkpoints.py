"""One side of a comparison: a Hugging Face directory, a Megatron checkpoint, or a `.nemo`."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nemo_gdpo.conversion.compare.logits import MegatronLogits, compare_logits, hf_logits
from nemo_gdpo.conversion.compare.prompts import load_tokenizer, make_prompts
from nemo_gdpo.conversion.compare.report import Comparison
from nemo_gdpo.conversion.compare.verify import verify
from nemo_gdpo.conversion.families import read_hf_config
from nemo_gdpo.conversion.formats.assets import ASSETS
from nemo_gdpo.conversion.formats.megatron_io import is_megatron_checkpoint, read_checkpoint_model
from nemo_gdpo.conversion.model_config import MegatronModelConfig
from nemo_gdpo.conversion.nemo1.archive import extract
from nemo_gdpo.conversion.nemo1.nemo_import import convert_nemo_to_megatron
from nemo_gdpo.conversion.resolve import SUFFIX
from nemo_gdpo.errors import UserError

TOLERANCE = 1e-3
"""Float32 on two programs: sums in another order. Logits of models in use are about 10 to 30."""


@dataclass(frozen=True)
class Side:
    """Where a side's weights are, unpacked."""

    name: str
    """As the user gave it."""
    directory: Path
    config: MegatronModelConfig
    is_megatron: bool

    @property
    def assets(self) -> Path:
        """Where its tokenizer is."""
        return self.directory / ASSETS if self.is_megatron else self.directory

    def logits(
        self, prompts: Sequence[Tensor], megatron_logits: MegatronLogits | None
    ) -> list[Tensor]:
        """Logits float32 [S, V] for each prompt [S].

        Raises:
            UserError: it cannot be run here.
        """
        if not self.is_megatron:
            return hf_logits(self.directory, self.config, prompts)
        if megatron_logits is None:
            raise UserError(
                f"{self.name}: to run a Megatron checkpoint use the command nemo-gdpo convert, or "
                "compare the tensors only with --tensors-only"
            )
        return megatron_logits(self.directory, prompts)


def _side(name: Path, directory: Path) -> Side:
    if is_megatron_checkpoint(directory):
        return Side(str(name), directory, read_checkpoint_model(directory).config, True)
    return Side(str(name), directory, read_hf_config(directory), False)


@contextlib.contextmanager
def open_side(path: Path) -> Iterator[Side]:
    """A side; an archive is unpacked, and NeMo's own converted, to a temporary directory (TMPDIR).

    Raises:
        UserError: there is no model at `path`.
    """
    if path.suffix != SUFFIX or path.is_dir():
        yield _side(path, path)
        return
    with tempfile.TemporaryDirectory(prefix="nemo_gdpo-") as scratch:
        directory = Path(scratch) / "archive"
        extract(path, directory)
        if not is_megatron_checkpoint(directory):
            converted = Path(scratch) / "converted"
            convert_nemo_to_megatron(directory, converted)
            directory = converted
        yield _side(path, directory)


def _tokenizer(sides: Sequence[Side], notes: list[str]) -> Any | None:
    """The first side's tokenizer, or the second's."""
    for side in sides:
        try:
            tokenizer = load_tokenizer(side.assets)
        except UserError as error:
            notes.append(str(error))
            continue
        if tokenizer is not None:
            return tokenizer
    return None


def compare(
    first: Path,
    second: Path,
    *,
    megatron_logits: MegatronLogits | None,
    tensors_only: bool = False,
    prompts_file: Path | None = None,
    tolerance: float = TOLERANCE,
    progress: bool = False,
) -> Comparison:
    """Compare two checkpoints tensor by tensor, then by what they say.

    Args:
        first: a Hugging Face directory, a Megatron checkpoint or a `.nemo`.
        second: likewise.
        megatron_logits: runs a Megatron checkpoint; None where only Hugging Face's can be run.
        tensors_only: run neither.
        prompts_file: one prompt a line; None is the built-in set.
        tolerance: largest difference of a logit that passes.
        progress: show a bar.

    Raises:
        UserError: a side is incomplete, damaged or does not fit in memory; the prompts do not fit.
    """
    with open_side(first) as one, open_side(second) as other:
        tensors = verify(one.directory, other.directory, progress=progress)
        names = (one.name, other.name)
        if tensors_only:
            return Comparison(*names, tensors, None, tolerance)
        if one.config.vocab_size != other.config.vocab_size:
            note = "the vocabularies have different sizes, so there are no logits to compare"
            return Comparison(*names, tensors, None, tolerance, (note,))
        notes: list[str] = []
        prompts = make_prompts(one.config, _tokenizer((one, other), notes), prompts_file)
        logits = compare_logits(
            one.logits(prompts.ids, megatron_logits),
            other.logits(prompts.ids, megatron_logits),
            prompts.ids,
            prompts.description,
        )
        return Comparison(*names, tensors, logits, tolerance, tuple(notes))
