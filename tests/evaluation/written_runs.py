"""Directories as `nemo-gdpo generate` leaves them, without sampling anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.evaluation import EVALUATE
from nemo_gdpo.evaluation.evaluate import evaluate
from nemo_gdpo.evaluation.results import Point, Results

NO_ENCODER = "evaluation.encoder=null"
PLAIN = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0}
GOOD = [
    "It was a wonderful film and I liked it very much.",
    "A moving story, well told, and the actors are a joy to watch.",
    "I was bored for most of it, but the last scene is good.",
    "The film is short, funny and full of charm.",
]


def row(
    prompt_id: str, outputs: Sequence[str], *, prompt: Any = None, **changes: Any
) -> dict[str, Any]:
    """One line of generations-*.jsonl."""
    return {
        "id": prompt_id,
        "prompt": prompt or [{"role": "user", "content": f"Review the film {prompt_id}."}],
        "sampling": dict(PLAIN),
        "outputs": list(outputs),
        "finish_reasons": ["stop"] * len(outputs),
        "seeds": list(range(len(outputs))),
        "model_hash": "a" * 64,
    } | changes


def at(temperature: float) -> dict[str, Any]:
    return PLAIN | {"temperature": temperature}


def write_run(directory: Path, rows: Sequence[Mapping[str, Any] | str], *, shard: int = 0) -> Path:
    """A directory with one shard; a text is written as it is."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = (line if isinstance(line, str) else json.dumps(line) + "\n" for line in rows)
    (directory / f"generations-{shard:05d}.jsonl").write_text("".join(lines))
    return directory


def ordinary(directory: Path, *, prompts: int = 4, **changes: Any) -> Path:
    """Four sensible responses to each prompt, in another order each time."""
    return write_run(
        directory,
        [row(f"p{n}", [GOOD[(n + k) % 4] for k in range(4)], **changes) for n in range(prompts)],
    )


def run(output: Path, runs: dict[str, Path], *overrides: str) -> Results:
    """A complete evaluation in this process."""
    named = ", ".join(f"{name}: {path}" for name, path in runs.items())
    arguments = [
        f"evaluation.runs={{{named}}}",
        f"output_dir={output}",
        "evaluation.bootstrap.resamples=200",
        *overrides,
    ]
    return evaluate(EVALUATE.parse(compose(arguments, root=EVALUATE).plain))


def point(results: Results, name: str = "base", number: int = 0) -> Point:
    (found,) = (entry for entry in results.runs if entry.name == name)
    return found.points[number]
