"""`train`, `reference` and `label margins`: check a run, then carry it out in ranks that are there
or started."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from nemo_gdpo.config.composition import config_yaml
from nemo_gdpo.config.problem import Problem, raise_problems
from nemo_gdpo.config.request import Request
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.config.validate import problems_of_mapping
from nemo_gdpo.config.world import Hardware, configured_world_size
from nemo_gdpo.errors import (
    EXIT_DONE,
    EXIT_REQUEUE,
    EXIT_USER_ERROR,
    LoneError,
    RunError,
    UserError,
)
from nemo_gdpo.launch.ranks import FAILURE, launch_ranks
from nemo_gdpo.launch.slurm import adopt_slurm_world, is_invited

Task = Literal["train", "train_plain", "reference", "margins"]
"""What every rank does; only `train` builds NeMo's classes, which is what the verb does."""
RANK_MODULE = "nemo_gdpo.verbs.rank"


def train(request: Request) -> int:
    """`nemo-gdpo train`: check everything, then join the world that is there or start the ranks."""
    return start(lambda: request.compose(TRAIN).plain, "train")


def reference(request: Request) -> int:
    """`nemo-gdpo reference`: the reference's log-probs ahead of training, on the run's own mesh."""
    return start(lambda: request.compose(TRAIN).plain, "reference")


def margins(request: Request) -> int:
    """`nemo-gdpo label margins`: the present model's margins of all pairs, on the run's mesh."""
    return start(lambda: request.compose(TRAIN).plain, "margins")


def detect_hardware(plain: Mapping[str, Any], *, joined: bool) -> Hardware:
    """Detect the hardware of this machine and the ranks that were started.

    Args:
        plain: the composed configuration, to say why what it asks for is not to be had.
        joined: this process is one of several ranks.

    Raises:
        UserError: what training needs is not installed.
    """
    try:
        import torch

        from nemo_gdpo.platform.layers import choose_layers
        from nemo_gdpo.platform.select import detect_capabilities
    except ModuleNotFoundError as error:
        raise UserError(
            f"the package {error.name} is not installed, so nothing can be trained here; install "
            "nemo_gdpo with the extra train, or check for another machine with "
            "`nemo-gdpo validate --elsewhere`"
        ) from None
    capabilities = detect_capabilities()
    cuda = capabilities.device_type == "cuda"
    asked, _ = TRAIN.parse_leniently(plain)
    layers = choose_layers(asked.model.layers, asked.precision, capabilities)
    backend = capabilities.attention.get(asked.model.attention_backend)
    return Hardware(
        world_size=int(os.environ["WORLD_SIZE"]) if joined else None,
        # srun may show each task its own GPU only: then the number says nothing.
        gpus=torch.cuda.device_count() if cuda and not joined else None,
        precisions=capabilities.precisions,
        precision_reason=capabilities.why_not(asked.precision),
        layers=None if isinstance(layers, Problem) else layers.value,
        layers_problem=layers if isinstance(layers, Problem) else None,
        attention_reason=None if backend is None or backend.ok else backend.reason,
        four_bit_reason=None if capabilities.four_bit.ok else capabilities.four_bit.reason,
    )


def check(plain: dict[str, Any]) -> tuple[RunConfig, bool]:
    """The typed configuration, once nothing is wrong with it here.

    Args:
        plain: the composed configuration.

    Returns:
        The configuration; and whether this process is one of several ranks that were started.

    Raises:
        UserError: the configuration is wrong; all problems at once.
    """
    joined = adopt_slurm_world(os.environ) or "RANK" in os.environ
    hardware = detect_hardware(plain, joined=joined)
    config, found = problems_of_mapping(plain, hardware)
    told: list[Problem | str] = [*found]
    if not joined or os.environ.get("RANK") == "0":  # one reads for all
        told += _problems_of_data(config, found)
    raise_problems(told)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return config, joined


def _problems_of_data(config: RunConfig, found: list[Problem]) -> list[str]:
    """What is wrong with the first rows; what is odd about them is printed."""
    from nemo_gdpo.data.inspect import inspect_data

    inspection = inspect_data(config, faulty={problem.key for problem in found})
    if not found and not inspection.problems:
        for remark in inspection.remarks:
            print(f"note: {remark}", flush=True)
    return inspection.problems


def check_together(compose: Callable[[], dict[str, Any]]) -> tuple[RunConfig, bool]:
    """`check` on every rank that was started: a node may lack a file or a GPU. Collective.

    Args:
        compose: makes the composed configuration.

    Raises:
        UserError: on every rank, when one refuses the configuration.
        RunError: on every rank, when one failed in another way.
        LoneError: on this rank, when the others did not come to hear it.
    """
    try:
        config, joined = check(compose())
    except UserError as error:
        with contextlib.suppress(UserError):
            adopt_slurm_world(os.environ)
        if not is_invited(os.environ):
            raise
        from nemo_gdpo.control.start import refuse_to_start

        told = refuse_to_start(error) or LoneError(f"rank {os.environ['RANK']}: {error}")
        raise told from None
    if joined and is_invited(os.environ):
        from nemo_gdpo.control.start import start_together

        # Before what only training imports, which takes long: nobody should wait for that in vain.
        start_together(timeout_minutes=config.trainer.collective_timeout_minutes)
    return config, joined


def start(compose: Callable[[], dict[str, Any]], task: Task) -> int:
    """Check a configuration, then run it; returns the exit status.

    Args:
        compose: makes the composed configuration.
        task: what every rank does with it.

    Raises:
        UserError: the configuration is wrong, or the world is not one that can be started here.
    """
    config, joined = check_together(compose)
    if joined or configured_world_size(config) == 1:
        from nemo_gdpo.verbs.rank import run_task

        return run_task(task, config)
    return start_ranks(config, task)


def start_ranks(config: RunConfig, task: Task) -> int:
    """Start the ranks of a mesh on this machine and wait for them; returns their status.

    Raises:
        UserError: the mesh spans several nodes.
    """
    with tempfile.TemporaryDirectory(prefix="nemo_gdpo-") as folder:
        return _launch(config, task, Path(folder))


def run_ranks(config: RunConfig, task: Task) -> bool:
    """The same for a caller in Python; False when a signal stopped the ranks.

    Raises:
        UserError: what the ranks refused, or the mesh spans several nodes.
        RunError: what else ended them.
    """
    with tempfile.TemporaryDirectory(prefix="nemo_gdpo-") as folder:
        status = _launch(config, task, Path(folder))
        failure = Path(folder) / FAILURE
        reason = failure.read_text(encoding="utf-8") if failure.is_file() else None
    if status in (EXIT_DONE, EXIT_REQUEUE):
        return status == EXIT_DONE
    if status == EXIT_USER_ERROR and reason is not None:
        raise UserError(reason)
    raise RunError(reason or f"{task}: the ranks ended with status {status}; they say why above")


def _launch(config: RunConfig, task: Task, folder: Path) -> int:
    if config.trainer.num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes={config.trainer.num_nodes}: nothing here starts ranks on other "
            "nodes; start this command with srun (one task a rank) or torchrun on every node"
        )
    # Not output_dir/config.yaml: the ranks may still refuse the run, and that file may be the
    # record of another one.
    file = folder / "config.yaml"
    file.write_text(config_yaml(config), encoding="utf-8")
    return launch_ranks(
        configured_world_size(config),
        [sys.executable, "-m", RANK_MODULE, task, str(file)],
    )
