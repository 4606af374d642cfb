"""Join the world of ranks and cut it into tensor, pipeline, context and data parallel groups."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.control import gathered
from nemo_gdpo.control.start import start_together
from nemo_gdpo.control.watch import group_timeout, set_limit, start_watch, stop_watch
from nemo_gdpo.control.world import control_group, forget_control_group, is_control_group
from nemo_gdpo.errors import RunError, UserError
from nemo_gdpo.launch import rank_log
from nemo_gdpo.models.builder import ParallelLayout
from nemo_gdpo.platform import Platform

_SET_HERE: set[str] = set()
"""Variables of a world of one that `join_world` made up; `leave_world` takes them back."""


@dataclass(frozen=True)
class Mesh:
    """This rank's place. Sizes and ranks count processes."""

    layout: ParallelLayout
    rank: int
    world_size: int
    data_rank: int
    data_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """The rank that prints, logs and writes the small files."""
        return self.rank == 0


def layout_of(config: RunConfig) -> ParallelLayout:
    """How the `model` section cuts the model."""
    model = config.model
    return ParallelLayout(
        tensor=model.tensor_model_parallel_size,
        pipeline=model.pipeline_model_parallel_size,
        virtual_pipeline=model.virtual_pipeline_model_parallel_size,
        context=model.context_parallel_size,
        sequence_parallel=model.sequence_parallel,
        recompute=model.activations_checkpoint_granularity,
        layers=model.layers,
        attention_backend=model.attention_backend,
        vocab_divisible_by=model.make_vocab_size_divisible_by,
    )


def join_world(platform: Platform, *, timeout_minutes: float = 30.0) -> None:
    """Initialise torch.distributed from torchrun's variables, or alone as a world of one.

    Args:
        platform: of this process.
        timeout_minutes: for the other ranks to start, and for each collective of the computation.
            What rank 0 does alone is not limited by it: the others wait in the control group.

    Raises:
        UserError: on every rank, when one cannot start (`nemo_gdpo.control.start`), or two have the
            same device.
    """
    if dist.is_initialized():
        return
    alone = "RANK" not in os.environ
    set_limit(timeout_minutes)
    try:
        _join(platform, timeout_minutes, alone=alone)
    except BaseException as error:
        # The caller may join another world: nothing of this one stays behind. Where the others are
        # not known to leave too, leaving could wait for them.
        if alone or (isinstance(error, UserError | RunError) and error.agreed):
            leave_world()
        raise


def _join(platform: Platform, timeout_minutes: float, *, alone: bool) -> None:
    if alone:
        place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        _SET_HERE.update(name for name in place if name not in os.environ)
        for name, value in place.items():
            os.environ.setdefault(name, value)
    device = platform.device(int(os.environ["LOCAL_RANK"]))
    if not alone:
        start_together(timeout_minutes=timeout_minutes)
    # Without device_id: with it torch makes every subgroup by splitting the world, and when the
    # subgroup is gloo's, its members do not take part in the split that the other ranks wait in.
    backend, timeout = platform.distributed_backend, group_timeout()
    if alone:
        # Without a port: one that was free a moment ago may be another program's by now.
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timeout)
    else:
        dist.init_process_group(backend, timeout=timeout)
    control_group()  # by all ranks, before any of them can fail alone
    start_watch()
    # NCCL itself ends with an internal error when two ranks have one device.
    problem = device_problem(gathered(platform.device_identity()))
    if problem is not None:
        error = UserError(problem)
        error.agreed = True
        raise error
    # NCCL remembers the device of its first collective; a barrier that comes before guesses one.
    dist.all_reduce(torch.zeros(1, device=device))
    for line in platform.settle_arithmetic():
        if dist.get_rank() == 0:
            print(line, flush=True)


def device_problem(found: Sequence[str | None]) -> str | None:
    """Why the ranks cannot compute on the devices that they have, or None when they can.

    Args:
        found: for each rank its device's name, None where devices may be shared.
    """
    owners: dict[str, int] = {}
    for rank, identity in enumerate(found):
        if identity is None:
            continue
        if identity in owners:
            return (
                f"ranks {owners[identity]} and {rank} have one GPU between them ({identity}); "
                "start no more ranks on a node than it has GPUs, and show each rank its own or all"
            )
        owners[identity] = rank
    return None


def build_mesh(layout: ParallelLayout, platform: Platform, *, seed: int) -> Mesh:
    """Cut the joined world into groups and seed every generator.

    Raises:
        UserError: the world cannot be divided by TP x PP x CP.
    """
    from megatron.core import parallel_state

    world = dist.get_world_size()
    if world % layout.model_parallel_size:
        raise UserError(
            f"{world} ranks cannot be cut into copies of TP{layout.tensor} x PP{layout.pipeline} x "
            f"CP{layout.context} = {layout.model_parallel_size} ranks; start a multiple of "
            f"{layout.model_parallel_size}, or change the sizes"
        )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline,
        context_parallel_size=layout.context,
        distributed_timeout_minutes=group_timeout().total_seconds() / 60.0,
        # The distributed optimizer gathers its state for a checkpoint over gloo on every platform.
        create_gloo_process_groups=True,
    )
    platform.manual_seed(seed)  # after the groups: each tensor-parallel rank draws differently
    return Mesh(
        layout=layout,
        rank=dist.get_rank(),
        world_size=world,
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        device=platform.device(int(os.environ["LOCAL_RANK"])),
    )


def leave_mesh() -> None:
    """Destroy the groups of the mesh, so that another can be built in the same world.

    Megatron only forgets its groups: with gloo each keeps its threads, and a process that builds
    dozens of meshes spends its time switching between them.
    """
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    registered = dist.distributed_c10d._world.pg_map
    for group in list(registered):
        if group is not dist.group.WORLD and not is_control_group(group):
            dist.destroy_process_group(group)


def leave_world() -> None:
    """Destroy all groups, so that the process can exit, or join another world."""
    stop_watch()
    if dist.is_initialized():
        leave_mesh()
        dist.destroy_process_group()
    forget_control_group()
    rank_log.end()
    # Whoever asks next is not one of several ranks.
    for name in _SET_HERE:
        os.environ.pop(name, None)
    _SET_HERE.clear()
