"""The `lora` section: low-rank adapters on the linear layers, over a frozen base."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import AfterValidator, Field

from nemo_gdpo.config.base import CONTENT, FIXED, FREE, OnResume, PathText, Section

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS: tuple[Target, ...] = get_args(Target)
"""Linear layers that can have an adapter, by the names that PEFT and transformers have for them."""

ADAPTER_CONFIG = "adapter_config.json"
"""File of an adapter in PEFT's format with its settings."""


def _in_order(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    """The order says nothing: a run that goes on may have another."""
    return tuple(sorted(targets, key=TARGETS.index))


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021) on attention and MLP. All else is frozen. There is no
    dropout: policy and reference would be two different models by it."""

    on_resume: ClassVar[OnResume | None] = FIXED
    rank: Annotated[int, Field(ge=1)] | None = None
    """Rows of A and columns of B; null trains every weight instead."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 32.0
    """An adapter's output is multiplied by alpha / rank."""
    # YAML has lists only.
    targets: Annotated[
        tuple[Target, ...], Field(strict=False, min_length=1), AfterValidator(_in_order)
    ] = TARGETS
    """Linear layers of every block that have an adapter."""
    base_precision: Literal["run", "nf4"] = "run"
    """What the frozen matrices of every block are kept in: run is that of `precision`; nf4 is four
    bits a number (QLoRA, Dettmers et al. 2023), multiplied in that of `precision`; on GPUs only."""
    restore_from_path: Annotated[PathText | None, CONTENT] = None
    """Directory of an adapter in PEFT's format to start from, with this rank, alpha and targets;
    null starts from A at random and B at zero, which is the base itself."""
    export_peft: Annotated[bool, FREE] = True
    """Write output_dir/peft (PEFT's format: adapter_config.json, adapter_model.safetensors) at the
    end."""

    @property
    def is_exported(self) -> bool:
        """Whether there is an adapter, and it is to be written."""
        return self.rank is not None and self.export_peft
