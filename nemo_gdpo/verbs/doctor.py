"""`nemo-gdpo doctor`: what is installed, what this machine would use, and why not something else.

A missing package is not a failure; an environment in which nothing can be trained is one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from nemo_gdpo import __version__
from nemo_gdpo.config.request import asks_for_help
from nemo_gdpo.errors import EXIT_DONE, EXIT_FAILED, UserError

if TYPE_CHECKING:
    from nemo_gdpo.platform.base import Capabilities, Support

_USAGE = """\
usage: nemo-gdpo doctor
       nemo-gdpo doctor --gpu [--output DIR] [--only STAGE,STAGE] [--minutes N] [--list]

Prints versions, what a run on this machine would use, and why not something else. Exit status 1
when nothing can be trained in this environment.
With --gpu: runs the acceptance test of a machine with GPUs, and writes its numbers.
"""
PACKAGES = (
    "torch",
    "megatron-core",
    "nemo-toolkit",
    "transformers",
    "safetensors",
    "hydra-core",
    "omegaconf",
    "datasets",
    "wandb",
    "tensorboard",
    "transformer-engine",
    "triton",
)
Row = tuple[str, str]
"""(name, finding)."""


def run(arguments: list[str]) -> int:
    """Print the findings, or run the acceptance test; returns the exit status."""
    if arguments and arguments[0] == "--gpu":
        from nemo_gdpo.verbs import gpu_check

        return gpu_check.run(arguments[1:])
    if asks_for_help(arguments):
        print(_USAGE, end="")
        return EXIT_DONE
    if arguments:
        raise UserError(f"doctor {arguments[0]}: it takes no arguments but --gpu")
    capabilities, unknown = _capabilities()
    rows = [*_packages(), *_hardware()]
    rows += [("platform", unknown)] if capabilities is None else training_rows(capabilities)
    for name, value in [*rows, *_environments()]:
        print(f"{name:<20} {value}")
    broken = capabilities is None or capabilities.unusable is not None
    return EXIT_FAILED if broken else EXIT_DONE


def _packages() -> Iterator[Row]:
    yield "nemo_gdpo", __version__
    yield "python", sys.version.split()[0]
    for package in PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, "not installed"


def _capabilities() -> tuple[Capabilities | None, str]:
    """What torch finds here; or None and why torch itself is the finding."""
    try:
        from nemo_gdpo.platform.select import detect_capabilities
    except (ImportError, OSError, RuntimeError) as error:
        # A torch built for other CUDA libraries fails in several ways.
        return None, f"unknown: torch does not import ({error})"
    return detect_capabilities(), ""


def _hardware() -> Iterator[Row]:
    yield "cpus", str(len(os.sched_getaffinity(0)))
    try:
        import torch
    except (ImportError, OSError, RuntimeError):
        return  # said under "platform"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield "gpus", ", ".join(gpus) or "none"


def training_rows(capabilities: Capabilities) -> Iterator[Row]:
    """What a training run would use here, and why not what it would not."""
    yield "platform", capabilities.device_type
    if capabilities.unusable is not None:
        yield "training", f"impossible: {capabilities.unusable}"
    yield from _layers(capabilities)
    yield "Transformer Engine", _answer(capabilities.transformer_engine, "usable", "not usable")
    for backend, support in capabilities.attention.items():
        yield f"attention {backend}", _answer(support)
    yield "gradient fusion", _answer(capabilities.gradient_fusion)
    yield "base in nf4", _answer(capabilities.four_bit)
    better = f" ({capabilities.optimizer.reason})" if capabilities.optimizer.reason else ""
    yield "optimizer", f"{capabilities.optimizer.value}{better}"
    yield "precisions", ", ".join(sorted(capabilities.precisions))
    for precision, support in sorted(capabilities.precision_support.items()):
        if not support.ok:
            yield f"  {precision}", f"no: {support.reason}"


def _layers(capabilities: Capabilities) -> Iterator[Row]:
    """By precision: fp32 and the others differ on a GPU."""
    from nemo_gdpo.config.problem import Problem
    from nemo_gdpo.platform.layers import choose_layers

    for precision in ("fp32", "bf16"):
        chosen = choose_layers("auto", precision, capabilities)
        if isinstance(chosen, Problem):
            yield f"layers in {precision}", f"none: {chosen}"
        else:
            reason = f" ({chosen.reason})" if chosen.reason else ""
            yield f"layers in {precision}", f"{chosen.value}{reason}"


def _answer(support: Support, yes: str = "yes", no: str = "no") -> str:
    return yes if support.ok else f"{no}: {support.reason}"


def _environments() -> Iterator[Row]:
    from nemo_gdpo.generation.environment import find_python

    yield "training python", sys.executable
    try:
        python = find_python(None)
    except UserError as error:
        yield "generation python", f"none: {error}"
    else:
        yield "generation python", str(python or sys.executable)
