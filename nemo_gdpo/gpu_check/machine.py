"""Facts that a result belongs to: devices and versions."""

from __future__ import annotations

import importlib.resources
from importlib import metadata

from nemo_gdpo import __version__
from nemo_gdpo.io.files import digest_of

PACKAGES = ("torch", "triton", "megatron-core", "transformer-engine", "transformers")


def source_digest() -> str:
    """SHA-256 over the package's own files, shortened: changed code has to be checked again."""
    root = importlib.resources.files("nemo_gdpo")
    with importlib.resources.as_file(root) as folder:
        texts = {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*.py"))}
    return digest_of(texts)[:12]


def describe_machine() -> dict[str, str]:
    """Versions of packages, the GPUs, the driver's CUDA."""
    import torch

    found = {"nemo_gdpo": f"{__version__} {source_digest()}"}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found | {
        "gpus": ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)) or "none",
        "cuda": str(torch.version.cuda),
    }
