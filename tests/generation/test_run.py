"""The run around the engine: what is asked for, what is skipped, stopped, resumed, refused."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.generation import GENERATE, GenerateConfig
from nemo_gdpo.errors import EXIT_DONE, EXIT_REQUEUE, UserError
from nemo_gdpo.generation import run as run_module
from nemo_gdpo.generation.backends import Backend
from nemo_gdpo.generation.errors import GenerationError
from nemo_gdpo.generation.run import run
from nemo_gdpo.generation.seeds import sample_seed
from nemo_gdpo.generation.store import read_generations
from nemo_gdpo.generation.types import SamplingPoint
from nemo_gdpo.launch.failures import guarded
from tests.support.data import write_jsonl
from tests.support.models import save_model

from .fakes import FakeEngine

PROMPTS = {"a": "good", "b": "bad film and very long"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [{"id": key, "prompt": text} for key, text in PROMPTS.items()]
    return write_jsonl(tmp_path / "prompts.jsonl", rows)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    """The engines to start, in turn; each run takes one out."""
    waiting: list[FakeEngine] = []

    def opened(config: GenerateConfig, facts: Any) -> Backend:
        del config
        return Backend(
            FakeEngine().describe(), {"dtype": "x"}, facts.context, lambda _: waiting.pop(0)
        )

    monkeypatch.setattr(run_module, "open_backend", opened)
    return waiting


@pytest.fixture
def configured(model: Path, prompts: Path, tmp_path: Path) -> Callable[..., GenerateConfig]:
    def make(*overrides: str) -> GenerateConfig:
        base = [
            f"model.restore_from_path={model}",
            f"data.prompts_path={prompts}",
            f"output_dir={tmp_path / 'out'}",
            "generation.num_samples=2",
            "generation.temperature=[0.7,1.0]",
            "generation.max_tokens=8",
            "generation.seed=5",
        ]
        return GENERATE.parse(compose([*base, *overrides], root=GENERATE).plain)

    return make


def _rows(tmp_path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_generations(tmp_path / "out")]


def test_every_prompt_at_every_point_once(
    configured: Any, engines: list[FakeEngine], tmp_path: Path
) -> None:
    engines.append(engine := FakeEngine())
    assert run(configured()) == EXIT_DONE
    rows = _rows(tmp_path)
    assert [(row["id"], row["sampling"]["temperature"]) for row in rows] == [
        ("a", 0.7), ("a", 1.0), ("b", 0.7), ("b", 1.0),
    ]  # fmt: skip
    first = rows[0]
    seeds = [sample_seed(5, "a", SamplingPoint(0.7), n) for n in range(2)]
    assert first["seeds"] == seeds
    assert first["outputs"] == [f"a 0.7 {seed}" for seed in seeds]
    assert first["finish_reasons"] == ["stop", "stop"]
    assert first["stop_reasons"] == [1, 1]
    assert first["token_ids"] == [[9, 1], [9, 1]]
    assert first["versions"]["engine_version"] == "1"
    assert len(first["model_hash"]) == 64
    assert "cumulative_logprobs" not in first
    assert engine.closed
    # The second run has nothing to do, and starts no engine.
    assert run(configured()) == EXIT_DONE
    assert _rows(tmp_path) == rows


def test_a_larger_sweep_and_more_prompts_extend(
    configured: Any, engines: list[FakeEngine], tmp_path: Path, prompts: Path
) -> None:
    engines += [FakeEngine(), second := FakeEngine()]
    assert run(configured("generation.temperature=0.7")) == EXIT_DONE
    with prompts.open("a") as file:
        file.write('{"id": "c", "prompt": "long"}\n')
    assert run(configured()) == EXIT_DONE
    assert [(one.id, one.sampling.temperature) for one in second.asked] == [
        ("a", 1.0), ("b", 1.0), ("c", 0.7), ("c", 1.0),
    ]  # fmt: skip
    assert len(_rows(tmp_path)) == 6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generation.seed=6", "settings.seed is 5 there and 6 here"),
        ("generation.num_samples=3", "settings.num_samples is 2 there and 3 here"),
        ("generation.logprobs=cumulative", "settings.logprobs"),
        ("generation.stop=[x]", "settings.stop"),
    ],
)
def test_another_setting_is_refused(
    configured: Any, engines: list[FakeEngine], override: str, message: str
) -> None:
    engines.append(FakeEngine())
    assert run(configured()) == EXIT_DONE
    with pytest.raises(UserError, match=message):
        run(configured(override))


def test_another_model_and_another_template_are_refused(
    configured: Any, engines: list[FakeEngine], tmp_path: Path
) -> None:
    engines.append(FakeEngine())
    assert run(configured()) == EXIT_DONE
    other = save_model(tmp_path / "other", seed=8)
    with pytest.raises(UserError, match=r"model\.hash is"):
        run(configured(f"model.restore_from_path={other}"))
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages[0]['content'] }}")
    with pytest.raises(UserError, match=r"model\.encoding is"):
        run(configured(f"data.chat_template={template}"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_keeps_what_is_done_and_asks_for_a_requeue(
    configured: Any, engines: list[FakeEngine], tmp_path: Path, number: signal.Signals, capsys: Any
) -> None:
    def interfere(count: int) -> None:
        if count == 2:
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    engines += [FakeEngine(interfere), FakeEngine()]
    assert run(configured()) == EXIT_REQUEUE
    assert signal.getsignal(number) is handler
    assert len(_rows(tmp_path)) == 2
    assert "stopped by a signal, 2 rows are left" in capsys.readouterr().err
    assert run(configured()) == EXIT_DONE
    assert len(_rows(tmp_path)) == 4


def test_a_signal_while_the_model_loads(
    configured: Any, engines: list[FakeEngine], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    del engines

    def slow(config: Any, facts: Any) -> Backend:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("went on")

    monkeypatch.setattr(run_module, "open_backend", slow)
    assert guarded(lambda: run(configured())) == EXIT_REQUEUE
    assert "stopped by a signal before sampling began" in capsys.readouterr().err


def test_a_failing_engine_loses_nothing(
    configured: Any, engines: list[FakeEngine], tmp_path: Path
) -> None:
    def fail(count: int) -> None:
        if count == 3:
            raise GenerationError("the server is gone")

    engines += [FakeEngine(fail), FakeEngine()]
    with pytest.raises(GenerationError, match="the server is gone"):
        run(configured())
    assert len(_rows(tmp_path)) == 3
    assert run(configured()) == EXIT_DONE
    assert len(_rows(tmp_path)) == 4


def test_an_engine_that_ends_early_is_a_failure(configured: Any, engines: list[FakeEngine]) -> None:
    engines.append(engine := FakeEngine())
    engine.before = lambda count: engine.stop() if count == 1 else None
    with pytest.raises(GenerationError, match="ended with 3 rows missing"):
        run(configured())


def test_prompts_too_long_are_listed_and_the_others_sampled(
    configured: Any, engines: list[FakeEngine], tmp_path: Path, model: Path, capsys: Any
) -> None:
    """A prompt that fits exactly is sampled; a longer one is not, nor is it cut."""
    lengths = [len(AutoTokenizer.from_pretrained(model)(t)["input_ids"]) for t in PROMPTS.values()]
    assert lengths[0] < lengths[1]
    engines += [engine := FakeEngine(), FakeEngine()]
    limit = f"generation.max_model_len={lengths[0] + 8}"
    assert run(configured(limit)) == EXIT_DONE
    assert [(one.id, len(one.prompt_token_ids)) for one in engine.asked] == 2 * [("a", lengths[0])]
    (line,) = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    skipped = json.loads(line)
    assert (skipped["id"], skipped["prompt_tokens"]) == ("b", lengths[1])
    assert (skipped["max_tokens"], skipped["context"]) == (8, lengths[0] + 8)
    assert "1 of the prompts are skipped ('b')" in capsys.readouterr().err
    # With more room they are made, and the list goes.
    assert run(configured("generation.max_model_len=64")) == EXIT_DONE
    assert not (tmp_path / "out" / "skipped.jsonl").exists()
    assert len(_rows(tmp_path)) == 4


def test_nothing_fits(configured: Any, engines: list[FakeEngine]) -> None:
    del engines
    with pytest.raises(UserError, match=r"no prompt leaves room for generation\.max_tokens=500"):
        run(configured("generation.max_tokens=500"))


def test_more_context_than_the_model_has_is_refused(
    configured: Any, engines: list[FakeEngine]
) -> None:
    del engines
    with pytest.raises(UserError, match=r"max_model_len=999: the model was made for 256 tokens"):
        run(configured("generation.max_model_len=999"))
