"""`.nemo` archives: NeMo's container, with the weights in megatron's distributed format.

An archive is an uncompressed tar of a checkpoint directory (`dist/`, `model_config.json`,
`hf_assets/`) and NeMo's `model_config.yaml`. It is written from any mesh and read into any other.
"""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from megatron.core import parallel_state
from nemo.core.classes.common import ALLOWED_TARGET_PREFIXES
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from omegaconf import DictConfig, OmegaConf

from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.conversion.formats.megatron_io import (
    CheckpointModel,
    read_checkpoint_model,
    write_checkpoint_assets,
)
from nemo_gdpo.conversion.model_config import padded_vocab_size
from nemo_gdpo.conversion.nemo1.archive import extract
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import replacing
from nemo_gdpo.models.builder import ParallelLayout
from nemo_gdpo.models.preference_model import PreferenceModel
from nemo_gdpo.models.weights import DIST, load_weights, save_weights
from nemo_gdpo.objectives import build_objective

if TYPE_CHECKING:
    from nemo_gdpo.nemo.model import MegatronGPTPreferenceModel

CONFIG_YAML = "model_config.yaml"
OUR_TARGETS = "nemo_gdpo."


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
        """
        core = model.core
        if core.hf_assets is None:
            raise UserError(
                "the model was not loaded from a checkpoint with hf_assets; load it first"
            )
        main = dist.get_rank() == 0
        target = Path(save_path)
        shared: list[str] = [""]
        if main:
            target.parent.mkdir(parents=True, exist_ok=True)
            shared = [tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent)]
        dist.broadcast_object_list(shared, src=0)
        directory = Path(shared[0])
        if main:
            (directory / DIST).mkdir()
        dist.barrier()
        save_weights(core, directory)
        if main:
            self._pack(model, directory, target)
        dist.barrier()

    @staticmethod
    def _pack(model: MegatronGPTPreferenceModel, directory: Path, target: Path) -> None:
        import shutil

        core = model.core
        config = core.model_config
        padded = padded_vocab_size(
            config.vocab_size, core.layout.vocab_divisible_by, core.layout.tensor
        )
        assert core.hf_assets is not None
        write_checkpoint_assets(directory, CheckpointModel(config, padded, None), core.hf_assets)
        (directory / CONFIG_YAML).write_text(OmegaConf.to_yaml(model.cfg, resolve=True))
        with replacing(target) as file, tarfile.open(fileobj=file, mode="w") as tar:
            for path in sorted(directory.iterdir()):
                tar.add(path, arcname=path.name)
        shutil.rmtree(directory)

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
            extract(Path(restore_path), directory)
            cfg = _run_config(directory, Path(restore_path), override_config_path)
            if return_config:
                return cfg
            if not parallel_state.model_parallel_is_initialized():
                raise RuntimeError("build a mesh first: nemo_gdpo.training.mesh.build_mesh")
            model = _build(calling_cls, cfg, directory, trainer)
            load_weights(model.core, directory)
            dist.barrier()
        return model


def _run_config(directory: Path, archive: Path, override: DictConfig | str | None) -> DictConfig:
    if override is not None:
        loaded = OmegaConf.load(override) if isinstance(override, str) else override
        assert isinstance(loaded, DictConfig)
        return loaded
    path = directory / CONFIG_YAML
    if not path.is_file():
        raise UserError(f"{archive}: has no {CONFIG_YAML}; it is no archive of this project")
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
