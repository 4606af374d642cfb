"""This project's `.nemo` archives, from a Megatron checkpoint and back; see `formats.nemo_archive`.

Neither direction builds a model: tensors stream from one file to another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_gdpo.config.composition import read_config
from nemo_gdpo.config.model_files import MODEL_CONFIG, megatron_checkpoint_root
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.config.stop_tokens import end_token_candidates
from nemo_gdpo.conversion.atomic import check_space
from nemo_gdpo.conversion.engine import TensorSpec
from nemo_gdpo.conversion.fingerprint import DIST, weights_fingerprint
from nemo_gdpo.conversion.formats.assets import ASSETS, tokenizer_files
from nemo_gdpo.conversion.formats.card import read_card, write_card
from nemo_gdpo.conversion.formats.dist_writer import write_dist_checkpoint
from nemo_gdpo.conversion.formats.megatron_io import (
    CheckpointModel,
    MegatronCheckpoint,
    open_megatron,
    write_checkpoint_assets,
    write_megatron_checkpoint,
)
from nemo_gdpo.conversion.formats.nemo_archive import CONFIG_YAML, config_yaml, pack
from nemo_gdpo.conversion.formats.tokenizer_size import check_tokenizer_fits
from nemo_gdpo.conversion.layouts import VocabMapping
from nemo_gdpo.conversion.model_config import padded_vocab_size, read_json_object
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.remedies import remedy_of, unwritable
from nemo_gdpo.io.staged import StagedDirectory, stage
from nemo_gdpo.progress import progress_bar

SUFFIX = ".nemo"
TRAINER_STATE = "trainer_state.json"
"""File that a training checkpoint has and a converted model has not."""


@dataclass(frozen=True)
class ArchivedRun:
    """What an archive says of the run that its weights come from."""

    config: RunConfig
    end_token_id: int
    note: str | None
    """What was assumed, for the user; None where the run is known."""


# -- out of a checkpoint -------------------------------------------------------------------------


def convert_megatron_to_nemo(
    source: Path,
    destination: Path,
    *,
    objective: str | None = None,
    end_token_id: int | None = None,
    force: bool = False,
    progress: bool = False,
) -> ArchivedRun:
    """Write a `.nemo` archive of a Megatron checkpoint, converted or trained under any mesh.

    The weights alone go into it. The run's configuration is that of `output_dir/config.yaml` where
    the checkpoint lies in `output_dir/checkpoints/`.

    Args:
        source: has `dist/`, `model_config.json` and `hf_assets/`.
        destination: the archive; its directory is made.
        objective: of a checkpoint whose run is not known; None is the default one.
        end_token_id: of a checkpoint whose run is not known; None asks `hf_assets`.
        force: replace an archive that is there.
        progress: show a bar.

    Raises:
        UserError: the checkpoint is incomplete, damaged or could run code, its run or its end token
            is ambiguous, or the destination cannot be written.
    """
    checkpoint = megatron_checkpoint_root(source)
    if checkpoint is None:
        raise UserError(
            f"{source} is not a Megatron checkpoint (no {MODEL_CONFIG}); give a directory that a "
            "conversion or a training run wrote"
        )
    checkpoint, destination = checkpoint.absolute(), destination.absolute()
    check_archive_place(destination, force=force)
    opened = open_megatron(checkpoint)
    assets = checkpoint / ASSETS
    if not assets.is_dir() or not tokenizer_files(assets):
        raise UserError(f"{assets}: has no tokenizer; put its files there, or convert again")
    check_tokenizer_fits(assets, opened.bridge)
    run = _run_of(checkpoint, objective, end_token_id, opened.bridge.config.vocab_size)
    weights = opened.weights
    shapes = weights.shapes()
    specs = [
        TensorSpec(mapping.name, shapes[mapping.name], weights.dtype(mapping.name))
        for mapping in opened.bridge.mappings
    ]
    with (
        _staged(destination, sum(spec.nbytes for spec in specs)) as directory,
        progress_bar(total=len(specs), unit="tensor", label="archive", enabled=progress) as bar,
    ):

        def fetch(name: str) -> Tensor:
            bar.update()
            return weights.tensor(name)

        write_checkpoint_assets(directory, _archived_model(checkpoint, opened), assets)
        card = read_card(checkpoint)
        if card:
            write_card(directory, card)
        (directory / CONFIG_YAML).write_text(config_yaml(run.config, run.end_token_id))
        write_dist_checkpoint(directory / DIST, specs, fetch, opened.bridge.extra_states)
        check_archive_place(destination, force=force)  # again: this took a while
        pack(directory, destination)
    return run


def check_archive_place(archive: Path, *, force: bool) -> None:
    """Refuse a place where an archive cannot be, or where one is already.

    Args:
        archive: where to write.
        force: a file that is there may be replaced.

    Raises:
        UserError: it is a directory, has another suffix, or is there without `force`.
    """
    if archive.suffix != SUFFIX:
        raise UserError(f"{archive}: does not end in {SUFFIX}; name the archive FILE{SUFFIX}")
    if archive.is_dir():
        raise UserError(f"{archive} is a directory; choose another name for the archive")
    if not force and (archive.exists() or archive.is_symlink()):
        raise UserError(f"{archive} exists; choose another name, or replace it with --force")


def _archived_model(checkpoint: Path, opened: MegatronCheckpoint) -> CheckpointModel:
    """What to say of the weights; trained ones are no longer those that training started from."""
    model = opened.model
    if not (checkpoint / TRAINER_STATE).is_file():
        return model
    return CheckpointModel(model.config, model.padded_vocab_size, None)


@contextlib.contextmanager
def _staged(archive: Path, expected_bytes: int) -> Iterator[Path]:
    """A directory beside the archive, gone when the block ends."""
    staged: StagedDirectory | None = None
    try:
        staged = stage(archive)
        check_space(archive.parent, expected_bytes, archive)
        yield staged.path
    except OSError as error:
        raise unwritable(
            error,
            f"{archive} could not be written ({error.strerror or error}); what was there before is "
            f"untouched: {remedy_of(error)}, then run it again",
        ) from error
    finally:
        if staged is not None:
            staged.discard()


# -- the run -------------------------------------------------------------------------------------


def _run_of(
    checkpoint: Path, objective: str | None, end_token_id: int | None, vocab_size: int
) -> ArchivedRun:
    """The run of a checkpoint: its own, or defaults, which is then said.

    Raises:
        UserError: what is known of the run and what was asked for contradict each other.
    """
    identity = _identity(checkpoint)
    file = checkpoint.parent.parent / "config.yaml"
    is_in_run = checkpoint.parent.name == "checkpoints" and file.is_file()
    known: dict[str, Any] = {"objective": identity["objective"]} if "objective" in identity else {}
    if is_in_run:
        config = read_config(file, TRAIN)
        # Parsed: a setting that is newer than the checkpoint was at its default then.
        if known and TRAIN.parse(known).objective != config.objective:
            raise UserError(
                f"{file}: its objective is not that of {checkpoint} ({known['objective']}); "
                "restore the run's own config.yaml"
            )
    elif known:
        config = TRAIN.parse(known)
    else:
        config = TRAIN.parse({} if objective is None else {"objective": {"name": objective}})
    name = config.objective.name
    if objective not in (None, name):
        raise UserError(
            f"--objective {objective}: {checkpoint} was trained with {name}; leave it out"
        )
    end = _end_token_id(checkpoint / ASSETS, end_token_id, identity.get("end_token_id"), vocab_size)
    note = None
    if not is_in_run:
        note = (
            f"{checkpoint}: its run's config.yaml is not known; the archive says objective {name}, "
            f"end token {end}, and the defaults of everything else"
        )
    return ArchivedRun(config, end, note)


def _identity(checkpoint: Path) -> dict[str, Any]:
    """What a training checkpoint says of its run; empty for a converted model."""
    path = checkpoint / TRAINER_STATE
    if not path.is_file():
        return {}
    found = read_json_object(path).get("identity", {})
    if not isinstance(found, dict):
        raise UserError(f"{path}: identity is not a JSON object; restore the checkpoint")
    return found


def _end_token_id(assets: Path, asked: int | None, recorded: int | None, vocab_size: int) -> int:
    """The token that responses end in.

    Args:
        assets: files beside the model.
        asked: of --end-token-id.
        recorded: by the run.
        vocab_size: tokens of the model.

    Raises:
        UserError: it cannot be told, is not a token, or is another one than asked for.
    """
    if recorded is not None:
        if asked not in (None, recorded):
            raise UserError(
                f"--end-token-id {asked}: the run's responses end in token {recorded}; leave it out"
            )
        return recorded
    candidates = end_token_candidates(assets) if asked is None else [asked]
    if len(candidates) != 1:
        told = f"several ({', '.join(map(str, candidates))})" if candidates else "none"
        raise UserError(
            f"{assets}: of the tokens that responses may end in its configs name {told}; say "
            "which one with --end-token-id"
        )
    if not 0 <= candidates[0] < vocab_size:
        raise UserError(
            f"{assets}: end token {candidates[0]} is not one of the model's {vocab_size} tokens; "
            "say which one it is with --end-token-id"
        )
    return candidates[0]


# -- back into a checkpoint ----------------------------------------------------------------------


def convert_unpacked_archive(
    archive: Path,
    destination: Path,
    *,
    vocab_divisible_by: int,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> CheckpointModel:
    """Write the Megatron checkpoint of an archive of this project.

    Args:
        archive: the directory that it was unpacked to.
        destination: absent, empty, or an earlier conversion.
        vocab_divisible_by: as in `convert_hf_to_megatron`.
        dtype: cast the weights; None keeps them as they are.
        progress: show bars.

    Raises:
        UserError: the archive is incomplete, damaged or could run code, or the destination cannot
            be written.
    """
    opened = open_megatron(archive)
    bridge, weights = opened.bridge, opened.weights
    config = bridge.config
    check_tokenizer_fits(archive / ASSETS, bridge)
    padded = padded_vocab_size(config.vocab_size, vocab_divisible_by, 1)
    origin = opened.model.source_sha256 or weights_fingerprint(archive, progress=progress)
    model = CheckpointModel(config, padded, origin)
    specs = [
        TensorSpec(m.name, m.megatron_shape(config, padded), dtype or weights.dtype(m.name))
        for m in bridge.mappings
    ]
    with progress_bar(total=len(specs), unit="tensor", label="import", enabled=progress) as bar:

        def fetch(name: str) -> Tensor:
            bar.update()
            mapping, found = bridge.by_name[name], weights.tensor(name)
            if isinstance(mapping, VocabMapping):
                found = mapping.merge(mapping.split(found, config), config, padded)
            return found.to(dtype or found.dtype)

        write_megatron_checkpoint(
            destination, model, bridge, archive / ASSETS, specs, fetch, card=read_card(archive)
        )
    return model
