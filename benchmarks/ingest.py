"""Tokenising many pairs, and loading them: `python -m benchmarks.ingest --pairs 300000`.

Synthetic pairs, half of them text and half messages, of lengths like those of `batching.py`, are
written as JSON lines, tokenised as `nemo-gdpo prepare` does it, and loaded as a rank does. Every
number is of a process that did nothing else: seconds, CPU seconds, and the peak of what its tree
holds in memory that no file backs, above what it held with the tokenizer alone. Pages of mapped
files are not in it: the kernel takes them back when it needs them.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from math import log
from pathlib import Path
from typing import Any

import numpy as np

SPREAD, LONGEST = 0.8, 2048
PROMPT, CHOSEN, REJECTED = 190, 340, 290
"""Mean tokens, as the instructions of `batching.py`; a short word is a token."""
WORDS = 4096
GIB = 1 << 30


def _tokenizer() -> Any:
    """Byte-level BPE over words of two to five letters, with the template of ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=16384,
        special_tokens=["<|end|>", "<|begin|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([f" {word}" for word in words()], trainer)
    found = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>")
    found.add_special_tokens({"additional_special_tokens": ["<|begin|>"]})
    found.chat_template = (
        "{% for m in messages %}<|begin|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
    )
    return found


def words() -> list[str]:
    """The words of all texts."""
    draw = random.Random(1)
    return ["".join(draw.choices("aeinorst", k=draw.randint(2, 5))) for _ in range(WORDS)]


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Pairs as people write them."""
    draw, vocabulary = random.Random(2), words()

    def text(mean: int, most: int) -> str:
        length = round(draw.lognormvariate(log(mean) - SPREAD**2 / 2, SPREAD))
        return " " + " ".join(draw.choices(vocabulary, k=max(2, min(length, most))))

    for number in range(count):
        texts = [text(PROMPT, LONGEST // 2), text(CHOSEN, 900), text(REJECTED, 900)]
        if number % 2:
            roles = ("user", "assistant", "assistant")
            texts = [
                [{"role": role, "content": said.strip()}]  # type: ignore[misc]
                for role, said in zip(roles, texts, strict=True)
            ]
        made = dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
        yield {"id": f"pair-{number:08d}", **made, "source": "synthetic"}


def _held(pid: int) -> int:
    """Bytes that a process and its children hold and no file backs; shared ones count once."""
    total = 0
    todo = [pid]
    while todo:
        one = todo.pop()
        try:
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss_Anon:"):
                    total += int(line.split()[1]) * 1024
            for task in Path(f"/proc/{one}/task").iterdir():
                todo += map(int, (task / "children").read_text().split())
        except OSError:  # it has ended just now
            continue
    return total


def _cpu() -> float:
    """Seconds of this process and of the children that it has waited for."""
    return sum(os.times()[:4])


class _Measured:
    """Seconds and the most memory of this process and its children, looked at ten times a second.

    The looking takes part of the CPU seconds: a few milliseconds each time.
    """

    def __init__(self) -> None:
        self._before = self._most = _held(os.getpid())
        self._began, self._cpu = time.perf_counter(), _cpu()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_over.wait(0.1):
            self._most = max(self._most, _held(os.getpid()))

    def end(self) -> dict[str, Any]:
        """What it took."""
        seconds, cpu = time.perf_counter() - self._began, _cpu() - self._cpu
        self._is_over.set()
        self._thread.join()
        most = max(self._most, _held(os.getpid())) - self._before
        return {"seconds": seconds, "cpu": cpu, "bytes": most}


def _tokenise(source: Path, target: Path, workers: int) -> dict[str, Any]:
    from nemo_gdpo.data import build_dataset, save_prepared

    tokenizer = _tokenizer()
    chosen: dict[str, Any] = {"workers": workers, "output": target}
    known = inspect.signature(build_dataset).parameters  # an earlier state has neither
    measured = _Measured()
    made = build_dataset(
        source, tokenizer, max_length=LONGEST, max_prompt_length=LONGEST // 2,
        **{name: value for name, value in chosen.items() if name in known},
    )  # fmt: skip
    took, measured = measured.end(), _Measured()
    save_prepared(made, target)
    return {
        **took,
        "writing": measured.end(),
        "tokens": made.stats.prompt_tokens + made.stats.response_tokens,
        "fingerprint": made.fingerprint,
    }


def _multiply(source: Path, target: Path, times: int) -> str:
    """Prepared pairs many times over, under other ids; the fingerprint."""
    from nemo_gdpo.data import PreferenceDataset, load_prepared, save_prepared
    from nemo_gdpo.data.dataset import PairArrays

    data = load_prepared(source)
    arrays = data.arrays
    many = PairArrays(
        np.tile(arrays.tokens, times),
        np.concatenate(([0], np.tile(np.diff(arrays.offsets), times).cumsum())),
        np.tile(arrays.complete, (times, 1)),
        np.tile(arrays.scores, (times, 1)),
        [f"{name}-{copy}" for copy in range(times) for name in arrays.ids],
        list(arrays.metas) * times,
    )
    made = PreferenceDataset(
        many, end_token_id=data.end_token_id, pad_token_id=data.pad_token_id, stats=data.stats
    )
    save_prepared(made, target)
    return made.fingerprint


def _load(target: Path, verified: str) -> dict[str, Any]:
    from nemo_gdpo.data import load_prepared

    # An earlier state of the program has every rank look through all of it.
    known = "verified" in inspect.signature(load_prepared).parameters
    arguments: dict[str, Any] = {"verified": verified} if known and verified else {}
    measured = _Measured()
    data = load_prepared(target, **arguments)
    for index in range(0, len(data), max(1, len(data) // 1000)):
        _ = data[index]
    return measured.end()


def alone(*arguments: object) -> dict[str, Any]:
    """What one step says, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.ingest", *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _row(step: str, processes: int, took: dict[str, Any]) -> str:
    numbers = f"{took['seconds']:.2f} | {took['cpu']:.2f} | {took['bytes'] / GIB:.4f}"
    return f"| {step} | {processes} | {numbers} |"


def _report(pairs: int, times: int, directory: Path) -> None:
    source = directory / "pairs.jsonl"
    with source.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(pairs))
    cpus = len(os.sched_getaffinity(0))
    size, machine = source.stat().st_size / GIB, platform.machine()
    print(f"{pairs} pairs, {size:.2f} GiB of JSON lines; {cpus} CPUs, {machine}\n")
    print("| step | processes | seconds | CPU seconds | peak GiB |")
    print("|---|---|---|---|---|", flush=True)
    fingerprints = set()
    for workers in sorted({1, cpus}):
        target = directory / f"of-{workers}"
        made = alone("--tokenise", source, "--to", target, "--workers", workers)
        fingerprints.add(made["fingerprint"])
        print(_row("tokenise", workers, made), flush=True)
        print(_row("write", 1, made["writing"]), flush=True)
    many = directory / "many"
    fingerprint = alone("--multiply", target, "--to", many, "--times", times)["fingerprint"]
    loads = ((target, made["fingerprint"], pairs), (many, fingerprint, pairs * times))
    for prepared, known, count in loads:
        for rank, verified in (("main", ""), ("other", known)):
            took = alone("--load", prepared, "--verified", verified)
            print(_row(f"load {count} pairs, {rank} rank", 1, took), flush=True)
    print(f"\n{made['tokens']} tokens; fingerprints equal: {len(fingerprints) == 1}")


def main() -> None:
    """Run all steps, or the one that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=300_000)
    parser.add_argument("--times", type=int, default=1, help="load that many copies as well")
    parser.add_argument("--directory", type=Path, help="with room for the pairs three times")
    for step in ("--tokenise", "--to", "--load", "--multiply"):
        parser.add_argument(step, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--verified", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.tokenise is not None:
        print(json.dumps(_tokenise(asked.tokenise, asked.to, asked.workers)))
    elif asked.multiply is not None:
        print(json.dumps({"fingerprint": _multiply(asked.multiply, asked.to, asked.times)}))
    elif asked.load is not None:
        print(json.dumps(_load(asked.load, asked.verified)))
    else:
        with tempfile.TemporaryDirectory(dir=asked.directory) as directory:
            _report(asked.pairs, asked.times, Path(directory))


if __name__ == "__main__":
    main()
