"""This project's arms: `python -m benchmarks.peers.ours FOLDER ARM RESULT [KEY=VALUE ...]`.

FOLDER is what `workloads.prepare` wrote, RESULT a new JSON file, and settings after it are added to
the run's. The updates are those of `PreferenceTrainer`, in the order of the file.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.gemm import flops_a_second
from nemo_gdpo.config.recipes import run_config
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.data.sampler import PreferenceSampler
from nemo_gdpo.training.mesh import leave_world
from nemo_gdpo.training.run import Run
from nemo_gdpo.training.supply import AllPairs
from nemo_gdpo.training.trainer import PreferenceTrainer

PACKED, SHARED = "data.packing=true", "data.prefix_sharing=true"
ARMS: dict[str, tuple[str, ...]] = {
    "ours, padded": ("reference=cache",),
    "ours, packed": ("reference=cache", PACKED),
    "ours, packed, prompts shared": ("reference=cache", PACKED, SHARED),
    "ours, packed, live": ("reference=resident", PACKED),
}
"""Name -> settings."""
CHECKED = ("loss", "rewards/margins", "logps/chosen", "logps/rejected")


class FileOrder(PreferenceSampler):
    """Pairs in the order of the file."""

    def global_batch(self, consumed: int, global_batch_size: int) -> list[int]:
        """Positions consumed .. consumed + global_batch_size - 1."""
        return list(range(consumed, consumed + global_batch_size))


def overrides(folder: Path, output_dir: Path) -> list[str]:
    """The command line of a prepared folder's run."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    return [
        "objective=dpo",
        f"objective.beta={settings['beta']}",
        f"model.restore_from_path={folder / 'model'}",
        f"model.global_batch_size={settings['batch']}",
        f"model.micro_batch_size={settings['micro']}",
        f"data.train_path={folder / 'pairs.jsonl'}",
        f"data.max_length={settings['max_length']}",
        f"data.max_prompt_length={settings['max_length'] // 2}",
        "data.truncation_mode=error",
        f"precision={settings['precision']}",
        f"optim.lr={settings['lr']}",
        f"optim.weight_decay={settings['weight_decay']}",
        f"optim.betas={settings['betas']}",
        f"optim.eps={settings['eps']}",
        "optim.sched.name=constant",
        f"trainer.gradient_clip_val={settings['clip']}",
        f"trainer.max_steps={settings['updates']}",
        "logger.tensorboard=false",
        "export_hf=false",
        f"output_dir={output_dir}",
    ]


def configured(folder: Path, output_dir: Path, *extra: str) -> RunConfig:
    """The run of a prepared folder."""
    return run_config(*overrides(folder, output_dir), *extra)


def now() -> tuple[float, float]:
    """(wall seconds, CPU seconds), when the device has done what was asked of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def updates(trainer: PreferenceTrainer, count: int) -> list[dict[str, float]]:
    """Make updates; what each took and gave."""
    found, tokens = [], 0
    for _ in range(count):
        wall, cpu = now()
        entry = trainer.train_step()
        ended, used = now()
        found.append(
            {"wall": ended - wall, "cpu": used - cpu, "tokens": entry["num_tokens"] - tokens}
            | {name: entry[name] for name in CHECKED}
        )
        tokens = entry["num_tokens"]
    return found


def floor(trainer: PreferenceTrainer, data: PreferenceDataset, warm_ups: int) -> dict[str, float]:
    """FLOPs of the timed updates' useful tokens, and the rate of this process's matrix products."""
    size = trainer.config.model.global_batch_size
    pairs = [data[n] for n in range(warm_ups * size, trainer.total_steps * size)]
    labels = sum(len(one.chosen.ids) + len(one.rejected.ids) for one in pairs)
    tokens = labels + sum(2 * len(one.prompt_ids) for one in pairs)
    speed, model = trainer.speed, trainer.model.model_config
    dtype = torch.float32 if trainer.config.precision == "fp32" else torch.bfloat16
    clock = 0 if torch.cuda.is_available() else 1
    return {
        "flops": float(
            speed.passes * speed.flops.of_pairs(pairs, prefix_sharing=speed.prefix_sharing)
        ),
        "flops_a_second": flops_a_second(model, labels / tokens, dtype, lambda: now()[clock]),
    }


def measured(config: RunConfig, warm_ups: int) -> dict[str, Any]:
    """The arm's result: updates, the cost of the reference, peak memory, the floor."""
    run = Run.build(config)
    data = run.data["train"]
    with run.holding_output(), run.stop_request() as stop:
        wall, cpu = now()
        references = run.prepare_reference(stop)
        ended, used = now()
        trainer = run.build_trainer(references, stop)
        trainer.sampler = FileOrder(len(data), 0, data.fingerprint)
        trainer.supply = AllPairs(trainer.sampler, trainer.batch_size)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        steps = updates(trainer, trainer.total_steps)
        peak = run.model.platform.peak_memory_bytes()
        under = floor(trainer, data, warm_ups)
    leave_world()
    cached = config.reference == "cache"
    return {
        "steps": steps,
        "reference": {"wall": ended - wall, "cpu": used - cpu} if cached else None,
        "peak_bytes": peak,
        "floor": under,
        "device": run.model.platform.device_name(),
        "versions": {"torch": torch.__version__},
    }


def main(folder: Path, arm: str, result: Path, extra: list[str]) -> None:
    """Measure one arm and write what was found."""
    if not torch.cuda.is_available():
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as output:
        config = configured(folder, Path(output) / "run", *ARMS[arm], *extra)
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        found = measured(config, settings["warm_ups"])
    result.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), sys.argv[2], Path(sys.argv[3]).absolute(), sys.argv[4:])
