"""`.nemo` archives: NeMo's container, with the weights in megatron's distributed format.

An archive is written from any mesh and read into any other; what is in it, see
`nemo_gdpo.conversion.formats.nemo_archive`.
"""

from __future__ import annotations

import errno
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.core import parallel_state
from nemo.core.classes.common import ALLOWED_TARGET_PREFIXES
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from omegaconf import DictConfig, OmegaConf

from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.control import from_main_rank, on_every_rank
from nemo_gdpo.conversion.formats.card import write_card
from nemo_gdpo.conversion.formats.megatron_io import (
    CheckpointModel,
    read_checkpoint_model,
    write_checkpoint_assets,
)
from nemo_gdpo.conversion.formats.nemo_archive import CONFIG_YAML, pack
from nemo_gdpo.conversion.model_config import padded_vocab_size
from nemo_gdpo.conversion.nemo1.archive import extract
from nemo_gdpo.errors import RunError, UserError
from nemo_gdpo.io.late import wait_for_files
from nemo_gdpo.io.staged import StagedDirectory, stage
from nemo_gdpo.models.builder import ParallelLayout
from nemo_gdpo.models.preference_model import PreferenceModel
from nemo_gdpo.models.weights import DIST, load_weights, save_weights
from nemo_gdpo.objectives import build_objective

if TYPE_CHECKING:
    from nemo_gdpo.nemo.model import MegatronGPTPreferenceModel

OUR_TARGETS = "nemo_gdpo."


class ArchiveError(RunError):
    """An archive could not be written; what was there before is untouched."""


def allow_our_targets() -> None:
    """NeMo 3 restores classes of an allow-list only; ours are put on it here and nowhere else."""
    if OUR_TARGETS not in ALLOWED_TARGET_PREFIXES:
        ALLOWED_TARGET_PREFIXES.append(OUR_TARGETS)


class PreferenceSaveRestoreConnector(SaveRestoreConnector):  # type: ignore[misc]
    """Saves from and restores into a model on a mesh."""

    def save_to(self, model: MegatronGPTPreferenceModel, save_path: str) -> None:
        """Write an archive. Collective; the main rank packs it.

        Raises:
            UserError: the model has no tokenizer files to put into it.
            ArchiveError: on every rank, when any rank could not write.
        """
        if model.core.hf_assets is None:
            raise UserError(
                "the model was not loaded from a checkpoint with hf_assets; load it first"
            )
        target = Path(save_path).absolute()
        wrap = partial(_write_error, target)
        staged: StagedDirectory | None = None

        def start() -> Path:
            nonlocal staged
            staged = _stage(target)
            return staged.path

        try:
            directory = from_main_rank("starting the archive", start, wrap=wrap)
            on_every_rank(
                "starting the archive",
                lambda: wait_for_files(directory / DIST, {}, "save to a shared directory"),
                wrap=wrap,
            )
            save_weights(model.core, directory, wrap)
            from_main_rank(
                "packing the archive", lambda: _pack(model, directory, target), wrap=wrap
            )
        finally:
            if staged is not None:
                staged.discard()

    def restore_from(
        self,
        calling_cls: type[MegatronGPTPreferenceModel],
        restore_path: str,
        override_config_path: DictConfig | str | None = None,
        map_location: Any = None,
        strict: bool = True,
        return_config: bool = False,
        trainer: Any = None,
        validate_access_integrity: bool = True,
    ) -> MegatronGPTPreferenceModel | DictConfig:
        """Build the model of an archive on the present mesh. Collective.

        Args:
            calling_cls: the class that is restored; must train the archive's objective.
            restore_path: the archive.
            override_config_path: a run configuration instead of the archive's.
            map_location: not used: weights go where the mesh is.
            strict: must be True.
            return_config: return the run configuration only.
            trainer: for NeMo's loggers.
            validate_access_integrity: not used: megatron always checks.

        Raises:
            UserError: the archive is damaged or refused.
            RuntimeError: no mesh has been built yet (`nemo_gdpo.training.mesh`).
        """
        del map_location, validate_access_integrity
        if not strict:
            raise UserError(
                "strict=False would leave weights at random values; it is not supported"
            )
        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(scratch)
            cfg = on_every_rank(
                "opening the archive",
                lambda: _open(Path(restore_path), directory, override_config_path),
            )
            if return_config:
                return cfg
            if not parallel_state.model_parallel_is_initialized():
                raise RuntimeError("build a mesh first: nemo_gdpo.training.mesh.build_mesh")
            model = on_every_rank(
                "building the model", lambda: _build(calling_cls, cfg, directory, trainer)
            )
            load_weights(model.core, directory)
        return model


