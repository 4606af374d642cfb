"""Constraints around an engine: columns, counts, identity, what is asked of vLLM and of servers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.generation import GENERATE, GenerateConfig
from nemo_gdpo.constraints import Structure
from nemo_gdpo.data import PairEncoder
from nemo_gdpo.errors import EXIT_DONE, UserError
from nemo_gdpo.generation import run as run_module
from nemo_gdpo.generation.backends import Backend
from nemo_gdpo.generation.cli import problems
from nemo_gdpo.generation.constrained import with_tokenizer_end
from nemo_gdpo.generation.engine_arguments import engine_arguments, sampling_arguments
from nemo_gdpo.generation.rows import parse_row
from nemo_gdpo.generation.run import run
from nemo_gdpo.generation.stops import Stops
from nemo_gdpo.generation.store import read_generations
from nemo_gdpo.generation.types import Completed, EngineSettings, Request
from tests.support.data import write_jsonl
from tests.support.models import save_model

from .fakes import FakeEngine, answer, request

TEXTS = ("a HORROR film", "a dull film")


class Reviewer(FakeEngine):
    """Whose two answers are `TEXTS`."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completed]:
        for row in super().generate(requests):
            given = zip(row.samples, TEXTS, strict=True)
            samples = tuple(dataclasses.replace(sample, text=text) for sample, text in given)
            yield dataclasses.replace(row, samples=samples)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def configured(model: Path, tmp_path: Path) -> Callable[..., GenerateConfig]:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"id": "a", "prompt": "good"}])

    def make(*overrides: str) -> GenerateConfig:
        base = [
            f"model.restore_from_path={model}",
            f"data.prompts_path={prompts}",
            f"output_dir={tmp_path / 'out'}",
            "generation.num_samples=2",
            "generation.max_tokens=8",
        ]
        return GENERATE.parse(compose([*base, *overrides], root=GENERATE).plain)

    return make


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Reviewer:
    made = Reviewer()

    def opened(config: GenerateConfig, facts: Any) -> Backend:
        del config
        return Backend(made.describe(), {"dtype": "x"}, facts.context, lambda _: made)

    monkeypatch.setattr(run_module, "open_backend", opened)
    return made


ASKED = ("constraints.concepts={genre: horror}", "constraints.forbidden=[dull]")


def test_rows_say_what_is_broken_and_the_run_counts_it(
    configured: Any, engine: Reviewer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(configured(*ASKED)) == EXIT_DONE
    ((where, plain),) = read_generations(tmp_path / "out")
    assert plain["constraints_met"] == [True, False]
    assert plain["broken"] == [[], ["concepts.genre", "forbidden.dull"]]
    assert parse_row(plain, where)[0].broken == ((), ("concepts.genre", "forbidden.dull"))
    told = (
        "1 of 2 samples broke concepts.genre\n"
        "1 of 2 samples broke forbidden.dull\n"
        "1 of 2 samples met all constraints\n"
    )
    assert told in capsys.readouterr().out
    assert engine.asked[0].structure is None  # nothing that vLLM could enforce
    assert run(configured(*ASKED)) == EXIT_DONE  # the same again: nothing to do, the same counts
    assert told in capsys.readouterr().out


def test_other_constraints_are_another_run(
    configured: Any, engine: Reviewer, tmp_path: Path
) -> None:
    assert run(configured(*ASKED)) == EXIT_DONE
    for other in ([], [ASKED[0]], [ASKED[0], "constraints.forbidden=[bad]"]):
        with pytest.raises(UserError, match=r"settings.constraints.forbidden is \[\"dull\"\]"):
            run(configured(*other))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["settings"]["constraints"] == {
        "concepts": {"genre": ["horror"]}, "forbidden": ["dull"],
    }  # fmt: skip


def test_without_constraints_nothing_is_added(
    configured: Any, engine: Reviewer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(configured()) == EXIT_DONE
    ((where, plain),) = read_generations(tmp_path / "out")
    assert not {"constraints_met", "broken"} & set(plain)
    assert parse_row(plain, where)[0].broken is None
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "constraints" not in manifest["settings"]
    assert "broke" not in capsys.readouterr().out
    assert "structured_outputs" not in sampling_arguments(engine.asked[0], 0)


def test_a_form_is_enforced(configured: Any, engine: Reviewer, model: Path) -> None:
    run(configured("constraints.choice=[a HORROR film]"))
    assert engine.asked[0].structure == Structure("choice", ("a HORROR film",))
    assert sampling_arguments(engine.asked[0], 0)["structured_outputs"] == {
        "choice": ["a HORROR film"]
    }
    # The tokenizer's own end is one of its ends.
    assert AutoTokenizer.from_pretrained(model).eos_token_id in engine.asked[0].stop_token_ids


def test_the_tokenizers_end_is_added_once(model: Path) -> None:
    encoding = PairEncoder(AutoTokenizer.from_pretrained(model))
    end = encoding.tokenizer.eos_token_id
    assert with_tokenizer_end(Stops(("x",), (7,)), encoding) == Stops(("x",), (7, end))
    assert with_tokenizer_end(Stops((), (end,)), encoding) == Stops((), (end,))


def test_a_form_goes_to_ray_and_back() -> None:
    for structure in (Structure("regex", "a+"), Structure("choice", ("a", "b")), None):
        one = request(structure=structure)
        assert Request.from_dict(json.loads(json.dumps(one.to_dict()))) == one
        assert Completed.from_dict(json.loads(json.dumps(answer(one).to_dict()))).request == one


def test_the_engine_is_told_which_library() -> None:
    plain = EngineSettings("m", "float32", 1, 8, None, None, 1, 1, True)
    assert "structured_outputs_config" not in engine_arguments(plain, cpu=True)
    told = engine_arguments(dataclasses.replace(plain, structured=True), cpu=True)
    assert told["structured_outputs_config"] == {"backend": "xgrammar"}


def test_log_probs_among_the_allowed_tokens_are_refused(configured: Any) -> None:
    asked = ("constraints.regex=a+", "generation.logprobs=tokens")
    (only,) = problems(configured(*asked))
    assert str(only).startswith("generation.logprobs: is tokens, and where vLLM enforces")
    assert problems(configured(*asked, "constraints.enforce=false")) == []


def test_contradictions_are_named_before_any_engine(configured: Any) -> None:
    (only,) = problems(configured("constraints.min_words=3", "constraints.max_words=2"))
    assert str(only).startswith("constraints.min_words: 3 is above constraints.max_words=2")


@pytest.mark.parametrize(
    "changes",
    [
        {"broken": [["x"]], "constraints_met": [True]},
        {"broken": [[]], "constraints_met": [True, True]},
        {"broken": [[""]], "constraints_met": [False]},
        {"constraints_met": [True]},
        {"broken": [[]]},
    ],
)
def test_a_row_that_contradicts_itself_is_refused(changes: dict[str, Any]) -> None:
    plain = {
        "id": "a", "prompt": "p", "outputs": ["x"], "finish_reasons": ["stop"], "model_hash": "h",
        "sampling": {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0},
    }  # fmt: skip
    assert parse_row(plain, "here")[0].broken is None
    with pytest.raises(UserError, match="here: broken and constraints_met do not say the same"):
        parse_row(plain | changes, "here")
