"""Every combination of settings that the checks let through, as megatron's configurations."""

from __future__ import annotations

import copy
import itertools
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from nemo_gdpo.config.checks_layers import VARIABLES
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.config.validate import problems
from nemo_gdpo.conversion.model_config import MegatronModelConfig
from nemo_gdpo.models.builder import transformer_config
from nemo_gdpo.platform import current_platform
from nemo_gdpo.training import optimizer
from nemo_gdpo.training.mesh import layout_of
from nemo_gdpo.verbs.start import detect_hardware
from tests.gpu_path import gpu
from tests.gpu_path.fakes.fields import watched_fields
from tests.gpu_path.fakes.jobs import Job
from tests.gpu_path.fakes.rank import LLAMA3_8B, compose_job, hugging_face

JOB = Job("gdpo_llama3_8b", 0)
MODELS = {
    "llama": LLAMA3_8B,
    "qwen3": replace(LLAMA3_8B, qk_norms=True),
    "gemma2": replace(
        LLAMA3_8B,
        activation="gelu_tanh",
        attention_softcap=50.0,
        layer_windows=[4096, None] * 16,
        post_norms=True,
        zero_centered_norms=True,
    ),
}
"""What families ask of megatron, in one size."""
MACHINES = {
    "fp32": gpu.HOPPER,
    "bf16": gpu.HOPPER,
    "fp8_tensorwise": gpu.HOPPER,
    "fp8_blockwise": gpu.HOPPER,
    "fp8_mxfp8": gpu.BLACKWELL,
}
"""Precision -> generation of a GPU that has it."""
CHOICES: dict[str, tuple[Any, ...]] = {
    "tensor_model_parallel_size": (1, 4),
    "sequence_parallel": (False, True),
    "pipeline_model_parallel_size": (1, 2),
    "virtual_pipeline_model_parallel_size": (None, 2),
    "context_parallel_size": (1, 2),
    "activations_checkpoint_granularity": (None, "selective", "full"),
    "layers": ("auto", "transformer_engine", "local"),
    "attention_backend": ("auto", "flash", "fused", "unfused", "local"),
}
"""Key of the `model` section -> its values."""


class _Heard(logging.Handler):
    """Warnings that go to a logger."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What is warned of in here, by either way."""
    handler = _Heard()
    logging.getLogger().addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield handler.lines
        handler.lines += [str(one.message) for one in caught]
    finally:
        logging.getLogger().removeHandler(handler)


def _construct(config: RunConfig, model: MegatronModelConfig) -> list[str]:
    """What megatron says against a configuration."""
    with _heard() as lines:
        try:
            transformer_config(model, layout_of(config), config.precision, current_platform())
            optimizer.build_optimizer(config, [])
        except Exception as error:  # noqa: BLE001 - told with the combination
            return [f"{type(error).__name__}: {error}"]
    return lines


def _checked(plain: dict[str, Any], precision: str, chosen: dict[str, Any]) -> RunConfig | None:
    """The configuration; None where the checks refuse it."""
    given = copy.deepcopy(plain)
    given["precision"] = precision
    given["model"] |= chosen
    config, unfit = TRAIN.parse_leniently(given)
    machine = detect_hardware(given, joined=False)
    if unfit or problems(config, machine, hugging_face(JOB), files=False):
        return None
    return config


def _accepted() -> Iterator[tuple[RunConfig, dict[str, Any]]]:
    """Configurations that pass the checks on a machine that has their precision."""
    plain = compose_job(JOB).model_dump(mode="json")
    for precision, machine in MACHINES.items():
        gpu.become(machine)
        for values in itertools.product(*CHOICES.values()):
            chosen = dict(zip(CHOICES, values, strict=True))
            config = _checked(plain, precision, chosen)
            if config is not None:
                yield config, {"precision": precision, **chosen}


def construct_all() -> dict[str, Any]:
    """Numbers of combinations by precision, what megatron says against any, and fields set."""
    found: Counter[str] = Counter()
    said: list[dict[str, Any]] = []
    as_it_is: Any = mock.patch.object(optimizer, "get_megatron_optimizer", lambda config, _: config)
    with watched_fields() as fields, as_it_is, mock.patch.dict(os.environ):
        for name in VARIABLES:
            os.environ.pop(name, None)
        for config, chosen in _accepted():
            found[config.precision] += 1
            # What a family asks for does not depend on the kernels of attention.
            for name in MODELS if chosen["attention_backend"] == "auto" else ("llama",):
                lines = _construct(config, MODELS[name])
                said += [{"model": name, **chosen, "line": line} for line in lines]
    return {"constructed": found, "said": said, "fields": fields.to_json()}
