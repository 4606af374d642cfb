"""`nemo-gdpo generate`: check, find the environment with the engine, and sample there."""

from __future__ import annotations

from pathlib import Path

from nemo_gdpo.config.composition import config_yaml
from nemo_gdpo.config.generation import GENERATE, GenerateConfig
from nemo_gdpo.config.problem import Problem, raise_problems
from nemo_gdpo.config.request import Request
from nemo_gdpo.generation.environment import find_python, run_in_environment
from nemo_gdpo.importing import uncollected


def problems(config: GenerateConfig) -> list[Problem]:
    """Problems that can be found before the engine's environment is entered."""
    with uncollected():
        from nemo_gdpo.constraints import constraint_problems
        from nemo_gdpo.generation.backends import backend_problems
        from nemo_gdpo.generation.constrained import sampling_problems
        from nemo_gdpo.generation.model import model_problems
        from nemo_gdpo.generation.sweep import sweep_problems

    found = model_problems(config)
    if config.data.prompts_path is None:
        found.append(Problem("data.prompts_path", "is not set", "give a JSONL file of prompts"))
    elif not Path(config.data.prompts_path).is_file():
        reason = f"{config.data.prompts_path} is not a file"
        found.append(Problem("data.prompts_path", reason, "correct the path"))
    output = Path(config.output_dir)
    if output.exists() and not output.is_dir():
        found.append(Problem("output_dir", f"{output} is a file", "choose a directory"))
    found += sweep_problems(config.generation) + backend_problems(config)
    return found + constraint_problems(config.constraints) + sampling_problems(config)


def run(request: Request) -> int:
    """Sample as configured; returns the exit status.

    Raises:
        UserError: the configuration or the input is wrong, or no environment to sample in exists.
        GenerationError: disk, engine or server failed; what was written is intact.
        Stopped: a signal came before there was anything to finish.
    """
    return generate(request.parse(GENERATE))


def generate(config: GenerateConfig) -> int:
    """Check a configuration and sample, here or in the generation environment.

    Raises:
        UserError: see `run`.
    """
    raise_problems(problems(config))
    # A server needs no engine here.
    serving = config.generation.backend == "server"
    python = None if serving else find_python(config.generation.python)
    if python is not None:
        return run_in_environment(python, config_yaml(config))
    from nemo_gdpo.generation.run import run as sample

    return sample(config)
