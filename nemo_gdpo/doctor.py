"""What is installed here and what this machine can do. Finding something missing is no failure."""

from __future__ import annotations

import os
import sys
from importlib import metadata

from nemo_gdpo import __version__

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
        ("Transformer Engine", "usable" if capabilities.transformer_engine else "not usable"),
        ("Apex (NVIDIA's)", "usable" if capabilities.apex else "not usable"),
        ("precisions", ", ".join(sorted(capabilities.precisions))),
    ]
