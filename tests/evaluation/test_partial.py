"""What fails, is blank, cut or unread: the rest is measured and written, and it is said first."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.evaluation import EVALUATE
from nemo_gdpo.errors import RunError, UserError
from nemo_gdpo.evaluation.cli import evaluate, measure_and_report
from nemo_gdpo.evaluation.evaluate import measure_all
from nemo_gdpo.evaluation.report.console import render_table
from nemo_gdpo.evaluation.report.frontier import frontiers
from nemo_gdpo.evaluation.report.notices import notices
from nemo_gdpo.evaluation.results import Results, read_results
from nemo_gdpo.io import files, http
from tests.support.servers import judge_server

from .metrics.test_rewards import save_reward_model
from .written_runs import GOOD, NO_ENCODER, ordinary, point, row, run, write_run

REFUSES_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}{{ m.content }}{% endfor %}"
)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.001)


def config(output: Path, directory: Path, *overrides: str) -> Any:
    arguments = [f"evaluation.runs={{base: {directory}}}", f"output_dir={output}", NO_ENCODER]
    arguments += ["evaluation.bootstrap.resamples=200", *overrides]
    return EVALUATE.parse(compose(arguments, root=EVALUATE).plain)


def reward_of(directory: Path, **settings: Any) -> str:
    fields = ", ".join(f"{name}: {value}" for name, value in settings.items())
    return f"evaluation.rewards=[vader, {{kind: hf_reward_model, path: {directory}, {fields}}}]"


# --- rewards ----------------------------------------------------------------------------------


def test_a_response_without_a_reward_is_named_and_the_others_have_theirs(tmp_path: Path) -> None:
    """One is too long, and one conversation has a role that the template refuses."""
    model = save_reward_model(tmp_path / "rm", pad=True)
    (model / "chat_template.jinja").write_text(REFUSES_SYSTEM)
    system = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    rows = [
        row("fine", ["good", "bad"], prompt=[{"role": "user", "content": "a film"}]),
        row("long", ["good", "a good film " * 9], prompt=[{"role": "user", "content": "a film"}]),
        row("system", ["good", "bad"], prompt=system),
    ]
    directory = write_run(tmp_path / "in", rows)
    found = run(
        tmp_path / "out",
        {"base": directory},
        NO_ENCODER,
        reward_of(model, name="rm", max_length=12),
    )
    here = point(found)
    values = here.per_prompt["reward.rm"]
    assert values[0] is not None
    assert values[1:] == [None, None]
    assert all(value is not None for value in here.per_prompt["reward.vader"])
    assert [(item.id, item.response) for item in here.unscored] == [
        ("long", 2), ("system", 1), ("system", 2),
    ]  # fmt: skip
    assert "max_length is 12" in here.unscored[0].reason
    assert "no system role" in here.unscored[1].reason
    assert here.counts["unscored_by_rm"] == 3
    (said,) = [line for line in notices(found) if "reward rm" in line]
    assert "3 responses of base T=1 ('long' response 2" in said
    assert Results.from_json(found.to_json()) == found


def test_a_model_with_fewer_positions_than_the_limit(tmp_path: Path) -> None:
    """2048 by default of the model's maker; 512 are asked for; the response has more."""
    model = save_reward_model(tmp_path / "rm", pad=True)
    fields = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(fields | {"max_position_embeddings": 16}))
    rows = [
        row("a", ["good", "a good film " * 30], prompt="a film "),
        row("b", ["x", "y"], prompt="a film "),
    ]
    found = point(
        run(
            tmp_path / "out",
            {"base": write_run(tmp_path / "in", rows)},
            NO_ENCODER,
            reward_of(model, name="rm"),
        )
    )
    assert found.per_prompt["reward.rm"][0] is None
    assert found.per_prompt["reward.rm"][1] is not None
    assert "reads 16 (max_position_embeddings)" in found.unscored[0].reason


# --- a part that fails ------------------------------------------------------------------------


