"""The complete configuration of a training run."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from nemo_gdpo.config.base import CONTENT, FIXED, FREE, Section, Text, derived
from nemo_gdpo.config.data import DataConfig
from nemo_gdpo.config.lengths import fitting_length
from nemo_gdpo.config.live_labels import LiveLabelsConfig
from nemo_gdpo.config.lora import LoraConfig
from nemo_gdpo.config.model import ModelConfig
from nemo_gdpo.config.objective import OBJECTIVE_SECTIONS, GDPOSettings, ObjectiveConfig
from nemo_gdpo.config.places import StartPath
from nemo_gdpo.config.root import Root
from nemo_gdpo.config.suggest import ALIASES, REFUSED
from nemo_gdpo.config.training import LoggerConfig, OptimConfig, TrainerConfig

Precision = Literal[
    "fp32",
    "bf16",
    "fp8_tensorwise",
    "fp8_blockwise",
    "fp8_mxfp8",
    "fp8_rehearsal_delayed",
    "fp8_rehearsal_tensorwise",
    "fp8_rehearsal_blockwise",
]


def _output_dir(above: dict[str, Any]) -> str:
    # A faulty objective is reported by itself; this value then serves nobody.
    objective = above.get("objective")
    return f"runs/{objective.name if objective is not None else 'train'}"


class RunConfig(Section):
    """Everything that `nemo-gdpo train` reads."""

    seed: Annotated[int, Field(ge=0), FREE] = 1234
    """Seed of every random generator but the order of pairs, which is `data.seed`."""
    objective: ObjectiveConfig = GDPOSettings()
    output_dir: Annotated[Text, FREE] = derived(_output_dir, "runs/${objective.name}")
    """Directory for metrics.jsonl, config.yaml, checkpoints/, logs/ and, when asked for, hf/."""
    precision: Annotated[Precision, FIXED] = "fp32"
    """Type of weights and activations; log-probabilities, losses and gradients are always fp32. The
    FP8 recipes keep the first and last layer, and all from the LM head on, in bf16 or fp32.
    fp8_rehearsal_... is no FP8: on any machine the operands of the same linear layers are rounded
    to FP8 and multiplied in fp32, to see what FP8 would do; all else is as in fp32."""
    reference: Annotated[Literal["cache", "resident", "swap", "adapter_off"], FREE] = "cache"
    """Compute the reference's log-probabilities before training (cache), or in every update: with a
    second copy of the model beside the first (resident), with one in host memory, which takes its
    place for a moment (swap), or, where lora is on, with the policy without its adapters
    (adapter_off). All train the same."""
    reference_model: Annotated[StartPath | None, CONTENT] = None
    """Model that is the reference, as model.restore_from_path names one, where it is not what
    training starts from: a later round of several that keep to one reference. Null is what training
    starts from. With reference=cache, or where it is the base below an adapter, adapter_off."""
    reference_cache_dir: Annotated[Text | None, FREE] = None
    """Directory of the cache; null is output_dir/reference. Runs that share model, data and
    precision may share one."""
    export_hf: Annotated[bool, FREE] = True
    """Write output_dir/hf (Hugging Face safetensors) at the end."""
    export_nemo: Annotated[bool, FREE] = False
    """Write output_dir/model.nemo (NeMo's archive) at the end."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    label: LiveLabelsConfig = LiveLabelsConfig()
    lora: LoraConfig = LoraConfig()
    optim: OptimConfig = OptimConfig()
    trainer: TrainerConfig = TrainerConfig()
    logger: LoggerConfig = LoggerConfig()

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        """A configuration made in Python has the lengths that a composed one has."""
        if "max_length" not in self.data.model_fields_set:
            length = fitting_length(self.model.restore_from_path)
            given = {name: getattr(self.data, name) for name in self.data.model_fields_set}
            fitted = DataConfig(**given | {"max_length": length})
            object.__setattr__(self, "data", fitted)  # the one change before anybody has it
        return self


TRAIN = Root(
    "train",
    RunConfig,
    choice="objective",
    sections=OBJECTIVE_SECTIONS,
    groups={
        "model": "default",
        "parallel": "single",
        "precision": "fp32",
        "objective": GDPOSettings.name,
        "data": "jsonl",
        "optim": "adamw_cosine",
        "experiment": None,
    },
    aliases=ALIASES,
    refused=REFUSED,
)
