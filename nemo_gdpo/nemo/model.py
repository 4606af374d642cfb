"""The model class that every objective shares, in NeMo-Aligner's manner."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from nemo.core.classes import ModelPT
from omegaconf import OmegaConf
from torch import Tensor

from nemo_gdpo.config.base import plain_data
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.models.batch import PreferenceMicroBatch
from nemo_gdpo.models.preference_model import ForwardStep, PreferenceModel
from nemo_gdpo.nemo.archive import PreferenceSaveRestoreConnector, allow_our_targets


class MegatronGPTPreferenceModel(ModelPT):  # type: ignore[misc]
    """NeMo's view of a `PreferenceModel`: its configuration, its archives, its method names."""

    objective_names: ClassVar[frozenset[str]] = frozenset()
    """Values of the `objective` key that the class trains; empty trains any."""

    def __init__(self, config: RunConfig, core: PreferenceModel, *, trainer: Any = None) -> None:
        """Wrap a model that was built on the present mesh.

        Args:
            config: of the run, kept in `.nemo` archives.
            core: the mechanics.
            trainer: a Lightning trainer; nothing here needs one.

        Raises:
            UserError: the class does not train the configured objective.
        """
        name = config.objective.name
        if self.objective_names and name not in self.objective_names:
            raise UserError(
                f"{type(self).__name__} does not train objective {name}; take "
                "nemo_gdpo.nemo.classes.model_class(objective)"
            )
        archived = {"run": {**plain_data(config), "end_token_id": core.end_token_id}}
        super().__init__(OmegaConf.create(archived), trainer=trainer)
        self._save_restore_connector = PreferenceSaveRestoreConnector()
        allow_our_targets()
        self.core = core
        self.model_card: dict[str, Any] = {}
        """What the model card of an archive's export says; see `conversion.formats.card`."""

    # NeMo's abstract methods: data loading belongs to the trainer's own resumable sampler.
    def setup_training_data(self, train_data_config: Any) -> None:
        """Not used: pairs come from the run's `PreferenceDataset`."""
        raise NotImplementedError("pairs come from nemo_gdpo.data, not from a NeMo data loader")

    def setup_validation_data(self, val_data_config: Any) -> None:
        """Not used: pairs come from the run's `PreferenceDataset`."""
        raise NotImplementedError("pairs come from nemo_gdpo.data, not from a NeMo data loader")

    def save_to(self, save_path: str) -> None:
        """Write a `.nemo` archive. Collective on any mesh; see the connector."""
        # NeMo's own asks its global state whether all ranks take part, and lets rank 0 make the
        # directory while the others wait.
        self._save_restore_connector.save_to(self, str(Path(save_path).expanduser().resolve()))

    @classmethod
    def restore_from(cls, restore_path: str, **options: Any) -> Any:
        """Restore from a `.nemo` archive onto the present mesh; see the connector."""
        options.setdefault("save_restore_connector", PreferenceSaveRestoreConnector())
        return super().restore_from(restore_path, **options)

    @classmethod
    def list_available_models(cls) -> list[Any]:
        """No pretrained models are published under this class."""
        return []

    # NeMo-Aligner's names for what a trainer calls.
    def prepare_for_training(self) -> None:
        """Wrap the policy for data parallelism. Call after the weights are loaded."""
        self.core.prepare_for_training()

    def prepare_for_training_step(self) -> None:
        """Zero the gradient buffers."""
        self.core.prepare_for_training_step()

    def prepare_for_inference(self) -> None:
        """Ready the policy for forward passes alone."""
        self.core.prepare_for_inference()

    def get_forward_output_and_loss_func(
        self, *, logprobs_only: bool, reference: bool = False
    ) -> ForwardStep:
        """The forward step that megatron's schedule calls for every micro-batch."""
        return self.core.get_forward_output_and_loss_func(
            logprobs_only=logprobs_only, reference=reference
        )

    def get_loss_and_metrics(
        self, micro_batches: list[PreferenceMicroBatch], *, forward_only: bool
    ) -> list[dict[str, Any]]:
        """Forward, and backward unless `forward_only`; see `PreferenceModel`."""
        return self.core.get_loss_and_metrics(micro_batches, forward_only=forward_only)

    def get_reference_logprobs(self, micro_batches: list[PreferenceMicroBatch]) -> list[Tensor]:
        """Token log-probs [T, C] of the reference for each micro-batch, on the last stage."""
        return self.core.get_reference_logprobs(micro_batches)
