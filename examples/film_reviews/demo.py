"""The complete path on real input, on two cores.

SmolLM2-135M-Instruct and human-rated film snippets: pairs, conversion to Megatron, GDPO on a 2-rank
mesh, export, sampling of the base and of the trained model with vLLM, and a report of quality and
diversity. Every stage leaves its result in the run directory and is reused by the next call.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import islice
from pathlib import Path

from examples.film_reviews.inputs import base_model, cli, rated_snippets, run_stages, say
from examples.film_reviews.pairs import Pairing
from examples.film_reviews.prepare import prepare

PROMPTS = 12
SAMPLES = 8
TEMPERATURES = "[0.7,1.0,1.3]"
MAX_TOKENS = 48


def first_prompts(source: Path, target: Path) -> None:
    """The first prompts of the data set's own, one a line."""
    with source.open() as lines:
        target.write_text("".join(islice(lines, PROMPTS)))


def sampled(model: Path, prompts: Path, target: Path) -> None:
    """Answers of one model at each temperature; those that are there already are kept."""
    cli(
        "generate",
        f"model.restore_from_path={model}",
        f"data.prompts_path={prompts}",
        f"output_dir={target}",
        f"generation.num_samples={SAMPLES}",
        f"generation.temperature={TEMPERATURES}",
        f"generation.max_tokens={MAX_TOKENS}",
        "generation.seed=1",
        "generation.dtype=fp32",
    )


def last_metrics(run: Path) -> dict[str, float]:
    """The last line of the training log."""
    lines = (run / "gdpo" / "metrics.jsonl").read_text().splitlines()
    entry: dict[str, float] = json.loads(lines[-1])
    return entry


def main(argv: list[str] | None = None) -> int:
    """Run all stages; returns the exit status."""
    return run_stages("demo", __doc__, stages, "train", argv)


def stages(run: Path, overrides: list[str]) -> None:
    """Everything, in order; a command that fails ends the program with its status.

    Raises:
        UserError: the pairs cannot be made.
    """
    begun = time.perf_counter()
    run.mkdir(parents=True, exist_ok=True)
    base, megatron, data = run / "base-hf", run / "base-megatron", run / "data"

    base_model(base)
    prepare(rated_snippets(), data, Pairing())
    if (megatron / "model_config.json").is_file():
        say(f"Megatron checkpoint: reused {megatron}")
    else:
        cli("convert", "hf-to-megatron", str(base), str(megatron))
    trained = run / "gdpo" / "hf"
    if (trained / "model.safetensors").is_file() and not overrides:
        say(f"trained model: reused {trained}")
    else:
        cli(
            "train",
            "experiment=demo",
            f"model.restore_from_path={megatron}",
            f"data.train_path={data / 'train.jsonl'}",
            f"data.validation_path={data / 'validation.jsonl'}",
            f"output_dir={run / 'gdpo'}",
            *overrides,
        )
    training = last_metrics(run)
    say(
        f"last step: loss {training['loss']:.3f}, margin {training['rewards/margins']:.2f} nats; "
        f"{training['perf/peak_memory_gib_all_ranks']:.1f} GiB resident in all ranks together"
    )
    first_prompts(data / "prompts.jsonl", run / "prompts.jsonl")
    samples = {"base": run / "samples-base", "gdpo": run / "samples-gdpo"}
    for name, model in (("base", base), ("gdpo", trained)):
        sampled(model, run / "prompts.jsonl", samples[name])
    listed = ", ".join(f"{name}: {path}" for name, path in samples.items())
    cli(
        "evaluate",
        f"evaluation.runs={{{listed}}}",
        f"evaluation.reference_model={base}",
        f"evaluation.models={{base: {base}, gdpo: {trained}}}",
        f"evaluation.training={{gdpo: {run / 'gdpo'}}}",
        f"output_dir={run / 'report'}",
    )
    say(f"{time.perf_counter() - begun:.0f} s; the page is {run / 'report' / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main())
