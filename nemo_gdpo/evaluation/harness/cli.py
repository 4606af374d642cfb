"""`nemo-gdpo evaluate lm-eval | alpaca-eval | mt-bench | verbalised`."""

from __future__ import annotations

import time
from pathlib import Path

from nemo_gdpo.config.downstream import ALPACA_EVAL, LM_EVAL, MT_BENCH, VERBALISED
from nemo_gdpo.config.request import Request
from nemo_gdpo.errors import EXIT_DONE
from nemo_gdpo.io.output_lock import InUseError, hold


def lm_eval(request: Request) -> int:
    """Run lm-eval, and bring a report that is there up to date."""
    config = request.parse(LM_EVAL)
    from nemo_gdpo.evaluation.harness.lm_eval import lm_eval_rows, read_answers, run_lm_eval

    path = run_lm_eval(config)
    output_dir = Path(config.output_dir)
    for row in lm_eval_rows([a for a in read_answers(output_dir) if a["name"] == path.stem]):
        print(" ".join(row[:4]) + (f" ± {row[4]}" if row[4] else ""))
    print(f"kept: {path}")
    from nemo_gdpo.evaluation.results import FILE_NAME

    if (output_dir / FILE_NAME).is_file():
        write_report_of(output_dir)
    return EXIT_DONE


def write_report_of(output_dir: Path) -> None:
    """With what lm-eval said; an evaluation that is under way there will write it itself."""
    from nemo_gdpo.evaluation.report.page import write_report
    from nemo_gdpo.evaluation.results import read_results

    try:
        with hold(output_dir):
            print(f"report: {write_report(read_results(output_dir), output_dir)}")
    except InUseError as error:
        print(f"report: left to the one that is under way ({error})")


def alpaca_eval(request: Request) -> int:
    """Write AlpacaEval's file."""
    config = request.parse(ALPACA_EVAL)
    from nemo_gdpo.evaluation.harness.chat import write_alpaca_eval

    print(f"written: {write_alpaca_eval(config)}")
    return EXIT_DONE


def mt_bench(request: Request) -> int:
    """Do one step of MT-Bench."""
    config = request.parse(MT_BENCH)
    from nemo_gdpo.evaluation.harness.chat import mt_bench as do

    print(f"written: {do(config, now=time.time())}")
    return EXIT_DONE


def verbalised(request: Request) -> int:
    """Write the prompts of verbalised sampling, or read what was answered."""
    config = request.parse(VERBALISED)
    from nemo_gdpo.evaluation.harness.verbalised import verbalised as do

    print(f"written: {do(config)}")
    return EXIT_DONE
