"""What a server is asked, what its answers become, and what its failures do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.generation import GENERATE
from nemo_gdpo.constraints import Structure
from nemo_gdpo.errors import UserError
from nemo_gdpo.generation.errors import GenerationError
from nemo_gdpo.generation.model import ModelInfo
from nemo_gdpo.generation.server_engine import ServerEngine
from tests.support.servers import FakeServer, completions_server

from .fakes import request

MODEL = ModelInfo(Path("/m"), "h", "e", 64)


def _engine(server: FakeServer, *overrides: str) -> ServerEngine:
    base = [
        "generation.backend=server",
        f"generation.server.url='{server.url}'",
        "generation.server.retries=2",
        "generation.server.concurrency=3",
    ]
    return ServerEngine(GENERATE.parse(compose([*base, *overrides], root=GENERATE).plain), MODEL)


def test_one_request_a_sample_with_all_that_decides_it(server: FakeServer) -> None:
    engine = _engine(server)
    asked = [request("a", 0.7, stop=("\n",), logprobs="tokens"), request("b", seeds=(21, 22, 23))]
    rows = {row.request.id: row for row in engine.generate(asked)}
    assert rows["a"].request == asked[0]
    assert [sample.text for sample in rows["a"].samples] == ["of 11", "of 12"]
    assert [sample.text for sample in rows["b"].samples] == ["of 21", "of 22", "of 23"]
    first = rows["a"].samples[0]
    assert (first.token_ids, first.finish_reason, first.stop_reason) == ((9, 1), "stop", 1)
    assert (first.cumulative_logprob, first.token_logprobs) == (-1.25, (-1.0, -0.25))
    assert rows["b"].samples[0].token_logprobs is None
    body = next(body for body in server.bodies if body["seed"] == 11)
    assert body == {
        "model": "served", "prompt": [5, 6, 7], "n": 1, "seed": 11, "temperature": 0.7,
        "top_p": 1.0, "min_p": 0.0, "top_k": 0, "max_tokens": 4, "stop": ["\n"],
        "stop_token_ids": [1], "ignore_eos": True, "skip_special_tokens": True, "logprobs": 0,
        "return_token_ids": True,
    }  # fmt: skip
    assert engine.describe()["engine_version"] == "vllm 9.9"
    assert engine.max_model_len == 64


def test_vllms_server_is_asked_for_a_form(server: FakeServer) -> None:
    engine = _engine(server, "constraints.regex=a+")
    list(engine.generate([request("a", structure=Structure("regex", "a+"))]))
    assert server.bodies[0]["structured_outputs"] == {"regex": "a+"}


def test_another_server_cannot_be_asked_for_a_form(server: FakeServer) -> None:
    server.entry["owned_by"] = "somebody"
    with pytest.raises(UserError, match=r"^constraints.enforce: .* is not vLLM's server"):
        _engine(server, "constraints.regex=a+")
    engine = _engine(server, "constraints.regex=a+", "constraints.enforce=false")
    (row,) = engine.generate([request("a")])
    assert row.samples[0].text == "of 11"


def test_another_servers_interface_is_openais(server: FakeServer) -> None:
    server.entry["owned_by"] = "somebody"
    engine = _engine(server)
    (row,) = engine.generate([request("a")])
    assert set(server.bodies[0]) == {
        "model",
        "prompt",
        "n",
        "seed",
        "temperature",
        "top_p",
        "max_tokens",
    }
    assert row.samples[0].token_ids is None
    assert row.samples[0].token_count == 2
    with pytest.raises(UserError, match=r"generation\.top_k: .*is not vLLM's server"):
        _engine(server, "generation.top_k=5")
    with pytest.raises(UserError, match=r"generation\.min_p: .*is not vLLM's server"):
        _engine(server, "generation.min_p=[0,0.1]")


def test_the_model_has_to_be_there(server: FakeServer) -> None:
    with pytest.raises(UserError, match=r"has no other \(its models: served\)"):
        _engine(server, "generation.server.model=other")
    server.entry["root"] = "/elsewhere"
    with pytest.raises(UserError, match=r"none of the models of .* \(served\) lies at /m"):
        _engine(server)
    assert _engine(server, "generation.server.model=served").describe()["engine"] == "server"


def test_the_key_comes_from_a_variable(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "abc")
    _engine(server, "generation.server.key_variable=MY_KEY")
    assert set(server.keys) == {"Bearer abc"}
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(UserError, match="the environment variable MY_KEY is not set"):
        _engine(server, "generation.server.key_variable=MY_KEY")
    server.keys.clear()
    _engine(server)
    assert set(server.keys) == {None}


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(server: FakeServer, status: int) -> None:
    server.fail = lambda count: status if count < 2 else 200
    (row,) = _engine(server).generate([request("a", seeds=(1,))])
    assert row.samples[0].text == "of 1"
    assert len(server.bodies) == 3
    assert server.bodies[0] == server.bodies[2]


def test_failing_server_ends_the_run_and_keeps_complete_rows(
    server: FakeServer,
) -> None:
    server.fail = lambda count: 200 if count < 4 else 500
    engine = _engine(server, "generation.server.concurrency=1")
    done = []
    with pytest.raises(GenerationError, match=r"gone or failing \(status 500; 3 attempts\)"):
        for row in engine.generate([request(str(n)) for n in range(5)]):
            done.append(row.request.id)
    assert done == ["0", "1"]


def test_a_server_that_is_not_there() -> None:
    with completions_server(FakeServer()) as server:
        pass
    with pytest.raises(GenerationError, match="is gone or failing") as caught:
        _engine(server)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "message"), [(400, r"answers with status 400 \(.*told so"), (401, "refuses the key")]
)
def test_mistakes_are_not_tried_again(server: FakeServer, status: int, message: str) -> None:
    server.fail = lambda _: status
    with pytest.raises(UserError, match=message):
        list(_engine(server).generate([request("a", seeds=(1,))]))
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"choices": []},
        {"choices": [{"text": "x", "finish_reason": "abort", "token_ids": [1]}]},
        {"choices": [{"text": "x", "finish_reason": "stop"}]},
    ],
)
def test_answers_that_are_none(server: FakeServer, answer: Any) -> None:
    server.answer = lambda _: answer
    with pytest.raises(GenerationError, match="an answer that is not a completion"):
        list(_engine(server).generate([request("a", seeds=(1,))]))


def test_half_a_character_of_an_answer_is_written_as_detokenisers_do(server: FakeServer) -> None:
    def cut(body: dict[str, Any]) -> Any:
        found = server.completion(body)
        found["choices"][0]["text"] = "ok \ud83d"
        return found

    server.answer = cut
    (completed,) = _engine(server).generate([request("a", seeds=(1,))])
    assert completed.samples[0].text == "ok \ufffd"


def test_missing_logprobs_are_an_error(server: FakeServer) -> None:
    def without(body: dict[str, Any]) -> Any:
        found = server.completion(body)
        found["choices"][0]["logprobs"] = {"token_logprobs": [-1.0]}
        return found

    server.answer = without
    with pytest.raises(GenerationError, match="1 log-probabilities for 2 tokens"):
        list(_engine(server).generate([request("a", seeds=(1,), logprobs="cumulative")]))


def test_stopping_finishes_begun_rows_and_begins_no_others(server: FakeServer) -> None:
    engine = _engine(server, "generation.server.concurrency=1")
    rows = []
    for row in engine.generate([request(str(n)) for n in range(20)]):
        rows.append(row)
        engine.stop()
    assert 1 <= len(rows) < 20
    assert all(len(row.samples) == 2 for row in rows)
