"""`nemo-gdpo generate` with real vLLM, against transformers, Megatron and itself."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from nemo_gdpo.config.stop_tokens import stop_token_ids
from nemo_gdpo.conversion.fingerprint import weights_fingerprint
from nemo_gdpo.data import (
    PairEncoder,
    TokenizedPair,
    TokenizedResponse,
    build_dataset,
    save_prepared,
)
from nemo_gdpo.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE
from nemo_gdpo.generation.seeds import sample_seeds
from nemo_gdpo.generation.types import SamplingPoint
from tests.support.commands import DEADLINE, cli, common, finish, started
from tests.support.data import write_jsonl
from tests.support.datasets import dataset_of
from tests.support.models import save_model

from .sampled_runs import (
    MAX_TOKENS,
    NUM_SAMPLES,
    PROMPTS,
    Sampled,
    Trained,
    generate,
    rows,
)

pytestmark = pytest.mark.engine

TEMPERATURES = (0.7, 1.0)


def test_every_prompt_at_every_point_with_its_seeds(trained: Trained, sampled: Sampled) -> None:
    assert set(sampled.rows) == {(key, t) for key in PROMPTS for t in TEMPERATURES}
    encoder = PairEncoder(trained.tokenizer, stop_token_ids=stop_token_ids(trained.hf))
    for (key, temperature), row in sampled.rows.items():
        point = SamplingPoint(temperature)
        assert row["sampling"] == point.to_dict()
        assert row["prompt"] == PROMPTS[key]
        assert row["prompt_token_ids"] == list(encoder.encode_prompt(PROMPTS[key]))
        assert row["seeds"] == list(sample_seeds(3, key, point, NUM_SAMPLES))
        assert len({tuple(ids) for ids in row["token_ids"]}) == NUM_SAMPLES  # no draw is shared
        assert row["model_hash"] == weights_fingerprint(trained.hf)
        assert row["versions"]["engine"] == "vllm"
        assert row["versions"]["device"] == "cpu"


def test_ends_and_texts(trained: Trained, sampled: Sampled) -> None:
    stops = stop_token_ids(trained.hf)
    assert stops is not None
    seen = set()
    for row in sampled.rows.values():
        samples = zip(
            row["token_ids"],
            row["finish_reasons"],
            row["stop_reasons"],
            row["outputs"],
            row["token_counts"],
            strict=True,
        )
        for ids, finish_reason, stop_reason, text, count in samples:
            seen.add(finish_reason)
            assert count == len(ids) <= MAX_TOKENS
            assert (ids[-1] in stops) == (finish_reason == "stop")
            assert not set(ids[:-1]) & set(stops)
            assert stop_reason == (ids[-1] if finish_reason == "stop" else None)
            assert finish_reason == "stop" or count == MAX_TOKENS
            # An answer cut inside a character ends without it in vLLM, with a mark in transformers.
            decoded = trained.tokenizer.decode(ids, skip_special_tokens=True)
            assert text.rstrip("\ufffd") == decoded.rstrip("\ufffd")
    assert seen == {"stop", "length"}


def test_log_probs_are_transformers(trained: Trained, sampled: Sampled) -> None:
    """Log-probs of the model itself, also at temperature 0.7."""
    for row in sampled.rows.values():
        prompt = row["prompt_token_ids"]
        for ids, found, total in zip(
            row["token_ids"], row["token_logprobs"], row["cumulative_logprobs"], strict=True
        ):
            logits = trained.logits(prompt + ids)[len(prompt) - 1 : -1]
            expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-4)
            assert total == pytest.approx(sum(found), abs=1e-9)


def test_log_probs_are_megatrons(trained: Trained, sampled: Sampled, tmp_path: Path) -> None:
    """The trainer's own scorer, from the Megatron checkpoint, on the tokens that vLLM sampled."""
    overrides = common(trained.checkpoint, tmp_path / "prepared", tmp_path / "out", "objective=dpo")
    template = build_dataset(
        trained.data,
        AutoTokenizer.from_pretrained(trained.hf),
        max_prompt_length=48,
        max_length=96,
        stop_token_ids=stop_token_ids(trained.hf),
    )
    pairs, expected = [], []
    for (key, temperature), row in sampled.rows.items():
        for first in range(0, NUM_SAMPLES, 2):
            sides = [
                TokenizedResponse(tuple(ids), ids[-1] == template.end_token_id)
                for ids in row["token_ids"][first : first + 2]
            ]
            name = f"{key} {temperature} {first}"
            pairs.append(TokenizedPair(name, tuple(row["prompt_token_ids"]), *sides))
            expected += row["token_logprobs"][first : first + 2]
    save_prepared(
        dataset_of(
            pairs,
            end_token_id=template.end_token_id,
            pad_token_id=template.pad_token_id,
            settings=template.settings,
        ),
        tmp_path / "prepared",
    )
    done = cli("reference", *overrides, f"reference_cache_dir={tmp_path / 'cache'}")
    assert done.status == EXIT_DONE, done.err
    found: dict[int, torch.Tensor] = {}
    for shard in (tmp_path / "cache").rglob("shard-*.safetensors"):
        held = load_file(shard)
        values = held["values"].split(held["lengths"].tolist())  # type: ignore[no-untyped-call]
        found |= dict(zip(held["rows"].tolist(), values, strict=True))
    assert sorted(found) == list(range(len(expected)))
    for row_number, logprobs in enumerate(expected):
        torch.testing.assert_close(
            found[row_number][:, 0], torch.tensor(logprobs), rtol=0, atol=1e-4
        )


