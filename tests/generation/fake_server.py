"""An OpenAI-compatible server in this process that answers, fails and remembers as told."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeServer:
    """`fail(n)` gives the status of the n-th completion request (from 0); 200 is an answer."""

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
            "text": f"of {body['seed']}",
            "finish_reason": "stop",
            "stop_reason": None,
        }
        if body.get("return_token_ids"):
            choice |= {"token_ids": [9, 1], "stop_reason": 1}
        if "logprobs" in body:
            choice["logprobs"] = {"token_logprobs": [-1.0, -0.25]}
        return {"choices": [choice], "usage": {"completion_tokens": 2}}


@contextlib.contextmanager
def serving(server: FakeServer) -> Iterator[FakeServer]:
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
