"""Parts of a job: drawn pairs, settings that changed, commands that fail or are stopped."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from examples.film_reviews.experiment import stages
from examples.film_reviews.experiment.arms import BY_NAME, Job
from examples.film_reviews.experiment.settings import FULL, QUICK, Settings
from examples.film_reviews.experiment.stages import (
    DONE,
    Children,
    StageError,
    StoppedError,
    World,
    finished,
    identity,
)


def world(directory: Path, settings: Settings = QUICK) -> World:
    base = directory / "base"
    base.mkdir(exist_ok=True)
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"x" * 10)
    return World(directory, settings, base, directory / "megatron", directory / "prompts.jsonl")


def note(job: Job, where: World, **more: Any) -> None:
    where.job_dir(job).mkdir(parents=True, exist_ok=True)
    text = json.dumps({"identity": identity(job, where), "seconds": {}, **more})
    (where.job_dir(job) / DONE).write_text(text)


def test_random_pairs_are_as_many_as_labels_were_asked_for(tmp_path: Path) -> None:
    where = world(tmp_path)
    job = Job(BY_NAME["dpo-random"], 2)
    where.data_dir(2).mkdir(parents=True)
    rows = [json.dumps({"id": n}) for n in range(40)]
    (where.data_dir(2) / "train.jsonl").write_text("\n".join(rows) + "\n")
    where.job_dir(job).mkdir(parents=True)
    with pytest.raises(StageError, match="dpo-random/seed-2 needs adpo/seed-2"):
        stages._pairs(job, where)
    note(Job(BY_NAME["adpo"], 2), where, last_step={"adpo/queries_total": 17.0})
    path = stages._pairs(job, where)
    drawn = [json.loads(line)["id"] for line in path.read_text().splitlines()]
    assert len(drawn) == 17 and drawn == sorted(set(drawn)) and set(drawn) <= set(range(40))
    assert stages._pairs(job, where).read_text() == path.read_text()
    # Other arms take them all.
    assert stages._pairs(Job(BY_NAME["dpo"], 2), where) == where.data_dir(2) / "train.jsonl"


def test_a_finished_job_counts_for_the_same_settings_only(tmp_path: Path) -> None:
    where = world(tmp_path)
    job = Job(BY_NAME["dpo"], 1)
    assert finished(job, where) is None
    note(job, where)
    assert finished(job, where) is not None
    assert finished(job, replace(where, settings=FULL)) is None
    assert finished(job, replace(where, train_overrides=("optim.lr=1",))) is None
    changed = replace(BY_NAME["dpo"], objective={"name": "dpo", "beta": 0.2})
    assert finished(Job(changed, 1), where) is None
    (where.base / "model.safetensors").write_bytes(b"x" * 11)
    assert finished(job, where) is None


def test_leftovers_of_other_settings_are_removed(tmp_path: Path) -> None:
    directory = tmp_path / "job"
    stages._forget_other_settings(directory, {"a": 1})
    (directory / "half").write_text("")
    stages._forget_other_settings(directory, {"a": 1})
    assert (directory / "half").exists()
    stages._forget_other_settings(directory, {"a": 2})
    assert not (directory / "half").exists()


def test_a_failed_command_reports_its_last_line(tmp_path: Path) -> None:
    code = "import sys; print('nemo-gdpo: error: no'); print('more'); sys.exit(3)"
    with pytest.raises(StageError, match=r"status 3: nemo-gdpo: error: no \(complete output: "):
        Children().run([sys.executable, "-c", code], tmp_path / "log", dict(os.environ))
    assert (tmp_path / "log").read_text().startswith("$ ")


def test_a_signal_reaches_what_runs_and_nothing_more_begins(tmp_path: Path) -> None:
    children = Children()
    threading.Timer(0.5, children.stop).start()
    begun = time.monotonic()
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(StoppedError):
        children.run(command, tmp_path / "log", dict(os.environ))
    assert time.monotonic() - begun < 20
    with pytest.raises(StoppedError):
        children.run(command, tmp_path / "log", dict(os.environ))


def test_arms_with_own_or_shared_reference(tmp_path: Path) -> None:
    where = world(tmp_path)

    def cache(name: str) -> str:
        overrides = stages._train_overrides(Job(BY_NAME[name], 1), where, Path("p"))
        (found,) = (o for o in overrides if o.startswith("reference_cache_dir="))
        return found

    assert cache("dpo") == cache("ipo") == cache("adpo")
    assert cache("gdpo-tb-k8") == cache("gdpo-db-k20") != cache("dpo")
    assert (
        len({cache("gdpo-released"), cache("gdpo-tb-k8"), cache("dpo-random"), cache("dpo")}) == 4
    )
