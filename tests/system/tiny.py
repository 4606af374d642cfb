"""A tiny random Llama with a real tokenizer, preference pairs, the command line as a process."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tests.data.toy_tokenizers import LLAMA3, build_tokenizer

ROOT = Path(__file__).parents[2]
WORDS = [
    "good",
    "bad",
    "dull",
    "long",
    "short",
    "film",
    "review",
    "liked",
    "very",
    "much",
    "and",
    "it",
    "was",
    "a",
    "fine",
    "answer",
]
DEADLINE = 150.0
"""Seconds after which a command is taken to hang."""
QUIET = ["logger.tensorboard=false", "export_hf=false"]


def save_model(directory: Path, *, seed: int = 7, **changes: Any) -> Path:
    """A Hugging Face directory: 2 layers, 4 heads, 2 KV groups, tokenizer with chat template."""
    headers = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = build_tokenizer(
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        extra=headers,
        template=LLAMA3,
        adds_bos=True,
    )
    stop = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")]
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": stop,
    }
    model = LlamaForCausalLM(LlamaConfig(**(shape | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1 + (parameter.dim() == 1))
    model.generation_config = GenerationConfig(eos_token_id=stop)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def pairs(count: int, *, seed: int = 0, scores: bool = True) -> list[dict[str, Any]]:
    """Rows of messages with scores; responses of 2 to 9 words, never equal."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        chosen, rejected = (
            " ".join(draw.choices(WORDS, k=draw.randint(2, 9))) + f" {side} {number}"
            for side in ("one", "two")
        )
        row: dict[str, Any] = {
            "id": f"pair-{number}",
            "prompt": [{"role": "user", "content": " ".join(draw.choices(WORDS, k=4))}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        if scores:
            row |= {"chosen_score": 2.0 + number % 3, "rejected_score": 1.0 - number % 2}
        rows.append(row)
    return rows


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines))
    return path


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """Lines in which the program itself speaks of an error."""
        return [line for line in self.err.splitlines() if line.startswith("nemo-gdpo: ")]


def environment() -> dict[str, str]:
    # One thread a rank, and no world of a test runner that is itself a rank.
    world = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in world}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@contextlib.contextmanager
def started(verb: str, *overrides: str, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """The command line in a separate process; killed with its ranks if a test fails."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nemo_gdpo.cli", verb, *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        cwd=cwd,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:  # only when the test failed: the command stops its own ranks
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
            process.kill()
        process.wait()


def finish(process: subprocess.Popen[str]) -> Result:
    out, err = process.communicate(timeout=DEADLINE)
    return Result(process.returncode, out, err)


def cli(verb: str, *overrides: str, cwd: Path | None = None) -> Result:
    with started(verb, *overrides, cwd=cwd) as process:
        return finish(process)


def wait_for_step(process: subprocess.Popen[str], output: Path, step: int) -> None:
    """Until metrics.jsonl has the line of `step`."""
    path = output / "metrics.jsonl"
    limit = time.monotonic() + DEADLINE
    while time.monotonic() < limit:
        if path.is_file() and f'"step": {step},' in path.read_text():
            return
        if process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}:\n{process.stderr.read()}")  # type: ignore[union-attr]
        time.sleep(0.005)
    raise AssertionError(f"step {step} did not come")


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def without_timing(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in e.items() if not k.startswith("perf/")} for e in entries]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def several(directory: Path, cases: dict[str, list[str]], *, ranks: int = 1) -> dict[str, Result]:
    """Run command lines one after the other in one process, or in one world of `ranks` processes.

    See `tests.system.several`. The results are rank 0's.
    """
    directory.mkdir(parents=True, exist_ok=True)
    described = [
        {
            "argv": argv,
            "out": str(directory / f"{n}.out"),
            "err": str(directory / f"{n}.err"),
            "port": _free_port(),
        }
        for n, argv in enumerate(cases.values())
    ]
    listing = directory / "cases.json"
    listing.write_text(json.dumps(described))
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.system.several", str(listing)]
            + ([str(rank), str(ranks)] if ranks > 1 else []),
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
            cwd=ROOT,
        )
        for rank in range(ranks)
    ]
    try:
        printed = [process.communicate(timeout=2 * DEADLINE)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    statuses = json.loads(printed[0].splitlines()[-1])
    return {
        name: Result(status, Path(case["out"]).read_text(), Path(case["err"]).read_text())
        for name, status, case in zip(cases, statuses, described, strict=True)
    }


def common(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    """Overrides that every tiny run has: batches of 4 pairs, a rate that shows."""
    return [
        f"model.restore_from_path={model}",
        f"data.train_path={data}",
        f"output_dir={output}",
        "model.global_batch_size=4",
        "model.micro_batch_size=2",
        "data.max_length=96",
        "data.max_prompt_length=48",
        "optim.lr=1e-3",
        *QUIET,
        *more,
    ]


def steps(number: int) -> list[str]:
    return [f"trainer.max_steps={number}", "trainer.max_epochs=null"]
