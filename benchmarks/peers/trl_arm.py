"""TRL's arms: `python benchmarks/peers/trl_arm.py FOLDER ARM RESULT [LINES]`, by a Python that has
TRL. LINES is a file that gets a line after each update.

Imports nothing of this project. `DPOTrainer` as it is, with its defaults but for what all arms
agree on: no shuffling, AdamW's settings, and no gradient checkpointing, since no other arm
recomputes. Its weights stay in float32 below bfloat16's autocast, as it loads them.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from torch.utils.data import SequentialSampler

ARMS: dict[str, dict[str, Any]] = {
    "TRL, live": {},
    "TRL, precomputed": {"precompute_ref_log_probs": True},
}
"""Name -> arguments of `DPOConfig`."""
CHECKED = ("loss", "rewards/margins", "logps/chosen", "logps/rejected")


def now() -> tuple[float, float]:
    """(wall seconds, CPU seconds), when the device has done what was asked of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


class Timer(transformers.TrainerCallback):
    """From the end of one update to the end of the next: batches, both passes, optimizer."""

    def __init__(self, lines: Path | None) -> None:
        self.lines = lines
        self.ends: list[tuple[float, float]] = []
        self.logs: list[dict[str, float]] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Memory from here on is training's."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.ends.append(now())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """After the optimizer's step."""
        self.ends.append(now())

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """What `DPOTrainer` found in an update."""
        if "loss" in logs:
            self.logs.append({name: float(logs[name]) for name in CHECKED})
            if self.lines is not None:
                with self.lines.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(self.logs[-1]) + "\n")


class InOrder(trl.DPOTrainer):
    """Pairs in the order of the file; the cost of precomputing the reference is noted."""

    reference: dict[str, float] | None = None

    def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def _precompute_ref_logps(self, *given: Any, **named: Any) -> datasets.Dataset:
        wall, cpu = now()
        found = super()._precompute_ref_logps(*given, **named)
        ended, used = now()
        self.reference = {"wall": ended - wall, "cpu": used - cpu}
        return found


def arguments(settings: dict[str, Any], output: str, **of_arm: Any) -> trl.DPOConfig:
    """The settings that all arms share, in TRL's words."""
    on_cpu = settings["device"] == "cpu"
    return trl.DPOConfig(
        output_dir=output,
        beta=settings["beta"],
        max_length=settings["max_length"],
        per_device_train_batch_size=settings["micro"],
        gradient_accumulation_steps=settings["batch"] // settings["micro"],
        max_steps=settings["updates"],
        learning_rate=settings["lr"],
        lr_scheduler_type="constant",
        weight_decay=settings["weight_decay"],
        adam_beta1=settings["betas"][0],
        adam_beta2=settings["betas"][1],
        adam_epsilon=settings["eps"],
        max_grad_norm=settings["clip"],
        bf16=settings["precision"] == "bf16",
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **of_arm,
    )


def tokens_of(rows: datasets.Dataset, batch: int) -> list[int]:
    """Tokens of both sequences of every pair, for each update."""
    counts = [
        2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
        for row in rows
    ]
    return [sum(counts[start : start + batch]) for start in range(0, len(counts), batch)]


def measured(folder: Path, arm: str, output: str, lines: Path | None) -> dict[str, Any]:
    """The arm's result: updates, the cost of the reference, peak memory."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    if settings["device"] == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"error: the torch of {sys.executable} sees no GPU; give TRL one with it")
    given = (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{k: v for k, v in json.loads(line).items() if k != "id"} for line in given]
    timer = Timer(lines)
    trainer = InOrder(
        model=str(folder / "model"),
        args=arguments(settings, output, **ARMS[arm]),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(str(folder / "model")),
        callbacks=[timer],
    )
    trainer.train()
    on_gpu = torch.cuda.is_available()
    steps = [
        {"wall": end[0] - begun[0], "cpu": end[1] - begun[1], "tokens": tokens} | logged
        for begun, end, tokens, logged in zip(
            timer.ends[:-1], timer.ends[1:],
            tokens_of(trainer.train_dataset, settings["batch"]), timer.logs, strict=True,
        )
    ]  # fmt: skip
    return {
        "steps": steps,
        "reference": trainer.reference,
        "peak_bytes": torch.cuda.max_memory_allocated()
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "versions": {
            "trl": trl.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
    }


def main(folder: Path, arm: str, result: Path, lines: Path | None = None) -> None:
    """Measure one arm and write what was found."""
    if not torch.cuda.is_available():
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as output:
        found = measured(folder, arm, output, lines)
    result.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(
        Path(sys.argv[1]).absolute(), sys.argv[2], Path(sys.argv[3]).absolute(),
        *map(Path, sys.argv[4:5]),
    )  # fmt: skip
