"""One rank of a launch: all cases of its world, one after the other, in one process group.

`python -m tests.parallel.rank_main FOLDER [KEY ...]` under RANK and WORLD_SIZE. FOLDER holds the
models; rank 0 writes `FOLDER/world<size>.json`, key of the case -> what it found. A case that
raises is written down with its traceback, and ends the launch: the ranks may be out of step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.conversion.adapters import adapted_matrices
from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.formats.adapter_checkpoint import AdapterRecord, write_adapter_record
from nemo_gdpo.errors import RunError
from nemo_gdpo.launch.logging import quiet_libraries
from nemo_gdpo.models.lora import adapters
from nemo_gdpo.models.preference_model import PreferenceModel
from nemo_gdpo.models.sharded_save import save_sharded
from nemo_gdpo.models.weights import SHARDING_METADATA, load_weights, trained_weights
from nemo_gdpo.platform import current_platform
from nemo_gdpo.training.mesh import join_world, leave_mesh, leave_world
from nemo_gdpo.training.model_source import ModelSource
from nemo_gdpo.training.parts import Split
from nemo_gdpo.training.run import Run
from nemo_gdpo.training.trainer import PreferenceTrainer
from tests.parallel.meshes import LAUNCHES, Case
from tests.parallel.settings import ADAPTERS, STEPS, adapter, dataset, overrides


class RecordingTrainer(PreferenceTrainer):
    """Keeps the per-pair values of every step, and calls back before the first update."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.recorded: list[dict[str, Any]] = []
        self.before_update: Callable[[], None] = lambda: None

    def _per_pair(
        self, split: Split, indices: list[int], *, forward_only: bool
    ) -> dict[str, torch.Tensor]:
        values = super()._per_pair(split, indices, forward_only=forward_only)
        if not forward_only:
            found = {name: column.tolist() for name, column in values.items()}
            self.recorded.append({"indices": indices, **found})
            if len(self.recorded) == 1:
                self.before_update()
        return values


def _save_gradient(model: PreferenceModel, source: ModelSource, target: Path) -> None:
    """Write the gradient in the place of what is trained, which is put back."""
    trained = [p for _, p in model.named_policy_parameters() if p.requires_grad]
    kept = [(p, p.detach().clone()) for p in trained]
    if dist.get_rank() == 0:
        shutil.rmtree(target, ignore_errors=True)
        (target / "dist").mkdir(parents=True)
        source.write_assets(target)
        if model.adapter is not None:
            write_adapter_record(target, AdapterRecord(model.adapter, source.fingerprint, "base"))
    dist.barrier()
    # Megatron has divided it by the number of pairs already.
    for parameter, _ in kept:
        parameter.data.copy_(parameter.main_grad)
    state = {"model": trained_weights(model)}
    save_sharded(lambda: state, target / "dist", SHARDING_METADATA, RunError)
    for parameter, value in kept:
        parameter.data.copy_(value)


def stray(model: PreferenceModel) -> None:
    """Give the adapters values of their own, the same on every mesh."""
    sizes = {
        (one.layer, one.target): (one.outputs, one.inputs)
        for one in adapted_matrices(ModelBridge(model.model_config), model.adapter)
    }
    for chunk in model.gpt_chunks:
        for layer in chunk.decoder.layers:
            number = layer.layer_number - 1
            for module in adapters([layer]):
                for name in module.parts:
                    module.fill(name, adapter(number, name, *sizes[number, name]))


def run_case(case: Case, folder: Path) -> dict[str, Any]:
    """Reference from one model, three updates of another; returns plain JSON."""
    output = folder / f"world{dist.get_world_size()}" / re.sub(r"\W+", "_", case.key)
    converted = folder / case.model / "megatron"
    given = [
        *overrides(case.objective),
        f"model.restore_from_path={converted / 'reference'}",
        f"output_dir={output}",
        *case.overrides,
        *(ADAPTERS if case.adapters else ()),
        # The policy strays from the reference on purpose, but for the cases of the check itself.
        f"trainer.check_initial_loss={str(case.equal_start).lower()}",
    ]
    config = TRAIN.parse(compose(given, TRAIN).plain)
    data = dataset(case.data)
    run = Run.build(config, data={"train": data, "validation": data})

    def before_update() -> None:
        if case.gradient:
            _save_gradient(run.model, run.source, output / "gradient")

    with run.stop_request() as stop:
        references = run.prepare_reference(stop)
        if case.adapters:
            stray(run.model)
        elif not case.equal_start:
            load_weights(run.model, converted / "policy")
        trainer = run.build_trainer(references, stop, RecordingTrainer)
        assert isinstance(trainer, RecordingTrainer)
        trainer.before_update = before_update
        entries = [trainer.train_step() for _ in range(STEPS)]
        validation = trainer.validate()
    store = references["train"]
    return {
        "entries": [{k: v for k, v in e.items() if not k.startswith("perf/")} for e in entries],
        "per_pair": trainer.recorded,
        "validation": validation,
        "queries": trainer.progress.queries.state(),
        "data_size": run.mesh.data_size,
        "micro_batch_size": config.model.micro_batch_size,
        # Columns of every pair in order: its chosen response's tokens, then its rejected one's.
        "reference": store and [store.columns([i]).tolist() for i in range(len(data))],
        "gradient": str(output / "gradient") if case.gradient else None,
    }


def main(folder: Path, keys: list[str]) -> None:
    """Run the world's cases, or those of `keys` alone."""
    torch.set_num_threads(1)
    quiet_libraries()
    join_world(current_platform(), timeout_minutes=2)
    results: dict[str, Any] = {}
    for case in LAUNCHES[dist.get_world_size()]:
        if keys and case.key not in keys:
            continue
        begun = time.perf_counter()
        try:
            results[case.key] = run_case(case, folder)
        except Exception:  # noqa: BLE001 - reported by the test of the case
            results[case.key] = {"error": traceback.format_exc()}
            break
        finally:
            leave_mesh()
        results[case.key]["seconds"] = time.perf_counter() - begun
    target = folder / f"world{dist.get_world_size()}.rank{dist.get_rank()}.json"
    target.write_text(json.dumps(results))
    if any("error" in result for result in results.values()):
        # The others may wait for this rank in a collective; the launcher ends them.
        os._exit(1)
    leave_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
