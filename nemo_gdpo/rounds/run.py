"""The rounds themselves: which stage is next, its configuration, its command, what became of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from nemo_gdpo.config.composition import config_yaml
from nemo_gdpo.config.rounds import RoundsConfig
from nemo_gdpo.conversion.fingerprint import weights_fingerprint
from nemo_gdpo.errors import EXIT_DONE, EXIT_REQUEUE, RunError, UserError
from nemo_gdpo.generation.prompts import GivenPrompt, read_prompts
from nemo_gdpo.io.files import file_sha256, read_json_object, write_output
from nemo_gdpo.launch.signals import ALL_SIGNALS, StopRequest
from nemo_gdpo.rounds.child import run_verb
from nemo_gdpo.rounds.metrics import METRICS, line_of, of_training
from nemo_gdpo.rounds.plan import Stage
from nemo_gdpo.rounds.results import files_of, fingerprints, why_unfinished
from nemo_gdpo.rounds.settings import Settings
from nemo_gdpo.rounds.state import identity_of, read_state

Runner = Callable[[Sequence[str], Path, StopRequest], int]
"""(verb, configuration, request) -> exit status."""
LINES = "rounds.jsonl"


class Rounds:
    """One run, in its output_dir, which the caller holds."""

    def __init__(self, config: RoundsConfig) -> None:
        """Read how far it is; nothing is written.

        Raises:
            UserError: the directory is of another run, or the prompts cannot be read.
        """
        self.settings = Settings(config)
        self.plan = self.settings.plan
        self._prompts = read_prompts(Path(str(config.rounds.prompts_path)))
        self.state = read_state(self.settings.output, identity_of(config, _started_from(config)))

    # --- what is done ---------------------------------------------------------------------------

    def done(self) -> list[Stage]:
        """The stages that are recorded."""
        return [stage for stage in self.plan.stages() if stage.name in self.state.stages]

    def record_finished(self) -> None:
        """Record each stage whose results are all there, and forget one whose results are needed
        and gone: it is made again.

        Raises:
            UserError: a result that is needed is not the one that was recorded.
        """
        for stage in self.plan.stages():
            if stage.name in self.state.stages:
                self._verify(stage)
            elif self._may_be_finished(stage):
                self._record(stage)

    def _may_be_finished(self, stage: Stage) -> bool:
        before = all(one.name in self.state.stages for one in self.plan.needs(stage))
        return before and why_unfinished(self.settings, stage) is None

    def _record(self, stage: Stage) -> None:
        inputs = {
            f"{before.name}/{name}": value
            for before in self.plan.needs(stage)
            for name, value in self.state.outputs(before).items()
        }
        outputs = fingerprints(self.settings, stage)
        self.state.stages[stage.name] = {"inputs": inputs, "outputs": outputs}
        self.state.write(self.settings.output)

    def _verify(self, stage: Stage) -> None:
        """Look at the results that a stage which is left reads."""
        waiting = [
            later
            for later in self.plan.stages()
            if later.name not in self.state.stages and stage in self.plan.needs(later)
        ]
        if not waiting:
            return
        if why_unfinished(self.settings, stage) is not None:
            del self.state.stages[stage.name]
        elif fingerprints(self.settings, stage) != self.state.outputs(stage):
            raise UserError(
                f"{self.settings.place(stage)}: is not what round {stage.round} made there, and "
                f"{waiting[0].name} reads it; restore it, or remove it and it is made again"
            )

    # --- what is next ---------------------------------------------------------------------------

    def ready(self) -> list[Stage]:
        """Stages that can begin now, their configurations written.

        Raises:
            UserError, RunError: they cannot be written.
        """
        found = self.plan.ready(self.done())
        for stage in found:
            self._prepare(stage)
        return found

    def _prepare(self, stage: Stage) -> None:
        self.state.write(self.settings.output)
        if stage.kind == "generate":
            chosen = prompts_of_round(
                self._prompts,
                stage.round,
                self.settings.config.rounds.prompts_per_round,
                self.settings.config.seed,
            )
            text = "".join(
                json.dumps({"id": one.id, "prompt": one.prompt}, ensure_ascii=False) + "\n"
                for one in chosen
            )
            write_output(self.settings.prompts(stage.round), text)
        write_output(self.settings.file(stage), config_yaml(self.settings.of(stage)))

    def carry_out(self, stage: Stage, run: Runner, stop: StopRequest) -> int:
        """Run a stage; returns its exit status, 0 only once its results are there and recorded.

        Raises:
            RunError: it was killed, or ended well without its results.
        """
        status = run(self.settings.verb(stage), self.settings.file(stage), stop)
        if status == EXIT_DONE:
            missing = why_unfinished(self.settings, stage)
            if missing is not None:
                raise RunError(f"{stage.name}: it ended well, and {missing}; start again")
            self._record(stage)
        if status >= 0:
            return status
        if stop.received is not None:
            return EXIT_REQUEUE
        name = signal.Signals(-status).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        raise RunError(
            f"{stage.name}: was killed by {name}{hint}; what is complete is kept, and the same "
            "command goes on"
        )

    # --- what came of it ------------------------------------------------------------------------

    def write_lines(self) -> list[dict[str, object]]:
        """Write rounds.jsonl anew; its lines, one for each round whose training is done.

        Raises:
            UserError, RunError: a file cannot be read or written.
        """
        lines = list(self._lines())
        write_output(self.settings.output / LINES, "".join(lines))
        return [json.loads(line) for line in lines]

    def _lines(self) -> Iterator[str]:
        done = set(self.done())
        for number in range(1, self.plan.number + 1):
            train = Stage(number, "train")
            if train not in done:
                return
            score, data = Stage(number, "score"), Stage(number, "data")
            scored = read_json_object(self.settings.place(score) / METRICS)
            stats = read_json_object(files_of(self.settings, data)[-1])
            training = of_training(self.settings.place(train) / "metrics.jsonl")
            stats.pop("settings", None)
            stats.pop("prompts", None)
            stats.setdefault("staleness_mean", float(self.plan.staleness_of(number)))
            yield line_of(number, scored, stats, training)


def go(config: RoundsConfig, run: Runner = run_verb) -> int:
    """Carry out what is left; returns the exit status.

    Raises:
        UserError: the directory is of another run, or holds what was changed since.
        RunError: a stage was killed, or the disk failed.
    """
    rounds = Rounds(config)
    with StopRequest(ALL_SIGNALS) as stop:
        rounds.record_finished()
        while stages := rounds.ready():
            if stop.received is not None:
                return _stopped(stages[0])
            # Without a second set of devices, the earliest round's stage first.
            stage = min(stages, key=lambda one: (one.round, one.kind == "generate"))
            file = rounds.settings.file(stage)
            verb = " ".join(rounds.settings.verb(stage))
            print(
                f"round {stage.round} of {rounds.plan.number}: {verb} --config {file}", flush=True
            )
            status = rounds.carry_out(stage, run, stop)
            if status != EXIT_DONE:
                return _ended(stage, status)
            if stage.kind == "train":
                rounds.write_lines()
    rounds.write_lines()
    return EXIT_DONE


def _stopped(stage: Stage) -> int:
    print(f"nemo-gdpo: stopped by a signal before {stage.name}; the same command goes on")
    return EXIT_REQUEUE


def _ended(stage: Stage, status: int) -> int:
    said = "stopped; the same command goes on" if status == EXIT_REQUEUE else "says why above"
    print(f"nemo-gdpo: {stage.name} ended with {status}: {said}", flush=True)
    return status


def _started_from(config: RoundsConfig) -> dict[str, str]:
    found = {"rounds.prompts_path": file_sha256(Path(str(config.rounds.prompts_path)))}
    model = Path(str(config.model.restore_from_path))
    found["model.restore_from_path"] = weights_fingerprint(model)
    return found


def prompts_of_round(
    prompts: Sequence[GivenPrompt], number: int, count: int | None, seed: int
) -> list[GivenPrompt]:
    """The prompts of a round, in the order of the file.

    Rounds go through a shuffled order of all prompts, and through another one when it is used up;
    a round that reaches into the next order takes no prompt twice.

    Args:
        prompts: all.
        number: of the round, from 1.
        count: prompts a round; None: all.
        seed: of the orders.
    """
    total = len(prompts)
    if count is None or count >= total:
        return list(prompts)
    chosen: list[int] = []
    pending = _endless_order(total, seed)
    for _ in range(number):
        chosen, later = [], []
        while len(chosen) < count:
            place = next(pending)
            if place in chosen:
                later.append(place)
            else:
                chosen.append(place)
        pending = _chained(later, pending)
    return [prompts[place] for place in sorted(chosen)]


def _chained(first: Sequence[int], rest: Iterator[int]) -> Iterator[int]:
    yield from first
    yield from rest


def _endless_order(total: int, seed: int) -> Iterator[int]:
    passes = 0
    while True:
        yield from np.random.default_rng([seed, passes]).permutation(total).tolist()
        passes += 1
