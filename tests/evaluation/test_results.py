"""The file of results: what is written is read back, and what does not fit is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.results import (
    Comparison,
    Flag,
    Headline,
    Interval,
    MetricInfo,
    Point,
    Results,
    Run,
    Sample,
    SampleResponses,
    read_results,
    write_results,
)
from nemo_gdpo.generation.types import SamplingPoint

HOT = SamplingPoint(1.3, 0.9, 0.05, 40)
POINT = Point(
    sampling=HOT,
    num_prompts=2,
    num_samples=3,
    metrics={"vendi": Interval(1.5, 1.0, 2.0, 1)},
    per_prompt={"vendi": [1.5, None]},
    counts={"empty": 1},
    flags=[Flag("invalid", "because")],
)
RESULTS = Results(
    versions={"torch": "2"},
    settings={"seed": 1, "nested": {"list": [1, None, "x"]}},
    metrics={"vendi": MetricInfo("diversity", "higher", "", "effective number")},
    headline=Headline("vendi", None, None),
    runs=[Run("gdpo", "dir", "hash", {"alpha": 1.0, "queries": None}, ["a", "b"], [POINT])],
    comparisons=[
        Comparison(
            run="gdpo",
            sampling=HOT,
            against="reference",
            against_sampling=None,
            judge="j",
            criterion="is better",
            win_rate=None,
            wins=0,
            losses=0,
            ties=0,
            inconsistent=0,
            unparsable=2,
            transcript="judge/transcript.jsonl",
        )
    ],
    samples=[
        Sample(
            "a",
            [{"role": "user", "content": "é\n☃"}],
            [SampleResponses("gdpo", HOT, ["x"], ["stop"], {"vader": [0.5]})],
        )
    ],
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = write_results(RESULTS, tmp_path / "new")
    assert read_results(path) == read_results(path.parent) == RESULTS
    assert [p.name for p in path.parent.iterdir()] == ["evaluation.json"]


def test_label_names_what_differs_from_plain_sampling() -> None:
    assert HOT.label() == "T=1.3 top_p=0.9 min_p=0.05 top_k=40"
    assert SamplingPoint(1.0, 1.0, 0.0, 0).label() == "T=1"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: d.update(schema=2), "schema 2, this version reads 1"),
        (lambda d: d.pop("schema"), "schema None"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d["runs"][0].pop("name"), "runs.0.name"),
        (lambda d: d["runs"][0]["points"][0]["sampling"].pop("top_k"), "sampling.*top_k missing"),
        (lambda d: d["runs"][0]["points"][0]["sampling"].update(beams=4), "sampling.beams"),
        (lambda d: d["runs"][0]["points"][0]["sampling"].update(top_k="4"), "sampling.top_k"),
        (lambda d: d["runs"][0]["points"][0]["metrics"]["vendi"].update(mean="1.5"), "mean"),
        (lambda d: d["runs"][0]["points"][0]["metrics"]["vendi"].update(mean=math.nan), "mean"),
        (lambda d: d["runs"][0]["points"][0]["per_prompt"]["vendi"].pop(), "1 values for 2 prom"),
        (lambda d: d["runs"][0]["points"][0]["per_prompt"].update(x=[1, 2]), "'x' is not desc"),
        (lambda d: d["headline"].update(quality="reward"), "'reward', which is not described"),
        (lambda d: d["runs"].append(d["runs"][0]), "same name"),
    ],
)
def test_what_does_not_fit_is_refused(change: object, complaint: str) -> None:
    plain = json.loads(RESULTS.to_json())
    assert callable(change)
    change(plain)
    with pytest.raises(UserError, match=complaint) as caught:
        Results.from_json(json.dumps(plain), "there/evaluation.json")
    assert str(caught.value).startswith("there/evaluation.json: ")
    assert "\n" not in str(caught.value)


def test_a_number_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    write_results(RESULTS, tmp_path)
    run = replace(RESULTS.runs[0], facts={"loss": math.inf})
    with pytest.raises(ValueError, match="JSON"):
        write_results(replace(RESULTS, runs=[run]), tmp_path)
    assert read_results(tmp_path) == RESULTS


@pytest.mark.parametrize("text", ["", "[1", "[]", "{}"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(UserError, match=r"evaluation\.json"):
        read_results(tmp_path)
