"""`nemo-gdpo doctor`: what is installed and what this machine can do.

A missing package is not a failure.
"""

from __future__ import annotations

import os
import sys
from importlib import metadata

from nemo_gdpo import __version__
from nemo_gdpo.config.request import asks_for_help
from nemo_gdpo.errors import EXIT_DONE, UserError

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
)


def run(arguments: list[str]) -> int:
    """Print the findings; never fails over what is missing."""
    if asks_for_help(arguments):
        print("usage: nemo-gdpo doctor\n\nPrints versions and what this machine can do.")
        return EXIT_DONE
    if arguments:
        raise UserError(f"doctor {arguments[0]}: it takes no arguments")
    for name, value in findings():
        print(f"{name:<20} {value}")
    return EXIT_DONE


def findings() -> list[tuple[str, str]]:
    """(name, finding) of packages and of the machine, in the order to print them."""
    found = [("nemo_gdpo", __version__), ("python", sys.version.split()[0])]
    for package in PACKAGES:
        try:
            found.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            found.append((package, "not installed"))
    return found + _machine()


def _machine() -> list[tuple[str, str]]:
    found = [("cpus", str(len(os.sched_getaffinity(0))))]
    try:
        import torch

        from nemo_gdpo.platform.select import detect_capabilities
    except (ImportError, OSError, RuntimeError) as error:
        # A torch built for other CUDA libraries fails in several ways; that is the finding.
        return [*found, ("platform", f"unknown: torch does not import ({error})")]
    capabilities = detect_capabilities()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [
        *found,
        ("gpus", ", ".join(gpus) or "none"),
        ("platform", capabilities.device_type),
        ("Transformer Engine", capabilities.transformer_engine.reason or "usable"),
        ("optimizer", capabilities.optimizer.value),
        ("precisions", ", ".join(sorted(capabilities.precisions))),
    ]
