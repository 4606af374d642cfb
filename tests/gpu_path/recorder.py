"""Notes what the training loop does, without changing it."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch

from nemo_gdpo.training.trainer import PreferenceTrainer
from tests.gpu_path.compiled.quantize import QUANTIZED

LINEAR = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
_per_pair = PreferenceTrainer._per_pair
_train_step = PreferenceTrainer.train_step


class Recorder:
    """A context in which every update of a trainer leaves a line, with the values of its pairs."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.quantized: list[str] = []
        """`<layer, from 1>.<linear>` of each weight of this rank that the last step quantised."""
        self._pairs: dict[str, list[float]] = {}
        self._patches = (
            mock.patch.object(PreferenceTrainer, "_per_pair", self._note_pairs()),
            mock.patch.object(PreferenceTrainer, "train_step", self._note_step()),
        )

    def __enter__(self) -> Recorder:
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        for patch in self._patches:
            patch.stop()

    def _note_pairs(self) -> Any:
        def per_pair(trainer: Any, *args: Any, **named: Any) -> dict[str, torch.Tensor]:
            values = _per_pair(trainer, *args, **named)
            self._pairs = {name: column.tolist() for name, column in values.items()}
            return values

        return per_pair

    def _note_step(self) -> Any:
        def train_step(trainer: Any) -> dict[str, Any]:
            # Addresses of before may be another tensor's by now; parameters do not move any more.
            QUANTIZED.clear()
            entry = _train_step(trainer)
            told = {name: entry[name] for name in ("step", "loss", "grad_norm")}
            self.steps.append({**told, "pairs": self._pairs})
            self.quantized = _quantized_weights(trainer.model)
            return entry

        return train_step


def _quantized_weights(model: Any) -> list[str]:
    return [
        f"{layer.layer_number}.{linear}"
        for chunk in model.gpt_chunks
        for layer in chunk.decoder.layers
        for linear in LINEAR
        for name, weight in layer.named_parameters()
        if name.endswith(f"{linear}.weight") and weight.data_ptr() in QUANTIZED
    ]
