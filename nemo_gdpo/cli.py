"""The console script: `nemo-gdpo VERB [key=value ...]`.

This module imports nothing heavy. Checking a configuration takes no torch; training code, data and
conversion are imported by the verb that needs them.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from nemo_gdpo.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_REQUEUE,
    EXIT_USER_ERROR,
    UserError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from nemo_gdpo.config import RunConfig, WorldFacts

HELP = """\
nemo-gdpo: preference alignment of Llama and Gemma models on Megatron, with
  GDPO  GFlowNet-DPO (Kwon et al., EMNLP 2024); not group-decoupled normalisation, not group
        distributional preference optimisation
  ODPO  DPO with an offset (Amini et al. 2024); not online DPO
  ADPO  active-query DPO (Ji et al. 2024); not anchored DPO
and, to compare with, DPO and IPO.

usage: nemo-gdpo VERB [group=choice] [key=value] ...

  validate   name every problem of a configuration at once; needs no GPU
  prepare    read, check and tokenise pairs ahead of training
  convert    hf-to-megatron, nemo-to-megatron, megatron-to-hf, verify, cache
  reference  compute the reference's log-probabilities ahead of training
  train      train; under torchrun or srun it joins their ranks, alone it starts its own
  generate   sample from a model with vLLM, or from a server
  evaluate   measure diversity and quality of what was sampled
  doctor     what is installed here and what this machine can do

nemo-gdpo VERB --help tells more. Examples:
  nemo-gdpo train objective=gdpo model.restore_from_path=DIR data.train_path=pairs.jsonl
  nemo-gdpo train experiment=gdpo_llama3_8b --cfg job --resolve

exit status: 0 done; 2 the configuration or the input is wrong; 75 stopped by a signal after a
checkpoint, requeue; 1 anything else
"""

NOT_BUILT = ("label", "plan")
DELEGATED = {
    "prepare": "nemo_gdpo.data.cli",
    "reference": "nemo_gdpo.training.reference_main",
    "generate": "nemo_gdpo.generation.cli",
    "evaluate": "nemo_gdpo.evaluation.cli",
}
"""Verb -> module whose `main(argv) -> int` does it."""

GRACE_SECONDS = 15.0
"""How long the other ranks may take to notice that one failed, and then to obey SIGTERM."""
FORWARDED = (signal.SIGTERM, signal.SIGUSR1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except UserError as error:
        if _is_main_rank():
            print(f"nemo-gdpo: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "nemo_gdpo":
            raise
        print(
            f"nemo-gdpo: error: this verb needs the package {error.name}, which is not installed; "
            "install nemo_gdpo with the extras train and data",
            file=sys.stderr,
        )
        return EXIT_USER_ERROR
    except BrokenPipeError:
        # The reader (head, less) left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return EXIT_DONE if arguments else EXIT_USER_ERROR
    verb, rest = arguments[0], arguments[1:]
    if verb == "--version":
        from nemo_gdpo import __version__

        print(f"nemo-gdpo {__version__}")
        return EXIT_DONE
    if verb in NOT_BUILT:
        raise UserError(f"{verb}: is not built yet; nemo-gdpo --help lists the verbs that are")
    if verb in DELEGATED:
        delegate: Callable[[list[str]], int] = importlib.import_module(DELEGATED[verb]).main
        return delegate(rest)
    verbs: dict[str, Callable[[list[str]], int]] = {
        "train": train,
        "convert": convert,
        "validate": validate,
        "doctor": doctor,
    }
    if verb not in verbs:
        from nemo_gdpo.config.suggest import hint

        known = [*verbs, *DELEGATED]
        raise UserError(f"{verb}: there is no such verb{hint(verb, known)}; see nemo-gdpo --help")
    return verbs[verb](rest)


# -- train -----------------------------------------------------------------------------------------


TRAIN_HELP = """\
usage: nemo-gdpo train [group=choice] [key=value] ... [--cfg job [--resolve]]

