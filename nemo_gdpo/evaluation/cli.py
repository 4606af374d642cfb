"""`nemo-gdpo evaluate`: check, measure, print the table, write the results and the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nemo_gdpo.config.evaluation import EVALUATE, EvaluateConfig
from nemo_gdpo.config.problem import raise_problems
from nemo_gdpo.config.request import Request
from nemo_gdpo.errors import EXIT_DONE, RunError, UserError
from nemo_gdpo.evaluation.local_models import local_models
from nemo_gdpo.io.output_lock import hold
from nemo_gdpo.launch.signals import ALL_SIGNALS, StopRequest

if TYPE_CHECKING:
    from nemo_gdpo.evaluation.results import Results


def run(request: Request) -> int:
    """Evaluate as configured; returns the exit status.

    Raises:
        UserError: the configuration or the input is wrong.
        RunError: the disk or the judge's server failed.
        Stopped: a signal came; what was computed is kept.
    """
    return evaluate(request.parse(EVALUATE))


def evaluate(config: EvaluateConfig) -> int:
    """Measure, print the table, write results and report; returns the exit status.

    Raises:
        UserError: see `run`.
    """
    interrupts = (
        f"stopped by a signal; what was computed is kept in {config.output_dir}, and the same "
        "command resumes from there"
    )
    with StopRequest(ALL_SIGNALS, interrupts=interrupts), local_models():
        return _run(config)


def _run(config: EvaluateConfig) -> int:
    from nemo_gdpo.evaluation.report.console import render_table
    from nemo_gdpo.evaluation.results import FILE_NAME

    results, error = _measure_and_write(config)
    print(render_table(results))
    print(f"results: {Path(config.output_dir) / FILE_NAME}")
    if error is not None:
        raise error
    return EXIT_DONE


def measure_and_report(config: EvaluateConfig) -> Results:
    """Check a configuration, measure, and write evaluation.json and the report.

    Raises:
        UserError: the configuration or the input is wrong.
        RunError: a model, the judge's server or the disk failed. What was measured is written.
    """
    results, error = _measure_and_write(config)
    if error is not None:
        raise error
    return results


def _measure_and_write(config: EvaluateConfig) -> tuple[Results, UserError | RunError | None]:
    """The results, written, and what to end with where a part of them is missing."""
    from nemo_gdpo.evaluation.checks import problems

    raise_problems(problems(config))
    from nemo_gdpo.evaluation.evaluate import measure_all
    from nemo_gdpo.evaluation.report.page import write_report
    from nemo_gdpo.evaluation.results import write_results

    output_dir = Path(config.output_dir)
    with hold(output_dir):
        results, failures = measure_all(config)
        path = write_results(results, output_dir)
        write_report(results, output_dir)
    return results, failures.error(f"what could be measured is in {path}")