def test_a_reward_that_fails_leaves_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"broken_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text("def f(p, r):\n    raise RuntimeError('no luck')\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = config(
        tmp_path / "out",
        ordinary(tmp_path / "in"),
        f"evaluation.rewards=[vader, {{kind: python, name: mine, entry_point: '{name}:f'}}]",
    )
    with pytest.raises(UserError, match=r"no luck.*what could be measured is in .*evaluation.json"):
        evaluate(settings)
    assert "reward.vader" in capsys.readouterr().out
    results = read_results(tmp_path / "out")
    assert point(results).metrics["reward.vader"].n == 4
    assert "reward.mine" not in point(results).metrics
    assert [part.what for part in results.missing] == ["reward.mine of base at T=1"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Not measured: reward.mine of base at T=1" in page
    assert page.index("Know this first") < page.index("Quality beside diversity")


def test_a_judge_that_goes_away_leaves_the_rest(tmp_path: Path) -> None:
    references = tmp_path / "references.jsonl"
    references.write_text("".join(f'{{"id": "p{n}", "chosen": "x"}}\n' for n in range(4)))
    with judge_server(lambda *_: 503) as judge:
        settings = config(
            tmp_path / "out",
            ordinary(tmp_path / "in"),
            f"evaluation.judge.url={judge.url}",
            "evaluation.judge.model=j",
            "evaluation.judge.retries=0",
            f"evaluation.references_path={references}",
        )
        with pytest.raises(RunError, match="gone or failing") as caught:
            measure_and_report(settings)
    assert caught.value.status == 1
    results = read_results(tmp_path / "out")
    assert point(results).metrics["reward.vader"].n == 4
    assert results.comparisons == []
    assert [part.what for part in results.missing] == ["win rates"]


def test_one_pair_that_the_judge_refuses(tmp_path: Path) -> None:
    """Exit status 0: nothing more can be had. It is counted, and its prompt named."""
    references = tmp_path / "references.jsonl"
    references.write_text("".join(f'{{"id": "p{n}", "chosen": "x{n}"}}\n' for n in range(4)))

    def answer(first: str, second: str, number: int) -> Any:
        return (400, "content_filter") if "x2" in (first, second) else "[[TIE]]"

    with judge_server(answer) as judge:
        settings = config(
            tmp_path / "out",
            ordinary(tmp_path / "in"),
            f"evaluation.judge.url={judge.url}",
            "evaluation.judge.model=j",
            f"evaluation.references_path={references}",
        )
        results = measure_and_report(settings)
    (found,) = results.comparisons
    assert (found.ties, found.refused, found.cut, found.failed, found.unparsable) == (3, 1, 0, 0, 0)
    assert [(item.id, item.outcome) for item in found.undecided] == [("p2", "refused")]
    table = render_table(results)
    assert "* Without a verdict: base T=1 against reference: pairs 1 refused (prompts 'p2'" in table
    assert "1 refused, 0 cut, 0 not answered" in table


# --- the disk ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(28, 1), (122, 1), (5, 1), (13, 2), (36, 2)])
def test_the_exit_status_of_a_file_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    def fail(path: Path, content: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "write_file", fail)
    with pytest.raises((UserError, RunError), match="could not be written") as caught:
        files.write_output(tmp_path / "x", "y")
    assert caught.value.status == status
    said = {28: "free space", 122: "free space", 5: "the disk", 13: "permissions", 36: "shorter"}
    assert said[number] in str(caught.value)
    assert ("free space" in str(caught.value)) is (number in (28, 122))


# --- what is said first -----------------------------------------------------------------------


def test_blank_and_cut_responses_and_one_prompt_are_said_first(tmp_path: Path) -> None:
    ends = ["stop", "stop", "length", "length"]
    rows = [row("a", ["", " \n", GOOD[0], GOOD[1]], finish_reasons=ends)]
    directory = write_run(tmp_path / "in", rows)
    (directory / "manifest.json").write_text(json.dumps({"settings": {"max_tokens": 16}}))
    settings = config(tmp_path / "out", directory, "evaluation.flags.valid=0.1")
    results, failures = measure_all(settings)
    assert failures.error("") is None
    found = notices(results)
    assert "Blank responses: base T=1 (2 of 4)." in found
    assert any(
        line.startswith("Cut off at their greatest length (max_tokens=16): base T=1 (2 of 4)")
        for line in found
    )
    assert any("one prompt only" in line for line in found)
    table = render_table(results)
    assert "(one prompt)" in table
    assert "  * Blank responses: base T=1 (2 of 4)." in table
    (front, *_) = frontiers(results)
    assert not front.is_compared
    assert any("no front" in caveat for caveat in front.caveats)


def test_no_minus_before_a_zero(tmp_path: Path) -> None:
    rows = [row(f"p{n}", ["same text here"] * 3) for n in range(3)]
    runs = {"base": write_run(tmp_path / "in", rows)}
    results = run(tmp_path / "out", runs)
    assert point(results).metrics["semantic_diversity"].mean >= 0.0
    assert "-0.000" not in render_table(results)


# --- what a measure cannot read ---------------------------------------------------------------

MALAYALAM = ["ഇത് നല്ല സിനിമയാണ്", "എനിക്ക് ഇഷ്ടപ്പെട്ടില്ല", "വളരെ നീണ്ടതാണ്", "കഥ നന്നായി"]


def test_an_encoder_that_cannot_read_says_nothing_and_is_off_the_front(tmp_path: Path) -> None:
    read = ordinary(tmp_path / "read")
    unread = write_run(tmp_path / "unread", [row(f"p{n}", MALAYALAM) for n in range(4)])
    results = run(tmp_path / "out", {"base": read, "ml": unread})
    good, bad = point(results), point(results, "ml")
    assert good.flags == []
    assert bad.per_prompt["semantic_diversity"] == [None] * 4
    assert bad.per_prompt["vendi"] == [None] * 4
    assert bad.counts["unread_by_encoder"] == bad.counts["unread_by_vader"] == 16
    assert "unread" in [flag.name for flag in bad.flags]
    assert any("multilingual encoder" in flag.message for flag in bad.flags)
    (front, *_) = frontiers(results)
    assert "ml" not in [p.run for p in front.points if p.on_front]


def test_words_that_are_not_known_are_null_and_counted(tmp_path: Path) -> None:
    rows = [row("a", ["ᨲᩫ᩠ᩅᨾᩮᩬᩥᨦ", GOOD[0]]), row("b", GOOD[:2])]
    results = run(tmp_path / "out", {"base": write_run(tmp_path / "in", rows)}, NO_ENCODER)
    found = point(results)
    for name in ("distinct_1", "ead_2", "self_bleu", "length_words", "distinct_openings"):
        assert found.per_prompt[name][0] is None, name
        assert found.per_prompt[name][1] is not None, name
    assert found.counts["without_words"] == 1
    assert any("words are not known" in line for line in notices(results))
