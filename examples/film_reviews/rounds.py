"""Two rounds of a GFlowNet on real input, on two cores: what `make rounds` runs.

SmolLM2-135M-Instruct writes about films. An answer has to be short and to leave out some words that
it likes; VADER's sentiment is the reward. Each round samples, scores, makes groups and trains an
adapter; the report shows both rounds. Stopped at any place, the same command goes on.
"""

from __future__ import annotations

import sys
import time
from itertools import islice
from pathlib import Path

from examples.film_reviews.inputs import base_model, cli, rated_snippets, run_stages, say
from examples.film_reviews.pairs import Pairing
from examples.film_reviews.prepare import prepare

PROMPTS = 8
FORBIDDEN = "[masterpiece, unforgettable, journey]"


def first_prompts(source: Path, target: Path) -> None:
    """The first prompts of the data set's own, one a line."""
    with source.open() as lines:
        target.write_text("".join(islice(lines, PROMPTS)))


def stages(run: Path, overrides: list[str]) -> None:
    """Model, prompts, rounds; a command that fails ends the program with its status.

    Raises:
        UserError: the prompts cannot be made.
    """
    begun = time.perf_counter()
    run.mkdir(parents=True, exist_ok=True)
    base_model(run / "base-hf")
    prepare(rated_snippets(), run / "data", Pairing())
    first_prompts(run / "data" / "prompts.jsonl", run / "prompts.jsonl")
    cli(
        "rounds",
        "objective=gflownet",
        # VADER's scale is -1 to 1: a tenth makes it up to 10 nats either way.
        "objective.beta=0.1",
        f"model.restore_from_path={run / 'base-hf'}",
        f"rounds.prompts_path={run / 'prompts.jsonl'}",
        f"output_dir={run / 'rounds'}",
        "rounds.number=2",
        "rounds.rewards=[vader]",
        "rounds.replay.share=0.25",
        "constraints.max_words=40",
        f"constraints.forbidden={FORBIDDEN}",
        "generation.num_samples=8",
        "generation.temperature=[1.0,1.3]",
        "generation.max_tokens=64",
        "generation.logprobs=cumulative",
        "generation.dtype=fp32",
        "data.group_size=4",
        "data.max_prompt_length=128",
        "data.max_length=256",
        "lora.rank=8",
        "lora.alpha=16",
        "reference=adapter_off",
        "export_hf=false",
        "model.global_batch_size=8",
        "model.micro_batch_size=2",
        "optim=adamw_constant",
        "optim.lr=2e-4",
        "trainer.max_steps=6",
        "trainer.max_epochs=null",
        "logger.tensorboard=false",
        *overrides,
    )
    say(f"{time.perf_counter() - begun:.0f} s; the page is {run / 'rounds' / 'report.html'}")


def main(argv: list[str] | None = None) -> int:
    """Run all of it; returns the exit status."""
    return run_stages("rounds", __doc__, stages, "rounds", argv)


if __name__ == "__main__":
    sys.exit(main())
