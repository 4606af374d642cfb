"""The adapter that training starts from, where `lora.restore_from_path` names one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.control import on_every_rank
from nemo_gdpo.conversion.adapters import A, AdapterSpec, B, adapted_matrices
from nemo_gdpo.conversion.formats.peft import PeftAdapter, read_peft
from nemo_gdpo.models.lora import adapters
from nemo_gdpo.models.preference_model import PreferenceModel
from nemo_gdpo.training.model_source import ModelSource

READING = "reading the adapter"
"""Stage, as errors name it."""


@dataclass(frozen=True)
class AdapterStart:
    """An adapter in PEFT's format as this rank has read it, or none."""

    source: ModelSource
    """Its base."""
    spec: AdapterSpec | None
    adapter: PeftAdapter | None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what training starts from; that of the base where no adapter is given."""
        if self.adapter is None:
            return self.source.fingerprint
        both = f"{self.source.fingerprint}+{self.adapter.sha256}"
        return hashlib.sha256(both.encode()).hexdigest()

    def load_into(self, model: PreferenceModel) -> None:
        """Put it into a model on the mesh; without one the model stays as it was made. Collective.

        Raises:
            RuntimeError: the model has other adapters.
        """
        if self.adapter is not None and self.spec is not None:
            spec, tensors = self.spec, self.adapter.tensors
            on_every_rank(READING, lambda: self._fill(model, spec, tensors))

    def _fill(
        self, model: PreferenceModel, spec: AdapterSpec, tensors: Mapping[str, Tensor]
    ) -> None:
        values = {
            (one.layer, one.target): {matrix: tensors[one.peft_name(matrix)] for matrix in (A, B)}
            for one in adapted_matrices(self.source.bridge, spec)
        }
        for chunk in model.gpt_chunks:
            for layer in chunk.decoder.layers:
                for adapter in adapters([layer]):
                    for name in adapter.parts:
                        adapter.fill(name, values[layer.layer_number - 1, name])


def open_start(config: RunConfig, source: ModelSource) -> AdapterStart:
    """Read the adapter that a run starts from; every rank reads all of it, it is small. Collective.

    Raises:
        UserError: on every rank, when it is damaged, or not of this base, rank or targets.
    """
    spec, path = AdapterSpec.of(config.lora), config.lora.restore_from_path
    if spec is None or path is None:
        return AdapterStart(source, spec, None)
    adapter = on_every_rank(
        READING, lambda: read_peft(Path(path), source.bridge, spec, source.fingerprint)
    )
    return AdapterStart(source, spec, adapter)
