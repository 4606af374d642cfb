"""OpenAI-compatible servers in this process, on real sockets: completions, and a judge's chat."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeServer:
    """Completions that are answered, failed and remembered as told.

    `fail(n)` gives the status of the n-th completion request (from 0); 200 is an answer.
    """

    def __init__(self, *, owned_by: str = "vllm", root: str = "/m", limit: int | None = 64) -> None:
        self.entry = {"id": "served", "root": root, "owned_by": owned_by, "max_model_len": limit}
        self.fail: Callable[[int], int] = lambda _: 200
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.lock = threading.Lock()
        self.answer: Callable[[dict[str, Any]], Any] = self.completion
        self.url = ""

    def completion(self, body: dict[str, Any]) -> Any:
        choice: dict[str, Any] = {
            "text": f"of {body['seed']}", "finish_reason": "stop", "stop_reason": None,
        }  # fmt: skip
        if body.get("return_token_ids"):
            choice |= {"token_ids": [9, 1], "stop_reason": 1}
        if "logprobs" in body:
            choice["logprobs"] = {"token_logprobs": [-1.0, -0.25]}
        return {"choices": [choice], "usage": {"completion_tokens": 2}}


@contextlib.contextmanager
def completions_server(server: FakeServer) -> Iterator[FakeServer]:
    """`server` at its `url` until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def _send(self, status: int, value: Any) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            server.keys.append(self.headers.get("Authorization"))
            if self.path == "/v1/models":
                self._send(200, {"data": [server.entry]})
            elif self.path == "/version":
                self._send(200, {"version": "9.9"})
            else:
                self._send(404, {"error": "no such page"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                status = server.fail(len(server.bodies))
                server.bodies.append(body)
            self._send(status, server.answer(body) if status == 200 else {"error": "told so"})

        def log_message(self, *_: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{listener.server_port}/v1"
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


Answer = str | int | dict[str, Any] | tuple[int, str] | None
"""Text of the completion, a status, a choice, a status with its reason, or None: hang up."""


@dataclass
class Judge:
    """What was asked, and what to say."""

    answer: Callable[[str, str, int], Answer]
    """(response A, response B, number of the request) -> answer."""
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextlib.contextmanager
def judge_server(answer: Callable[[str, str, int], Answer]) -> Iterator[Judge]:
    """A judge at `url` until the block ends."""
    judge = Judge(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with judge.lock:
                judge.requests.append({"path": self.path, **body})
                judge.keys.append(self.headers.get("Authorization"))
                number = len(judge.requests)
            first, second = responses(body)
            said = judge.answer(first, second, number)
            if said is None:
                self.connection.close()
                return
            status = said if isinstance(said, int) else 200
            if isinstance(said, tuple):
                status, reason = said
            reply: dict[str, Any] = {"error": f"status {status}, key {judge.keys[-1]}"}
            if isinstance(said, str):
                reply = {"choices": [{"message": {"role": "assistant", "content": said}}]}
            elif isinstance(said, dict):
                reply = {"choices": [said]}
            elif isinstance(said, tuple):
                reply = {"error": {"message": reason}}
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def responses(body: dict[str, Any]) -> tuple[str, str]:
    """The two responses of a question."""
    text = body["messages"][-1]["content"]
    first, second = (
        re.search(f"<response_{side}>\n(.*?)\n</response_{side}>", text, re.DOTALL) for side in "AB"
    )
    assert first
    assert second
    return first[1], second[1]
