"""Evaluations that need a model: perplexity, KL, surprise, and what is refused there."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from nemo_gdpo.conversion.fingerprint import weights_fingerprint
from nemo_gdpo.data import PairEncoder
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.metrics import divergence, encoder
from nemo_gdpo.evaluation.report.console import render_table
from tests.support.models import save_model

from .written_runs import GOOD, NO_ENCODER, at, point, row, run, write_run


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has learned the four sensible responses."""
    directory = save_model(tmp_path_factory.mktemp("learned") / "reference")
    model = LlamaForCausalLM.from_pretrained(directory)
    rows = [torch.tensor(ids) for ids in sequences(directory, GOOD)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(ids, attention_mask=(labels >= 0).long(), labels=labels).loss
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(loss) < 0.5
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, reference: Path) -> Path:
    """The reference, a little changed."""
    directory = tmp_path_factory.mktemp("changed") / "policy"
    model = LlamaForCausalLM.from_pretrained(reference)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(reference).save_pretrained(directory)
    return directory


PROMPT = [{"role": "user", "content": "Review the film p0."}]


def tokens(directory: Path, texts: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """(prompt ids, ids of each response with its end token)."""
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    own = PairEncoder(tokenizer)
    end = own.chat_end_token_id
    ids = [[*tokenizer(text, add_special_tokens=False)["input_ids"], end] for text in texts]
    return list(own.encode_prompt(PROMPT)), ids


def sequences(directory: Path, texts: Sequence[str]) -> list[list[int]]:
    prompt, responses = tokens(directory, texts)
    return [[*prompt, *ids] for ids in responses]


def scored_row(directory: Path, texts: list[str], **changes: Any) -> dict[str, Any]:
    prompt, ids = tokens(directory, texts)
    return (
        row(
            "p0",
            texts,
            prompt=PROMPT,
            prompt_token_ids=prompt,
            token_ids=ids,
            model_hash=weights_fingerprint(directory),
        )
        | changes
    )


def log_probs(directory: Path, texts: Sequence[str]) -> list[tuple[torch.Tensor, list[int]]]:
    model = LlamaForCausalLM.from_pretrained(directory)
    prompt, responses = tokens(directory, texts)
    found = []
    for ids in responses:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        found.append((logits.double().log_softmax(-1), ids))
    return found


def test_perplexity_and_kl_are_those_of_transformers(
    tmp_path: Path, reference: Path, policy: Path
) -> None:
    texts = GOOD[:2]
    runs = {
        "base": write_run(tmp_path / "base", [scored_row(reference, texts)]),
        "gdpo": write_run(tmp_path / "gdpo", [scored_row(policy, texts)]),
    }
    results = run(
        tmp_path / "out",
        runs,
        NO_ENCODER,
        f"evaluation.reference_model={reference}",
        f"evaluation.models={{gdpo: {policy}}}",
    )
    q, p = log_probs(reference, texts), log_probs(policy, texts)
    count = sum(len(ids) for _, ids in q)
    nll = -sum(float(log[range(len(ids)), ids].sum()) for log, ids in q)
    entropy = -sum(float((log.exp() * log).sum()) for log, _ in q)
    kl = [float((a.exp() * (a - b)).sum()) for (a, _), (b, _) in zip(p, q, strict=True)]
    ratios = [
        float((a - b)[range(len(ids)), ids].sum()) for (a, ids), (b, _) in zip(p, q, strict=True)
    ]
    found = point(results, "gdpo")
    expected = {
        "perplexity": math.exp(nll / count),
        "surprise": (nll - entropy) / count,
        "kl": statistics.fmean(kl),
        "kl_token": sum(kl) / count,
        "kl_sampled": statistics.fmean(ratios),
        "kl_k3": statistics.fmean(math.exp(-r) - 1 + r for r in ratios),
        "length_tokens": count / 2,
    }
    for name, value in expected.items():
        assert found.metrics[name].mean == pytest.approx(value, abs=1e-4), name
    assert expected["kl"] > 0.01
    # The base is the reference itself, and needs no setting to be known as that.
    assert point(results).metrics["kl"].mean == pytest.approx(0.0, abs=1e-6)
    named = run(
        tmp_path / "named",
        {"base": runs["base"]},
        NO_ENCODER,
        f"evaluation.reference_model={reference}",
        f"evaluation.models={{base: {reference}}}",
    )
    assert point(named) == point(results)
    assert results.headline.divergence == "kl"


def test_the_temperature_is_part_of_what_was_sampled(tmp_path: Path, reference: Path) -> None:
    rows = [scored_row(reference, GOOD[:2], sampling=at(t)) for t in (0.5, 1.0)]
    results = run(
        tmp_path / "out",
        {"base": write_run(tmp_path / "in", rows)},
        NO_ENCODER,
        f"evaluation.reference_model={reference}",
    )
    cold, plain = point(results).metrics, point(results, number=1).metrics
    assert plain["kl"].mean == pytest.approx(0.0, abs=1e-6)
    (log_a, _), (log_b, _) = log_probs(reference, GOOD[:2])
    kl = [
        float((t.exp() * (t - log)).sum())
        for log in (log_a, log_b)
        for t in [(log / 0.5).log_softmax(-1)]
    ]
    assert cold["kl"].mean == pytest.approx(statistics.fmean(kl), abs=1e-4)
    assert cold["perplexity"] == plain["perplexity"]


def test_rows_without_tokens_are_tokenised_as_training_does(
    tmp_path: Path, reference: Path
) -> None:
    """The end token belongs to a response that ended by itself, and to no other."""
    stored = scored_row(reference, GOOD[:3])
    for ids in stored["token_ids"][1:]:
        ids.pop()
    stored["finish_reasons"] = ["stop", "length", "stop"]
    stored["stop_reasons"] = [2, None, "END"]
    bare = stored | {"token_ids": None, "prompt_token_ids": None}
    option = f"evaluation.reference_model={reference}"
    first, second = (
        point(
            run(
                tmp_path / f"out{n}",
                {"base": write_run(tmp_path / f"in{n}", [r])},
                NO_ENCODER,
                option,
            )
        )
        for n, r in enumerate((stored, bare))
    )
    assert second.per_prompt["perplexity"] == pytest.approx(first.per_prompt["perplexity"])
    assert (first.counts["tokenised_anew"], second.counts["tokenised_anew"]) == (0, 3)
    assert second.per_prompt["length_tokens"] == [None]


def test_noise_surprises_the_reference(tmp_path: Path, reference: Path) -> None:
    """Random tokens against what the reference has learned; its own text has no excess."""
    tokenizer: Any = AutoTokenizer.from_pretrained(reference)
    draw = random.Random(0)
    ids = [[draw.randrange(10, len(tokenizer)) for _ in range(12)] for _ in range(4)]
    broken = scored_row(
        reference,
        [tokenizer.decode(i) for i in ids],
        token_ids=ids,
        model_hash="b" * 64,
        finish_reasons=["length"] * 4,
    )
    runs = {
        "base": write_run(tmp_path / "base", [scored_row(reference, GOOD)]),
        "noise": write_run(tmp_path / "noise", [broken]),
    }
    results = run(tmp_path / "out", runs, NO_ENCODER, f"evaluation.reference_model={reference}")
    good, bad = point(results), point(results, "noise")
    assert abs(good.metrics["surprise"].mean) < 0.5
    assert bad.metrics["surprise"].mean > 1.0
    assert bad.metrics["perplexity"].mean > 10 * good.metrics["perplexity"].mean
    assert bad.metrics["distinct_2"].mean > good.metrics["distinct_2"].mean - 0.05
    assert "noise" in [flag.name for flag in bad.flags]
    assert good.flags == []
    # Its model is not known, so there is no KL; the table says so with a dash.
    assert "kl" not in bad.metrics
    assert "  -  " in render_table(results).splitlines()[3]


def test_other_models_are_refused(tmp_path: Path, reference: Path, policy: Path) -> None:
    option = f"evaluation.reference_model={reference}"
    stored = write_run(tmp_path / "in", [scored_row(policy, GOOD[:2])])
    other = save_model(tmp_path / "other", seed=9)
    with pytest.raises(UserError, match=r"evaluation.models.x: the weights of .* are not those"):
        run(
            tmp_path / "out", {"x": stored}, NO_ENCODER, option, f"evaluation.models={{x: {other}}}"
        )
    tokenizer: Any = AutoTokenizer.from_pretrained(policy)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(policy)
    with pytest.raises(UserError, match=r"evaluation.models.x: its tokenizer has other tokens"):
        run(
            tmp_path / "out",
            {"x": stored},
            NO_ENCODER,
            option,
            f"evaluation.models={{x: {policy}}}",
        )


def test_tokens_of_another_tokenizer_are_refused(tmp_path: Path, reference: Path) -> None:
    option = f"evaluation.reference_model={reference}"
    beyond = scored_row(reference, GOOD[:2])
    beyond["token_ids"][0][0] = 10**6
    with pytest.raises(UserError, match="line 1: it has tokens beyond the"):
        run(tmp_path / "a", {"x": write_run(tmp_path / "1", [beyond])}, NO_ENCODER, option)
    shifted = scored_row(reference, GOOD[:2])
    shifted["token_ids"] = [[token - 3 for token in ids] for ids in shifted["token_ids"]]
    with pytest.raises(UserError, match=r"reads the sampled tokens as other texts .*\(2 of 2\)"):
        run(tmp_path / "b", {"x": write_run(tmp_path / "2", [shifted])}, NO_ENCODER, option)


def test_nothing_is_computed_twice(
    tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = write_run(tmp_path / "in", [scored_row(reference, GOOD[:2])])
    option = f"evaluation.reference_model={reference}"
    first = run(tmp_path / "out", {"base": stored}, option)

    def refuse(*_: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr(encoder.Encoder, "__call__", refuse)
    monkeypatch.setattr(divergence, "CausalModel", refuse)
    monkeypatch.setattr("nemo_gdpo.evaluation.metrics.excess_nll.CausalModel", refuse)
    assert run(tmp_path / "out", {"base": stored}, option) == first
    with pytest.raises(AssertionError, match="computed again"):
        run(tmp_path / "elsewhere", {"base": stored}, option)
