"""Stages of rounds without models: what each verb would write, made from its configuration."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nemo_gdpo.config.composition import compose, read_config
from nemo_gdpo.config.generation import GENERATE
from nemo_gdpo.config.pairs import PAIRS, PairsConfig
from nemo_gdpo.config.rounds import GROUPS, ROUNDS, SCORE, RoundsConfig
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.conversion.atomic import staged_directory
from nemo_gdpo.generation.manifest import MANIFEST
from nemo_gdpo.io.arrays import Cache
from nemo_gdpo.launch.signals import StopRequest
from nemo_gdpo.pairing.pairs import make_pairs
from nemo_gdpo.rounds.groups import make_groups
from nemo_gdpo.rounds.score import score
from tests.support.data import WORDS, write_jsonl

PROMPTS = ["a film", "a book", "a play", "a song"]


class Crash(BaseException):
    """kill -9: nothing after it happens."""


def prompts_file(root: Path) -> Path:
    rows = [{"id": f"p{n}", "prompt": text} for n, text in enumerate(PROMPTS)]
    return write_jsonl(root / "prompts.jsonl", rows)


def model_directory(path: Path, value: float = 1.0) -> Path:
    path.mkdir(parents=True)
    save_file({"weight": torch.full((2,), value)}, path / "model.safetensors")
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


def config_of(root: Path, *more: str, output: str = "out") -> RoundsConfig:
    """Two rounds of groups of four from eight answers, scored by their lengths."""
    if not (root / "prompts.jsonl").is_file():
        prompts_file(root)
        model_directory(root / "model")
    given = [
        f"model.restore_from_path={root / 'model'}",
        f"rounds.prompts_path={root / 'prompts.jsonl'}",
        f"output_dir={root / output}",
        "objective=gflownet",
        "rounds.number=2",
        "rounds.encoder=null",
        "rounds.rewards=[{kind: python, entry_point: 'tests.rounds.stand_in:words_of'}]",
        "generation.num_samples=8",
        "data.group_size=4",
    ]
    return ROUNDS.parse(compose([*given, *more], ROUNDS).plain)


def words_of(prompts: list[Any], responses: list[str]) -> list[float]:
    """A reward: the number of words, half of it."""
    return [len(text.split()) / 2 for text in responses]


class Runner:
    """Carries stages out; may crash before or after one."""

    def __init__(self, *, before: str | None = None, after: str | None = None) -> None:
        self.ran: list[str] = []
        self._before, self._after = before, after

    def __call__(self, verb: Sequence[str], file: Path, stop: StopRequest) -> int:
        name = f"{file.parent.name}/{file.stem}"
        if name == self._before:
            raise Crash
        self.ran.append(name)
        status = _carry_out(list(verb), file)
        if name == self._after:
            raise Crash
        return status


def _carry_out(verb: list[str], file: Path) -> int:
    if verb == ["generate"]:
        return _generate(read_config(file, GENERATE))
    if verb == ["train"]:
        return _train(read_config(file, TRAIN))
    if verb == ["pairs"]:
        return _pairs(read_config(file, PAIRS))
    with Cache(file.parent / "cache" / "arrays.sqlite") as cache:
        if verb == ["rounds", "score"]:
            score(read_config(file, SCORE), cache)
        else:
            assert verb == ["rounds", "groups"]
            make_groups(read_config(file, GROUPS), cache)
    return 0


def _pairs(config: PairsConfig) -> int:
    output = Path(config.output_dir)
    with Cache(output / "cache" / "arrays.sqlite") as cache:
        found = make_pairs(config, cache)
    output.mkdir(parents=True, exist_ok=True)
    (output / "pairs.jsonl").write_text(found.text())
    (output / "stats.json").write_text(json.dumps(found.stats()))
    return 0


def _generate(config: Any) -> int:
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    model = Path(config.model.restore_from_path)
    weights = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    lines = []
    for line in Path(config.data.prompts_path).read_text().splitlines():
        given = json.loads(line)
        for temperature in config.generation.temperature:
            draw = random.Random(f"{weights} {config.generation.seed} {given['id']} {temperature}")
            outputs = [
                " ".join(draw.choices(WORDS, k=draw.randint(1, 9)))
                for _ in range(config.generation.num_samples)
            ]
            sampling = {"temperature": temperature, "top_p": 1.0, "min_p": 0.0, "top_k": 0}
            broken = [["max_words"] if len(text.split()) > 6 else [] for text in outputs]
            lines.append(
                {
                    **given,
                    "sampling": sampling,
                    "outputs": outputs,
                    "finish_reasons": ["stop"] * len(outputs),
                    "model_hash": weights,
                    "cumulative_logprobs": [-2.0 * len(text.split()) for text in outputs],
                    "token_counts": [len(text.split()) + 1 for text in outputs],
                }
                | (
                    {"broken": broken, "constraints_met": [not names for names in broken]}
                    if config.constraints.max_words is not None
                    else {}
                )
            )
    write_jsonl(output / "generations-00000.jsonl", lines)
    (output / MANIFEST).write_text(json.dumps({"settings": {"date": None}}))
    return 0


def _train(config: Any) -> int:
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    start = Path(config.model.restore_from_path) / "model.safetensors"
    seen = start.read_bytes() + Path(config.data.train_path).read_bytes()
    value = int.from_bytes(hashlib.sha256(seen).digest()[:2], "big")
    lines = [
        {"step": step, "loss": 2.0 - step, "logps/chosen": -3.0, "reference_logps/chosen": -3.5,
         "logps/rejected": -4.0, "reference_logps/rejected": -4.25, "gflownet/log_z": 1.5}
        for step in range(2)
    ]  # fmt: skip
    write_jsonl(output / "metrics.jsonl", lines)
    with staged_directory(output / "hf", kind="hf", key={}, expected_bytes=64) as staging:
        save_file({"weight": torch.full((2,), float(value))}, staging.path / "model.safetensors")
        (staging.path / "config.json").write_text('{"model_type": "llama"}')
    return 0


def results(output: Path) -> dict[str, str]:
    """Path -> contents of all that a run leaves, its own place and caches aside."""
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        .decode("latin-1")
        .replace(str(output), "OUT")
        for path in sorted(output.rglob("*"))
        if path.is_file() and "cache" not in path.parts and path.name != ".lock"
    }
