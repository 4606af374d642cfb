"""`nemo-gdpo evaluate`: check, measure, print the table, write the results and the report."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nemo_gdpo.config import compose
from nemo_gdpo.config.command import CONFIG_FLAGS, answered, read_request
from nemo_gdpo.config.evaluation import EVALUATE, EvaluateConfig
from nemo_gdpo.config.problem import refuse
from nemo_gdpo.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, UserError
from nemo_gdpo.evaluation.errors import EvaluationError
from nemo_gdpo.evaluation.harness.cli import SUBVERBS
from nemo_gdpo.generation.signals import StoppedError, StopRequest

HELP = """\
usage: nemo-gdpo evaluate evaluation.runs={NAME: DIR, ...} output_dir=DIR
         [evaluation=choice] [key=value] ... [--cfg job [--resolve]]
       nemo-gdpo evaluate lm-eval|alpaca-eval|mt-bench --help

Measures what `nemo-gdpo generate` wrote: diversity and quality, side by side, with intervals over
prompts. Prints a table, writes evaluation.json and the report into output_dir.

  nemo-gdpo evaluate 'evaluation.runs={base: runs/samples-base, gdpo: runs/samples-gdpo}' \\
    evaluation.reference_model=runs/base-hf 'evaluation.models={gdpo: runs/gdpo/hf}' \\
    output_dir=runs/evaluation

Stopped in the middle, the same command resumes where it was.
--cfg job prints the configuration instead; with --resolve, with the values of interpolations.
"""


def main(arguments: list[str]) -> int:
    """Run the verb; returns the exit status.

    Raises:
        UserError: the configuration or the input is wrong.
    """
    if arguments and arguments[0] in SUBVERBS:
        return SUBVERBS[arguments[0]](arguments[1:])
    request = read_request("evaluate", arguments, CONFIG_FLAGS)
    if answered(request, HELP, EVALUATE):
        return EXIT_DONE
    config = EVALUATE.parse(compose(request.overrides, root=EVALUATE).plain)
    # Nothing here is ever downloaded: all models are directories.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with StopRequest():
        try:
            return _run(config)
        except StoppedError:
            print(
                "nemo-gdpo: stopped by a signal; what was computed is kept in "
                f"{config.output_dir}, and the same command resumes from there",
                file=sys.stderr,
            )
            return EXIT_REQUEUE
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == "nemo_gdpo":
                raise
            raise UserError(
                f"the package {error.name} is not installed; install nemo_gdpo with the extra "
                "evaluate"
            ) from None
        except EvaluationError as error:
            print(f"nemo-gdpo: error: {error}", file=sys.stderr)
            return EXIT_FAILED


def _run(config: EvaluateConfig) -> int:
    from nemo_gdpo.evaluation.checks import problems

    refuse(problems(config))
    from nemo_gdpo.evaluation.evaluate import evaluate
    from nemo_gdpo.evaluation.report.console import render_table
    from nemo_gdpo.evaluation.results import write_results

    results = evaluate(config)
    path = write_results(results, Path(config.output_dir))
    print(render_table(results))
    print(f"results: {path}")
    from nemo_gdpo.evaluation.report.page import write_report

    write_report(results, Path(config.output_dir))
    return EXIT_DONE