--cfg job prints the configuration instead of training; with --resolve, with the values
of interpolations. Names of keys follow NeMo's.
"""


def train(arguments: list[str]) -> int:
    """Check everything, then join the world that is there or start the ranks the mesh needs."""
    from nemo_gdpo.config import TRAIN
    from nemo_gdpo.config.command import CONFIG_FLAGS, answered, read_request

    request = read_request("train", arguments, CONFIG_FLAGS)
    if answered(request, TRAIN_HELP, TRAIN):
        return EXIT_DONE
    return start(request.overrides, "nemo_gdpo.training.main", _train_here)


def _train_here(overrides: Sequence[str]) -> int:
    from nemo_gdpo.training.main import main as training_main

    return training_main(overrides)


def start(overrides: list[str], rank_module: str, here: Callable[[Sequence[str]], int]) -> int:
    """Check a configuration, then run it: in the ranks that are there, or in ranks started now.

    Args:
        overrides: of the command line.
        rank_module: what a rank that is started runs, with the overrides as its arguments.
        here: the same, in this process.

    Raises:
        UserError: the configuration is wrong, or the world is not one that can be started here.
    """
    from nemo_gdpo.config import compose, configured_world_size
    from nemo_gdpo.config.slurm import adopt_slurm_world

    composed = compose(overrides)
    joined = adopt_slurm_world(os.environ) or "RANK" in os.environ
    config = _refuse_problems(composed.plain, joined=joined)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if joined or configured_world_size(config) == 1:
        return here(overrides)
    if config.trainer.num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes={config.trainer.num_nodes}: nothing here starts ranks on other "
            "nodes; start this command with srun (one task a rank) or torchrun on every node"
        )
    return launch_ranks(
        configured_world_size(config),
        [sys.executable, "-m", rank_module, *overrides],
    )


def _refuse_problems(plain: dict[str, Any], *, joined: bool) -> RunConfig:
    from nemo_gdpo.config import problems_of_mapping
    from nemo_gdpo.config.problem import refuse

    config, found = problems_of_mapping(plain, machine_facts(str(plain.get("precision")), joined))
    refuse(found)
    return config


def machine_facts(precision: str, joined: bool) -> WorldFacts:
    """What the checks may know about this machine and the ranks that were started."""
    from nemo_gdpo.config import WorldFacts

    try:
        import torch

        from nemo_gdpo.platform.select import detect_capabilities
    except ModuleNotFoundError as error:
        raise UserError(
            f"the package {error.name} is not installed, so nothing can be trained here; install "
            "nemo_gdpo with the extra train, or check for another machine with "
            "`nemo-gdpo validate --elsewhere`"
        ) from None
    capabilities = detect_capabilities()
    cuda = capabilities.device_type == "cuda"
    return WorldFacts(
        world_size=int(os.environ["WORLD_SIZE"]) if joined else None,
        # srun may show each task its own GPU only: then the number says nothing.
        gpus=torch.cuda.device_count() if cuda and not joined else None,
        precisions=capabilities.precisions,
        precision_reason=capabilities.why_not(precision),
    )


# -- the world -------------------------------------------------------------------------------------


def _is_main_rank() -> bool:
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


class _Ranks:
    """Local ranks as children of this process.

    Children rather than torchrun's: torchrun answers every failure with status 1 and a traceback of
    its own, and gives ranks 30 seconds after SIGTERM, which a checkpoint may exceed.
    """

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.forwarded: set[int] = set()

    def start(self, size: int, command: list[str]) -> None:
        port = _free_port()
        for rank in range(size):
            environment = _rank_environment(rank, size, port)
            # A group of its own: what the rank started can be stopped after the rank is gone.
            self.processes.append(subprocess.Popen(command, env=environment, process_group=0))

    def forward(self, number: int, frame: FrameType | None = None) -> None:
        """Pass a signal on; Ctrl-C and a lost terminal ask the ranks to stop as SIGTERM does."""
        del frame
        number = signal.SIGTERM if number in (signal.SIGINT, signal.SIGHUP) else number
        self.forwarded.add(number)
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self) -> int:
        """Wait for all; when one fails, stop the others, which may wait for it for ever."""
        while True:
            statuses = [process.poll() for process in self.processes]
            done = (None, EXIT_DONE, EXIT_REQUEUE)
            failed = {rank: s for rank, s in enumerate(statuses) if s not in done}
            if failed:
                return self._fail(failed)
            if None not in statuses:
                return EXIT_REQUEUE if EXIT_REQUEUE in statuses else EXIT_DONE
            time.sleep(0.1)

    def _fail(self, failed: Mapping[int, int | None]) -> int:
        _stop(self.processes, grace=GRACE_SECONDS)
        # A rank that found a mistake in the input takes others down with it; its word counts.
        if EXIT_USER_ERROR in [process.returncode for process in self.processes]:
            return EXIT_USER_ERROR
        number, status = next(iter(failed.items()))
        assert status is not None
        if all(s is not None and -s in self.forwarded for s in failed.values()):
            # Ranks answer a signal with a checkpoint as soon as they have something to lose.
            print("nemo-gdpo: stopped by a signal before training began", file=sys.stderr)
            return EXIT_REQUEUE
        how = (
            f"was killed by {signal.Signals(-status).name}" if status < 0 else f"failed ({status})"
        )
        print(f"nemo-gdpo: rank {number} {how}; all ranks are stopped", file=sys.stderr)
        return EXIT_FAILED


def launch_ranks(size: int, command: list[str]) -> int:
    """Start `size` local ranks, pass signals on to them, and return the status of the whole."""
    ranks = _Ranks()
    previous = {number: signal.signal(number, ranks.forward) for number in FORWARDED}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored means nohup
        previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, ranks.forward)
    # Ranks inherit "ignored", so that a terminal's Ctrl-C reaches them only through this process.
    previous[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ranks.start(size, command)
        signal.signal(signal.SIGINT, ranks.forward)
        return ranks.wait()
    finally:
        _stop(ranks.processes, grace=0.0)
        _sweep(ranks.processes)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stop(ranks: list[subprocess.Popen[bytes]], *, grace: float) -> None:
    """Let ranks end by themselves for `grace` seconds, then ask them to, then kill them."""
    for request in (None, signal.SIGTERM, signal.SIGKILL):
        alive = [rank for rank in ranks if rank.poll() is None]
        if request is not None:
            for rank in alive:
                rank.send_signal(request)
        deadline = time.monotonic() + (60.0 if request is signal.SIGKILL else grace)
        while any(rank.poll() is None for rank in alive) and time.monotonic() < deadline:
            time.sleep(0.05)


def _sweep(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Kill helper processes that a rank which was killed could not end itself."""
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(rank.pid, signal.SIGKILL)


