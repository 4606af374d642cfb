"""The experiment: which objective keeps diversity at a comparable reward?

SmolLM2-135M-Instruct on human-rated film snippets. Every arm gets the same number of updates; all
are sampled at several temperatures and measured in the same way. What is done is kept: the same
command resumes where it was stopped, and arms whose settings have changed are run again.

    make experiment                          everything that fits into two hours
    make experiment HOURS=1 SEEDS=1          less
    python -m examples.film_reviews.experiment --plan
                                             what it would do, and how long that takes
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from examples.film_reviews.experiment.arms import ARMS, BASE, BY_NAME, DPO_ARM, Job, jobs
from examples.film_reviews.experiment.plan import Costs, Outcome, execute, plan
from examples.film_reviews.experiment.pooling import in_order
from examples.film_reviews.experiment.publish import publish
from examples.film_reviews.experiment.settings import FULL, QUICK, UNSEEN, Settings
from examples.film_reviews.experiment.stages import StoppedError, World, finished, run_job
from examples.film_reviews.inputs import ROOT, base_model, cli, rated_snippets, say
from examples.film_reviews.pairs import Pairing
from examples.film_reviews.prepare import prepare
from nemo_gdpo.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_USER_ERROR, UserError
from nemo_gdpo.evaluation.results import Results, read_results

QUICK_ARMS = (BASE, DPO_ARM, "gdpo-tb-k8")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.film_reviews.experiment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run-dir", type=Path, default=ROOT / "runs" / "experiment")
    parser.add_argument(
        "--results-dir", type=Path, help="default: benchmarks/experiment; with --quick in run-dir"
    )
    parser.add_argument("--hours", type=float, default=2.0, help="time in all; default 2")
    parser.add_argument("--seeds", type=int, default=3, help="of the main arms; default 3")
    parser.add_argument("--arms", nargs="+", choices=list(BY_NAME), help="default: all")
    parser.add_argument("--jobs", type=int, help="arms at once; default: one a core, 2 at most")
    parser.add_argument("--plan", action="store_true", help="print the plan and end")
    parser.add_argument("--quick", action="store_true", help="try the program: two updates")
    parser.add_argument("--keep-models", action="store_true", help="0.5 GB for each job")
    parser.add_argument("--model", type=Path, help="another Hugging Face model")
    parser.add_argument("--pairs", type=Path, help="directory of pairs and prompts")
    parser.add_argument("--train", nargs="*", default=[], help="overrides of training")
    parser.add_argument("--generate", nargs="*", default=[], help="overrides of sampling")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run it; returns the exit status."""
    options = arguments(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    begun = time.monotonic()
    settings = QUICK if options.quick else FULL
    names = options.arms or list(QUICK_ARMS if options.quick else BY_NAME)
    todo = jobs(tuple(arm for arm in ARMS if arm.name in names), options.seeds)
    workers = options.jobs or _workers()
    run_dir: Path = options.run_dir.absolute()
    world = World(
        run_dir=run_dir,
        settings=settings,
        base=options.model.absolute() if options.model else run_dir / "base-hf",
        megatron=run_dir / "base-megatron",
        prompts=run_dir / "prompts.jsonl",
        train_overrides=("parallel=single", *options.train),
        generate_overrides=tuple(options.generate),
        keep_models=options.keep_models,
    )
    try:
        _check(options, names)
        costs = Costs(settings)
        known = _known(todo, world) if (world.base / "config.json").is_file() else {}
        for noted in known.values():
            costs.learn(noted)
        show_plan(todo, costs, workers, options.hours, frozenset(known))
        if options.plan:
            return EXIT_DONE
        _material(world, options, sorted({job.seed for job in todo}))
        with _Signals(world):
            outcome = execute(
                todo,
                costs,
                lambda job: run_job(job, world),
                workers=workers,
                budget=options.hours * 3600 - (time.monotonic() - begun),
                done=_known(todo, world),
                say=say,
            )
        return _finish(outcome, world, options, workers)
    except UserError as error:
        print(f"experiment: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except StoppedError:
        print("experiment: stopped by a signal; the same command resumes", file=sys.stderr)
        return EXIT_REQUEUE


def _workers() -> int:
    import torch

    # One job on a GPU; on a CPU a rank takes one core and about 4 GB.
    return 1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)


def _check(options: argparse.Namespace, names: list[str]) -> None:
    if options.hours <= 0 or options.seeds < 1 or (options.jobs is not None and options.jobs < 1):
        raise UserError("--hours, --seeds and --jobs must be positive")
    for name in names:
        source = BY_NAME[name].labels_of
        if source is not None and source not in names:
            raise UserError(f"--arms {name}: takes its number of labels from {source}; add that")
    if BASE not in names:
        raise UserError(f"--arms: add {BASE}, which everything is compared with")


def _known(todo: list[Job], world: World) -> dict[Job, dict[str, object]]:
    found = {job: finished(job, world) for job in todo}
    return {job: noted for job, noted in found.items() if noted is not None}


def show_plan(
    todo: list[Job], costs: Costs, workers: int, hours: float, done: frozenset[Job]
) -> None:
    """Print the plan: the jobs, their order, and those that do not fit."""
    lines = plan(todo, costs, workers=workers, budget=hours * 3600, done=done)
    say(f"{'job':28}{'begins':>8}{'ends':>8}")
    for line in lines:
        if line.job in done:
            when = f"{'done':>16}"
        elif not line.fits:
            when = "  does not fit"
        else:
            when = f"{line.begin / 60:6.0f}m {line.end / 60:6.0f}m"
        say(f"{line.job.name:28}{when}")
    fitting = [line for line in lines if line.fits]
    end = max((line.end for line in fitting), default=0.0)
    say(
        f"{len(fitting)} of {len(lines)} jobs fit into {hours:g} h with {workers} at once; about "
        f"{end / 60:.0f} minutes, by {'measured' if costs.measured else 'guessed'} times"
    )


def _material(world: World, options: argparse.Namespace, seeds: list[int]) -> None:
    """Model, pairs of every seed, prompts."""
    world.run_dir.mkdir(parents=True, exist_ok=True)
    if options.model is None:
        base_model(world.base)
    if (world.megatron / "model_config.json").is_file():
        say(f"Megatron checkpoint: reused {world.megatron}")
    else:
        cli("convert", "hf-to-megatron", str(world.base), str(world.megatron))
    if options.pairs is None:
        source = rated_snippets()
        for seed in seeds:
            pairing = Pairing(seed=seed, num_train=world.settings.pairs)
            prepare(source, world.data_dir(seed), pairing)
    else:
        for seed in seeds:
            world.data_dir(seed).mkdir(parents=True, exist_ok=True)
            for name in ("train.jsonl", "validation.jsonl", "prompts.jsonl"):
                shutil.copyfile(options.pairs / name, world.data_dir(seed) / name)
    world.prompts.write_text(_prompts(world.data_dir(seeds[0]) / "prompts.jsonl", world.settings))


def _prompts(seen: Path, settings: Settings) -> str:
    """The instructions of the pairs, then those that no pair has."""
    rows = [json.loads(line) for line in seen.read_text().splitlines()]
    rows += [
        {"id": f"unseen-{number}", "prompt": [{"role": "user", "content": text}]}
        for number, text in enumerate(UNSEEN)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows[: settings.prompts])


class _Signals:
    """SIGTERM and Ctrl-C stop the running commands, which save their work."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._previous: dict[int, object] = {}

    def _stop(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._world.children.stop()

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._stop)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def _finish(outcome: Outcome, world: World, options: argparse.Namespace, workers: int) -> int:
    """Pool, judge, write, and say where it is."""
    found: dict[str, dict[int, Results]] = {}
    for job in sorted(outcome.done, key=lambda job: list(BY_NAME).index(job.arm.name)):
        results = in_order(read_results(world.job_dir(job) / "evaluation"))
        found.setdefault(job.arm.name, {})[job.seed] = results
    if BASE not in found:
        print("experiment: the untouched model could not be measured; see above", file=sys.stderr)
        return EXIT_FAILED
    notes = _notes(outcome, world, options, workers)
    default = world.run_dir / "results" if options.quick else ROOT / "benchmarks" / "experiment"
    results_dir = (options.results_dir or default).absolute()
    page = publish(
        found,
        settings=world.settings,
        run_dir=world.run_dir,
        results_dir=results_dir,
        notes=notes,
        noted=outcome.done,
    )
    say("")
    for line in (results_dir / "results.md").read_text().split("## Every arm")[0].splitlines():
        if line.startswith("| "):
            say(line.strip("| ").replace(" | ", ": ").replace("**", ""))
    say(f"\ntable: {results_dir / 'results.md'}\npage:  {page}")
    return EXIT_FAILED if outcome.failed else EXIT_DONE


def _notes(outcome: Outcome, world: World, options: argparse.Namespace, workers: int) -> list[str]:
    """Notes for the reader: machine, model, what is missing."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    model = "SmolLM2-135M-Instruct" if options.model is None else str(options.model)
    s = world.settings
    minutes = sum(sum(noted["seconds"].values()) for noted in outcome.done.values()) / 60
    notes = [
        f"{model}, {s.updates} updates of {s.batch} pairs (learning rate {s.learning_rate:g}, "
        f"cosine, {s.warmup} updates of warm-up) for every arm alike; none was tuned by itself.",
        f"{s.prompts} prompts, of which {max(0, s.prompts - 8)} are in no training pair; "
        f"{s.samples} responses to each at temperatures "
        f"{', '.join(f'{t:g}' for t in s.temperatures)}, {s.max_tokens} tokens at most.",
        "A seed draws other pairs, puts them in another order and samples anew; training itself "
        "draws nothing.",
        f"{device}, {os.cpu_count()} cores, {workers} at once, Python "
        f"{platform.python_version()}, torch {torch.__version__}; {len(outcome.done)} jobs, "
        f"which took {minutes:.0f} minutes, added up.",
    ]
    if outcome.left_out:
        names = ", ".join(job.name for job in outcome.left_out)
        notes.append(f"Left out for want of time: {names}.")
    if outcome.failed:
        names = "; ".join(f"{job.name} ({why})" for job, why in outcome.failed.items())
        notes.append(f"Failed: {names}.")
    return notes


if __name__ == "__main__":
    sys.exit(main())
