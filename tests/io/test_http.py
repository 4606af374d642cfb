"""Retries, pauses and the key, for every user of an OpenAI-compatible server alike."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from nemo_gdpo.errors import RunError, UserError
from nemo_gdpo.io import http
from nemo_gdpo.io.http import Client, Server, url_problem

SECRET = "sk-of-the-test"


class GoneError(RunError):
    """Raised for a server that does not answer."""


class Wire:
    """Answers in their order; the pauses that were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: httpx.Response) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []
        transport = httpx.MockTransport(self._answer)
        plain = httpx.Client

        def connected(**options: Any) -> httpx.Client:
            return plain(transport=transport, **options)

        def wait(event: threading.Event, timeout: float) -> bool:
            self.pauses.append(timeout)
            return event.is_set()

        monkeypatch.setattr(http.httpx, "Client", connected)
        monkeypatch.setattr(threading.Event, "wait", wait)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.answers.pop(0)


def client(*, key_variable: str | None = None, retries: int = 4) -> Client:
    return Client(
        Server(
            url="http://host/v1/",
            key_variable=key_variable,
            timeout=5.0,
            retries=retries,
            concurrency=2,
            setting="some.server",
            what="the server",
            check="url and model",
            remedy="start it again",
            error=GoneError,
        )
    )


def test_pauses_double_and_a_server_may_ask_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(
        monkeypatch,
        httpx.Response(503),
        httpx.Response(429, headers={"Retry-After": "3"}),
        httpx.Response(429, headers={"Retry-After": "3600"}),
        httpx.Response(500, headers={"Retry-After": "tomorrow"}),
        httpx.Response(200, json={"a": 1}),
    )
    assert client().request("POST", "/completions", {"b": 2}) == {"a": 1}
    assert wire.pauses == [0.5, 3.0, 30.0, 4.0]
    assert {str(request.url) for request in wire.requests} == {"http://host/v1/completions"}


def test_after_all_attempts_the_callers_error_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    Wire(monkeypatch, *[httpx.Response(503) for _ in range(3)])
    with pytest.raises(GoneError) as caught:
        client(retries=2).request("GET", "/models")
    assert str(caught.value) == (
        "the server at http://host/v1 is gone or failing (status 503; 3 attempts); start it again"
    )


def test_a_stopped_client_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(monkeypatch, httpx.Response(503))
    stopped = client()
    stopped.stop()
    with pytest.raises(GoneError, match="1 attempts"):
        stopped.request("GET", "/models")
    assert len(wire.requests) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (httpx.Response(401), "some.server.key_variable: .*refuses the key"),
        (httpx.Response(400, text=f"no\n{SECRET}"), r"status 400 \(no \[key\]\); check url and m"),
        (httpx.Response(200, text="<html>"), "something other than a JSON object; check the URL"),
        (httpx.Response(200, json=[1]), "something other than a JSON object"),
    ],
)
def test_mistakes_are_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, answer: httpx.Response, reason: str
) -> None:
    monkeypatch.setenv("THE_KEY", f" {SECRET}\n")
    wire = Wire(monkeypatch, answer)
    with pytest.raises(UserError, match=reason) as caught:
        client(key_variable="THE_KEY").request("GET", "/models")
    assert [r.headers["Authorization"] for r in wire.requests] == [f"Bearer {SECRET}"]
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, "", " "])
def test_a_key_that_is_not_there(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("THE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("THE_KEY", value)
    with pytest.raises(UserError, match=r"some\.server\.key_variable: .*THE_KEY is not set"):
        client(key_variable="THE_KEY")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://host/v1", None),
        ("https://host:8000", None),
        ("host:80", "is not a URL"),
        ("ftp://host", "is not a URL"),
        ("http://me:word@host/v1", "carries a user"),
        ("http://host/v1?key=x", "a query"),
    ],
)
def test_urls(url: str, reason: str | None) -> None:
    found = url_problem(url)
    assert found is None if reason is None else found is not None and reason in found[0]