# -- convert ---------------------------------------------------------------------------------------


def convert(arguments: list[str]) -> int:
    """Convert, or compare; only running a Megatron checkpoint takes megatron."""
    from nemo_gdpo.conversion.cli import main as conversion_main

    return conversion_main(arguments, megatron_logits=_megatron_logits)


def _megatron_logits(checkpoint: Path, prompts: Sequence[Tensor]) -> list[Tensor]:
    from nemo_gdpo.training.parity import megatron_logits

    return megatron_logits(checkpoint, prompts)


# -- validate and doctor ---------------------------------------------------------------------------


VALIDATE_HELP = """\
usage: nemo-gdpo validate [group=choice] [key=value] ... [--elsewhere]

Names every problem of a run at once; takes the same arguments as train. With --elsewhere
the run is for another machine: files and hardware of this one are not looked at.
"""


def validate(arguments: list[str]) -> int:
    """Name every problem at once."""
    from nemo_gdpo.config.command import print_help, read_request

    request = read_request("validate", arguments, ("--elsewhere",))
    if "--help" in request.flags:
        print_help(VALIDATE_HELP)
        return EXIT_DONE
    from nemo_gdpo.config import compose, problems_of_mapping

    elsewhere = "--elsewhere" in request.flags
    plain = compose(request.overrides).plain
    world = None if elsewhere else machine_facts(str(plain.get("precision")), joined=False)
    if world is not None and int(plain["trainer"]["num_nodes"] or 1) > 1:
        # This may well be the login node of a cluster: its GPUs are not those of the run.
        from dataclasses import replace

        world = replace(world, gpus=None)
    config, found = problems_of_mapping(plain, world, files=not elsewhere)
    if not found:
        print(_summary(config))
        return EXIT_DONE
    for problem in found:
        print(f"nemo-gdpo: error: {problem}", file=sys.stderr)
    count = f"{len(found)} problem{'s' if len(found) > 1 else ''}"
    print(f"nemo-gdpo: {count} found", file=sys.stderr)
    return EXIT_USER_ERROR


def _summary(config: RunConfig) -> str:
    from nemo_gdpo.config import configured_world_size, model_parallel_size

    model, world = config.model, configured_world_size(config)
    copies = world // model_parallel_size(config)
    steps = [
        f"{value} {name}"
        for value, name in (
            (config.trainer.max_steps, "steps"),
            (config.trainer.max_epochs, "epochs"),
        )
        if value is not None
    ]
    return "\n".join(
        [
            "valid",
            f"  objective  {config.objective.name}, reference {config.reference}",
            f"  model      {model.restore_from_path}, {config.precision}",
            f"  data       {config.data.name}: {config.data.train_path}",
            f"  mesh       {world} ranks: TP{model.tensor_model_parallel_size} x "
            f"PP{model.pipeline_model_parallel_size} x CP{model.context_parallel_size} x "
            f"DP{copies}",
            f"  batch      {model.global_batch_size} pairs = {copies} x {model.micro_batch_size} x "
            f"{model.global_batch_size // (copies * model.micro_batch_size)} micro-batches",
            f"  length     {' or '.join(steps)}, learning rate {config.optim.lr:g}",
            f"  output     {config.output_dir}",
        ]
    )


def doctor(arguments: list[str]) -> int:
    """Print what is installed and what the machine can do; never fails over what is missing."""
    from nemo_gdpo.config.command import read_request

    request = read_request("doctor", arguments, ())
    if request.overrides:
        raise UserError(f"doctor {request.overrides[0]}: it takes no arguments")
    if "--help" in request.flags:
        print("usage: nemo-gdpo doctor\n\nPrints versions and what this machine can do.")
        return EXIT_DONE
    from nemo_gdpo.doctor import findings

    for name, value in findings():
        print(f"{name:<20} {value}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
