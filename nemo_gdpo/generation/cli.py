"""`nemo-gdpo generate`: check, find the environment with the engine, and sample there."""

from __future__ import annotations

from pathlib import Path

from nemo_gdpo.config import Problem, compose
from nemo_gdpo.config.command import CONFIG_FLAGS, answered, read_request
from nemo_gdpo.config.generation import GENERATE, GenerateConfig
from nemo_gdpo.config.problem import refuse
from nemo_gdpo.errors import EXIT_DONE
from nemo_gdpo.generation.environment import find_python, run_there

HELP = """\
usage: nemo-gdpo generate model.restore_from_path=DIR data.prompts_path=FILE output_dir=DIR
         [generation=choice] [key=value] ... [--cfg job [--resolve]]

Samples from a model with vLLM (or from a server), several answers to each prompt and at each point
of a sweep, each with a seed of its own. The same command again makes what is missing.
FILE is JSONL with id and prompt (text or messages). output_dir gets generations-*.jsonl.

  nemo-gdpo generate model.restore_from_path=runs/gdpo/hf data.prompts_path=prompts.jsonl \\
    generation.num_samples=8 generation.temperature=[0.7,1.0] output_dir=runs/samples

--cfg job prints the configuration instead; with --resolve, with the values of interpolations.
"""


def problems(config: GenerateConfig) -> list[Problem]:
    """All that can be told to be wrong before the engine's environment is entered."""
    from nemo_gdpo.generation.backends import backend_problems
    from nemo_gdpo.generation.model import model_problems
    from nemo_gdpo.generation.sweep import sweep_problems

    found = model_problems(config)
    if config.data.prompts_path is None:
        found.append(Problem("data.prompts_path", "is not set", "give a JSONL file of prompts"))
    elif not Path(config.data.prompts_path).is_file():
        reason = f"{config.data.prompts_path} is no file"
        found.append(Problem("data.prompts_path", reason, "correct the path"))
    output = Path(config.output_dir)
    if output.exists() and not output.is_dir():
        found.append(Problem("output_dir", f"{output} is a file", "choose a directory"))
    return found + sweep_problems(config.generation) + backend_problems(config)


def main(arguments: list[str]) -> int:
    """Run the verb; returns the exit status.

    Raises:
        UserError: the configuration or the input is wrong, or there is no environment to sample in.
        GenerationError: disk, engine or server failed; what was written is intact.
        Stopped: a signal came before there was anything to finish.
    """
    request = read_request("generate", arguments, CONFIG_FLAGS)
    if answered(request, HELP, GENERATE):
        return EXIT_DONE
    config = GENERATE.parse(compose(request.overrides, root=GENERATE).plain)
    refuse(problems(config))
    # A server needs no engine here.
    serving = config.generation.backend == "server"
    python = None if serving else find_python(config.generation.python)
    if python is not None:
        return run_there(python, request.overrides)
    from nemo_gdpo.generation.run import run

    return run(config)
