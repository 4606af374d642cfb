"""`nemo-gdpo evaluate lm-eval | alpaca-eval | mt-bench`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from nemo_gdpo.config import compose
from nemo_gdpo.config.command import CONFIG_FLAGS, answered, read_request
from nemo_gdpo.config.downstream import ALPACA_EVAL, LM_EVAL, MT_BENCH
from nemo_gdpo.errors import EXIT_DONE

LM_EVAL_HELP = """\
usage: nemo-gdpo evaluate lm-eval model.restore_from_path=DIR tasks=[TASK, ...]
         [include_path=DIR] [key=value] ...

Runs lm-eval on a Hugging Face directory, offline. output_dir gets lm_eval/NAME.json; the report
shows what it finds there, and is written again where it exists.

  nemo-gdpo evaluate lm-eval model.restore_from_path=runs/gdpo/hf tasks=film_sentiment \\
    include_path=conf/lm_eval output_dir=runs/evaluation
"""
ALPACA_EVAL_HELP = """\
usage: nemo-gdpo evaluate alpaca-eval generations=DIR generator=NAME output=FILE [key=value] ...

Writes the file that `alpaca_eval --model_outputs FILE` reads.
"""
MT_BENCH_HELP = """\
usage: nemo-gdpo evaluate mt-bench step=first|second|answers questions=FILE [key=value] ...

  nemo-gdpo evaluate mt-bench step=first questions=question.jsonl output_dir=runs/mt
  nemo-gdpo generate data.prompts_path=runs/mt/first.jsonl output_dir=runs/mt/turn1 ...
  nemo-gdpo evaluate mt-bench step=second questions=question.jsonl first=runs/mt/turn1 \\
    output_dir=runs/mt
  nemo-gdpo generate data.prompts_path=runs/mt/second.jsonl output_dir=runs/mt/turn2 ...
  nemo-gdpo evaluate mt-bench step=answers questions=question.jsonl first=runs/mt/turn1 \\
    second=runs/mt/turn2 model_id=gdpo output_dir=runs/mt
"""


def lm_eval(arguments: list[str]) -> int:
    """Run lm-eval, and bring a report that is there up to date."""
    request = read_request("evaluate lm-eval", arguments, CONFIG_FLAGS)
    if answered(request, LM_EVAL_HELP, LM_EVAL):
        return EXIT_DONE
    config = LM_EVAL.parse(compose(request.overrides, root=LM_EVAL).plain)
    from nemo_gdpo.evaluation.harness.lm_eval import lm_eval_rows, read_answers, run_lm_eval

    path = run_lm_eval(config)
    output_dir = Path(config.output_dir)
    for row in lm_eval_rows([a for a in read_answers(output_dir) if a["name"] == path.stem]):
        print(" ".join(row[:4]) + (f" ± {row[4]}" if row[4] else ""))
    print(f"kept: {path}")
    from nemo_gdpo.evaluation.report.page import write_report
    from nemo_gdpo.evaluation.results import FILE_NAME, read_results

    if (output_dir / FILE_NAME).is_file():
        print(f"report: {write_report(read_results(output_dir), output_dir)}")
    return EXIT_DONE


def alpaca_eval(arguments: list[str]) -> int:
    """Write AlpacaEval's file."""
    request = read_request("evaluate alpaca-eval", arguments, CONFIG_FLAGS)
    if answered(request, ALPACA_EVAL_HELP, ALPACA_EVAL):
        return EXIT_DONE
    config = ALPACA_EVAL.parse(compose(request.overrides, root=ALPACA_EVAL).plain)
    from nemo_gdpo.evaluation.harness.chat import write_alpaca_eval

    print(f"written: {write_alpaca_eval(config)}")
    return EXIT_DONE


def mt_bench(arguments: list[str]) -> int:
    """Do one step of MT-Bench."""
    request = read_request("evaluate mt-bench", arguments, CONFIG_FLAGS)
    if answered(request, MT_BENCH_HELP, MT_BENCH):
        return EXIT_DONE
    config = MT_BENCH.parse(compose(request.overrides, root=MT_BENCH).plain)
    from nemo_gdpo.evaluation.harness.chat import mt_bench as do

    print(f"written: {do(config, now=time.time())}")
    return EXIT_DONE


SUBVERBS: dict[str, Callable[[list[str]], int]] = {
    "lm-eval": lm_eval,
    "alpaca-eval": alpaca_eval,
    "mt-bench": mt_bench,
}
"""What may follow `nemo-gdpo evaluate`."""
