"""The console script: looks the verb of `nemo-gdpo VERB [key=value ...]` up and runs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemo_gdpo.errors import (
    EXIT_DONE,
    EXIT_USER_ERROR,
    Interrupted,
    LoneError,
    RunError,
    Stopped,
    UserError,
)
from nemo_gdpo.importing import own_process
from nemo_gdpo.launch.failures import report
from nemo_gdpo.launch.signals import ALL_SIGNALS, StopRequest
from nemo_gdpo.launch.slurm import step_status

# The verbs, and with them the libraries of the configuration, are imported once there is somebody
# to answer a signal.
if TYPE_CHECKING:
    from nemo_gdpo.launch.verbs import Verb

_HEAD = """\
nemo-gdpo: preference alignment of Llama and Gemma models on Megatron, with
  GDPO  GFlowNet-DPO (Kwon et al., EMNLP 2024); not group-decoupled normalisation, not group
        distributional preference optimisation
  ODPO  DPO with an offset (Amini et al. 2024); not online DPO
  ADPO  active-query DPO (Ji et al. 2024); not anchored DPO
and, to compare with, DPO and IPO.

usage: nemo-gdpo VERB [group=preset] [key=value] ...

"""
_TAIL = """
nemo-gdpo VERB --help lists the keys of a verb. Examples:
  nemo-gdpo train objective=gdpo model.restore_from_path=DIR data.train_path=pairs.jsonl
  nemo-gdpo train experiment=gdpo_llama3_8b --cfg job --resolve

exit status: 0 done; 2 the configuration or the input is wrong; 75 stopped by a signal, or because
its time is up: the same command goes on, requeue; 130 ended at once by a second Ctrl-C; 1 anything
else
"""
_HELP = ("-h", "--help", "help")
_JUST_END = ("validate", "plan", "doctor", *_HELP)
"""Verbs that make nothing that could be gone on with."""
_STOPPED = "stopped by {signal}; the same command starts again"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    if argv is None:
        own_process()
    arguments = list(sys.argv[1:] if argv is None else argv)
    return step_status(_run_reported(arguments), os.environ)


def _run_reported(arguments: list[str]) -> int:
    just_ends = not arguments or arguments[0] in _JUST_END
    try:
        with StopRequest(
            ALL_SIGNALS,
            interrupts="stopped by {signal}" if just_ends else _STOPPED,
            error=Interrupted if just_ends else Stopped,
            rank=0 if _is_main_rank() else 1,
        ) as stop:
            return _dispatch(arguments, stop)
    except (UserError, RunError) as error:
        return report(error, rank=0 if _speaks(error) else 1)
    except Stopped as error:
        return report(error, rank=0 if _is_main_rank() else 1)
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


def _speaks(error: UserError | RunError) -> bool:
    """Whether this rank tells: rank 0 of what all found alike, any rank of what is its own."""
    is_own = isinstance(error, LoneError) or (isinstance(error, RunError) and not error.agreed)
    return is_own or _is_main_rank()


def _is_main_rank() -> bool:
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _dispatch(arguments: list[str], stop: StopRequest) -> int:
    from nemo_gdpo.launch.verbs import VERBS

    if arguments and arguments[0] in _HELP:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments == ["--help"]:
        listed = "".join(f"  {verb.name:<10} {verb.summary}\n" for verb in VERBS)
        print(f"{_HEAD}{listed}{_TAIL}", end="")
        return EXIT_DONE if arguments else EXIT_USER_ERROR
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        from nemo_gdpo import __version__

        print(f"nemo-gdpo {__version__}")
        return EXIT_DONE
    verb = _find(name, VERBS, name)
    if verb.stopped is not None:
        stop.interrupts = verb.stopped
    return _run(verb, rest)


def _find(name: str, verbs: Sequence[Verb], shown: str) -> Verb:
    for verb in verbs:
        if verb.name == name:
            return verb
    from nemo_gdpo.config.suggest import hint

    known = [verb.name for verb in verbs]
    raise UserError(f"{shown} is not a verb{hint(name, known)}; see nemo-gdpo --help")


def _run(verb: Verb, arguments: list[str], command: str = "") -> int:
    """Carry a verb out, or print its help or its configuration."""
    command = f"{command} {verb.name}".strip()
    for place, argument in enumerate(arguments):
        if argument in {follower.name for follower in verb.followers}:
            rest = [*arguments[:place], *arguments[place + 1 :]]
            return _run(_find(argument, verb.followers, argument), rest, command)
    root = verb.root()
    if root is None:
        return verb.run(arguments)
    from nemo_gdpo.config.request import asks_for_help, read_request

    if asks_for_help(arguments):
        from nemo_gdpo.config.help import render_help

        print(f"{verb.usage}\n{render_help(root)}", end="")
        return EXIT_DONE
    request = read_request(command, arguments, verb.flags)
    if "--cfg" in request.flags:
        from nemo_gdpo.config.composition import to_yaml

        composed = request.compose(root)
        root.parse(composed.plain)
        print(to_yaml(composed, resolved="--resolve" in request.flags), end="")
        return EXIT_DONE
    return verb.run(request)


if __name__ == "__main__":
    sys.exit(main())