def _first_token_counts(row: dict[str, Any], vocabulary: int) -> torch.Tensor:
    firsts = torch.tensor([ids[0] for ids in row["token_ids"]])
    return torch.bincount(firsts, minlength=vocabulary).double()


def test_samples_follow_the_distribution(trained: Trained, tmp_path: Path) -> None:
    """First tokens of 600 answers against softmax(z / temperature), cut to the 6 likeliest.

    Seeds are fixed, so chance plays no part. Shared or neighbouring draws would fail it.
    """
    count, top_k = 600, 6
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"id": "x", "prompt": PROMPTS["one"]}])
    temperatures = (0.5, 2.0)
    overrides = trained.overrides(
        tmp_path / "out",
        f"data.prompts_path={prompts}",
        f"generation.num_samples={count}",
        f"generation.temperature={list(temperatures)}",
        f"generation.top_k={top_k}",
        "generation.max_tokens=1",
        "generation.logprobs=none",
    )
    assert generate(*overrides).status == EXIT_DONE
    found = rows(tmp_path / "out")
    for temperature in temperatures:
        row = found["x", temperature]
        logits = trained.logits(row["prompt_token_ids"])[-1].double()
        kept = logits.topk(top_k)
        expected = count * torch.softmax(kept.values / temperature, 0)
        counts = _first_token_counts(row, len(logits))
        assert counts[kept.indices].sum() == count  # no other token was drawn
        chi_squared = ((counts[kept.indices] - expected) ** 2 / expected).sum()
        assert chi_squared < 20.5, (temperature, counts[kept.indices], expected)  # p = 0.001, 5 df


@pytest.mark.nightly
def test_greedy_is_transformers_greedy(trained: Trained, tmp_path: Path) -> None:
    overrides = trained.overrides(tmp_path, "generation=greedy", "generation.logprobs=none")
    overrides = [o for o in overrides if not o.startswith(("generation.num", "generation.temp"))]
    assert generate(*overrides).status == EXIT_DONE
    found = rows(tmp_path)
    assert set(found) == {(key, 0.0) for key in PROMPTS}
    for row in found.values():
        prompt = torch.tensor([row["prompt_token_ids"]])
        expected = trained.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        assert row["token_ids"] == [expected[0, prompt.shape[1] :].tolist()]


def _wait_for_rows(process: subprocess.Popen[str], output: Path, count: int) -> None:
    limit = time.monotonic() + 2 * DEADLINE  # a model is loaded, too
    shard = output / "generations-00000.jsonl"
    while not shard.exists() or shard.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "no rows came"
        time.sleep(0.005)


def test_killed_stopped_and_resumed_is_uninterrupted(
    trained: Trained, sampled: Sampled, tmp_path: Path
) -> None:
    """Killed, stopped by a signal, torn, then finished: the same rows as in one go.

    And with other companions in the batch: one row at a time instead of all.
    """
    overrides = trained.overrides(tmp_path)
    slowly = [*overrides, f"generation.in_flight={NUM_SAMPLES}"]
    with started("generate", *slowly) as process:
        _wait_for_rows(process, tmp_path, 1)
        # The command's own process; the one it started in the other environment goes with it.
        process.kill()
        process.wait()
    shard = tmp_path / "generations-00000.jsonl"
    there = shard.read_bytes().count(b"\n")
    with started("generate", *slowly) as process:
        _wait_for_rows(process, tmp_path, there + 1)
        process.send_signal(signal.SIGTERM)
        stopped = finish(process)
    assert stopped.status == EXIT_REQUEUE, stopped.err
    assert "stopped by a signal" in stopped.err
    before = rows(tmp_path)
    assert 2 <= len(before) < len(sampled.rows)
    with shard.open("ab") as file:
        file.write(shard.read_bytes().splitlines()[0][:50])
    done = generate(*overrides)
    assert done.status == EXIT_DONE, done.err
    assert "cut away 50 bytes of a row that was half written" in done.out
    found = rows(tmp_path)
    assert found.keys() == sampled.rows.keys()
    for key, row in sampled.rows.items():
        assert found[key]["token_ids"] == row["token_ids"], key
        assert found[key]["outputs"] == row["outputs"]
        assert found[key]["finish_reasons"] == row["finish_reasons"]
        for one, other in zip(found[key]["token_logprobs"], row["token_logprobs"], strict=True):
            assert one == pytest.approx(other, abs=1e-5)
    assert all(found[key] == row for key, row in before.items())  # nothing was sampled again


def test_nothing_to_do_starts_no_engine(trained: Trained, sampled: Sampled) -> None:
    shard = sampled.directory / "generations-00000.jsonl"
    content = shard.read_bytes()
    done = generate(*trained.overrides(sampled.directory))
    assert done.status == EXIT_DONE, done.err
    assert "8 are there" in done.out
    assert "tokens/s" not in done.out
    assert shard.read_bytes() == content


def test_an_engine_that_fails_is_a_line_after_its_own_trace(
    trained: Trained, tmp_path: Path
) -> None:
    """A model whose heads vLLM's CPU attention does not take."""
    small = save_model(tmp_path / "small", head_dim=8)
    done = generate(*trained.overrides(tmp_path / "out"), f"model.restore_from_path={small}")
    assert done.status == EXIT_FAILED
    assert len(done.complaints) == 1
    assert "vLLM failed (Unsupported CPU attention configuration: head_dim=8" in done.complaints[0]
    assert done.err.splitlines()[-1] == done.complaints[0]