def _write_error(target: Path, told: str) -> ArchiveError:
    return ArchiveError(
        f"{target} could not be written ({told}); what was there before is untouched: free space "
        "or fix the permissions, then start again"
    )


def _open(archive: Path, directory: Path, override: DictConfig | str | None) -> DictConfig:
    """Unpack an archive; returns the run's configuration."""
    extract(archive, directory)
    return _run_config(directory, archive, override)


def _stage(target: Path) -> StagedDirectory:
    """A directory beside the archive for all ranks to write to."""
    staged = stage(target)
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a directory", str(target))
        (staged.path / DIST).mkdir()
    except OSError:
        staged.discard()
        raise
    return staged


def _pack(model: MegatronGPTPreferenceModel, directory: Path, target: Path) -> None:
    """Put the other files beside the weights, and all of them into the archive."""
    core = model.core
    config = core.model_config
    padded = padded_vocab_size(
        config.vocab_size, core.layout.vocab_divisible_by, core.layout.tensor
    )
    assert core.hf_assets is not None
    write_checkpoint_assets(
        directory,
        CheckpointModel(config, padded, None),
        core.hf_assets,
        chat_template=_trained_template(core.config.data.chat_template),
    )
    if model.model_card:
        write_card(directory, model.model_card)
    (directory / CONFIG_YAML).write_text(OmegaConf.to_yaml(model.cfg, resolve=True))
    pack(directory, target)


def _trained_template(given: str | None) -> str | None:
    """The template of `data.chat_template`; None where the model's files have it already."""
    # An archive of another machine carries the template, and the path means nothing here.
    if given is None or not Path(given).is_file():
        return None
    return Path(given).read_bytes().decode("utf-8-sig")


def _run_config(directory: Path, archive: Path, override: DictConfig | str | None) -> DictConfig:
    if override is not None:
        loaded = OmegaConf.load(override) if isinstance(override, str) else override
        assert isinstance(loaded, DictConfig)
        return loaded
    path = directory / CONFIG_YAML
    if not path.is_file():
        raise UserError(f"{archive}: has no {CONFIG_YAML}; it is not an archive of this project")
    config: DictConfig = OmegaConf.load(path).run
    return config


def _build(
    cls: type[MegatronGPTPreferenceModel], archived: DictConfig, directory: Path, trainer: Any
) -> MegatronGPTPreferenceModel:
    """A model on the present mesh; its layout is the mesh's, not the archive's."""
    plain = OmegaConf.to_container(archived, resolve=True)
    assert isinstance(plain, dict)
    end_token_id = int(plain.pop("end_token_id"))
    config = TRAIN.parse({str(key): value for key, value in plain.items()})
    layout = ParallelLayout(
        tensor=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline=parallel_state.get_pipeline_model_parallel_world_size(),
        virtual_pipeline=parallel_state.get_virtual_pipeline_model_parallel_world_size(),
        context=parallel_state.get_context_parallel_world_size(),
        sequence_parallel=False,
        vocab_divisible_by=config.model.make_vocab_size_divisible_by,
    )
    core = PreferenceModel(
        config,
        objective=build_objective(config.objective),
        model_config=read_checkpoint_model(directory).config,
        layout=layout,
        end_token_id=end_token_id,
    )
    return cls(config, core, trainer=trainer)
