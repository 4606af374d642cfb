"""How long training stands still for a checkpoint, written at once or beside it.

    python -m benchmarks.checkpoint --gib 1.5              two ranks (TP2), random weights, CPU
    python -m benchmarks.checkpoint --gib 1.5 --repeats 5 --folder /scratch/somewhere

Each repeat writes one checkpoint at once and one in the background, while updates of four short
pairs go on. Before that, one file is hashed while it is written, and another read back for it.
Prints tables; `RESULTS.md` has what it gave, and where. Memory: about 4.5 times the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

RANKS, PAIRS, VOCABULARY, END = 2, 4, 1000, 2
HIDDEN, INTERMEDIATE = 1024, 4096
LAYER = 4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE
"""Parameters of a layer without its norms."""
BYTES = 12
"""Of a parameter in float32: weight and two moments."""


def save_model(folder: Path, gib: float) -> int:
    """A random Llama whose checkpoint has about this size; returns its parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=max(1, round(gib * 2**30 / BYTES / LAYER)),
        num_attention_heads=16,
        num_key_value_heads=16,
        bos_token_id=1,
        eos_token_id=END,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return int(sum(parameter.numel() for parameter in model.parameters()))


def pairs() -> Any:
    """A data set of short pairs of random tokens."""
    from nemo_gdpo.data.dataset import PreferenceDataset, collect_arrays
    from nemo_gdpo.data.tokenize import TokenizeStats
    from nemo_gdpo.data.types import TokenizedPair, TokenizedResponse

    draw = random.Random(1)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, VOCABULARY) for _ in range(count))

    arrays = collect_arrays(
        TokenizedPair(
            f"pair-{number}",
            tokens(8),
            TokenizedResponse((*tokens(8), END), True),
            TokenizedResponse((*tokens(8), END), True),
        )
        for number in range(PAIRS)
    )
    stats = TokenizeStats(pairs=PAIRS, end_token_id=END)
    return PreferenceDataset(arrays, end_token_id=END, pad_token_id=0, stats=stats)


def measure(folder: Path, repeats: int) -> list[dict[str, float]]:
    """One rank: seconds of every repeat."""
    import torch

    from nemo_gdpo.config.composition import compose
    from nemo_gdpo.config.schema import TRAIN
    from nemo_gdpo.launch.logging import quiet_libraries
    from nemo_gdpo.training.checkpoint import Checkpointer
    from nemo_gdpo.training.export import write_assets
    from nemo_gdpo.training.run import Run

    torch.set_num_threads(1)
    quiet_libraries()
    given = [
        "objective=dpo",
        f"model.restore_from_path={folder / 'model'}",
        f"model.tensor_model_parallel_size={RANKS}",
        f"model.global_batch_size={PAIRS}",
        "data.train_path=none.jsonl",
        "data.max_length=64",
        "data.max_prompt_length=32",
        f"output_dir={folder / 'run'}",
        "logger.tensorboard=false",
    ]
    run = Run.build(TRAIN.parse(compose(given, TRAIN).plain), data={"train": pairs()})
    stop = run.stop_request()
    trainer = run.build_trainer(run.prepare_reference(stop), stop)
    trainer.train_step()
    savers = [
        Checkpointer(
            folder / name, run.model, trainer.optimizer, run.mesh,
            write_assets=partial(write_assets, run), keep=1, in_background=beside,
        )
        for name, beside in (("sync", False), ("async", True))
    ]  # fmt: skip
    return [one_repeat(trainer, *savers, number) for number in range(repeats)]


def one_repeat(trainer: Any, at_once: Any, beside: Any, number: int) -> dict[str, float]:
    """A checkpoint at once, an update alone, a checkpoint beside updates."""
    at_once.save(number, trainer.state())
    begun = time.perf_counter()
    trainer.train_step()
    alone = time.perf_counter() - begun
    steps: list[float] = []
    beside.save(number, trainer.state())
    while beside._saving is not None:
        begun = time.perf_counter()
        trainer.train_step()
        steps.append(time.perf_counter() - begun)
        beside.poll()
    written = sum(f.stat().st_size for f in (beside.newest(number) / "dist").glob("*.distcp"))
    return {
        "gib": written / 2**30,
        "sync": at_once.stood_still,
        "async": beside.stood_still,
        "beside": sum(beside.timings.values()) - beside.stood_still,
        "copy": beside.timings["copy"],
        "step": alone,
        "step_beside": statistics.mean(steps),
    }


def of_hashing(folder: Path, mib: int) -> str:
    """Seconds to write a file and know its hash: while it is written, or read back."""
    from nemo_gdpo.io.files import file_sha256
    from nemo_gdpo.io.hashed_file import HashedFile

    piece = random.Random(2).randbytes(1 << 20) * 64
    took = []
    for name, reads_back in (("written", False), ("back", True)):
        begun = time.perf_counter()
        if reads_back:
            with (folder / name).open("wb") as plain:
                for _ in range(mib // 64):
                    plain.write(piece)
                plain.flush()
                os.fsync(plain.fileno())
            file_sha256(folder / name)
        else:
            with HashedFile(folder / name) as file:
                for _ in range(mib // 64):
                    file.write(piece)
        took.append(time.perf_counter() - begun)
        (folder / name).unlink()
    return f"| {mib} | {took[0]:.2f} | {took[1]:.2f} |"


def spread(values: Sequence[float]) -> str:
    """Median, and the range."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def table(found: Sequence[dict[str, float]], parameters: int) -> str:
    """The lines for `RESULTS.md`."""
    columns = {
        "at once, s": [each["sync"] for each in found],
        "beside, s": [each["async"] for each in found],
        "ratio": [each["sync"] / each["async"] for each in found],
        "of it copying, s": [each["copy"] for each in found],
        "written beside, s": [each["beside"] for each in found],
        "update alone, s": [each["step"] for each in found],
        "update beside, s": [each["step_beside"] for each in found],
    }
    heading = ["parameters", "GiB", *columns]
    row = [f"{parameters / 1e6:.0f}M", f"{found[0]['gib']:.2f}", *map(spread, columns.values())]
    lines = [heading, ["---"] * len(heading), row]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def start_ranks(folder: Path, repeats: int) -> None:
    """Run this module as every rank of a world, and wait for all."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "benchmarks.checkpoint", "--repeats", str(repeats)]
    ranks = [
        subprocess.Popen(
            [*command, "--rank-in", str(folder)],
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(RANKS)
    ]
    failed = [rank.wait() for rank in ranks]
    if any(failed):
        sys.exit(f"the ranks ended with {failed}")


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=1.5, help="size of a checkpoint")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the file system that is measured")
    parser.add_argument("--rank-in", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank_in is not None:
        found = measure(given.rank_in, given.repeats)
        if os.environ["RANK"] == "0":
            (given.rank_in / "found.json").write_text(json.dumps(found))
        return
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=given.folder))
    try:
        print("| MiB | hashed while written, s | read back and hashed, s |\n|---|---|---|")
        print(of_hashing(folder, 1024), flush=True)
        parameters = save_model(folder / "model", given.gib)
        start_ranks(folder, given.repeats)
        print(table(json.loads((folder / "found.json").read_text()), parameters))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
