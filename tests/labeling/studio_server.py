"""A stand-in for a Label Studio server: the four calls that the SDK makes, on a real socket."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class StandIn:
    """Projects and their tasks."""

    url: str = ""
    token: str = TOKEN
    projects: dict[int, dict[str, Any]] = field(default_factory=dict)
    tasks: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    fails_from_page: int | None = None
    """Pages of tasks, counted from 1, from which on the connection is closed."""

    def answered(self, method: str, target: str, body: Any) -> tuple[int, Any]:
        """(status, JSON) of a request."""
        path, query = urlsplit(target).path.strip("/").split("/"), parse_qs(urlsplit(target).query)
        match (method, *path):
            case ("POST", "api", "projects"):
                number = len(self.projects) + 1
                self.projects[number] = {"id": number, **body}
                self.tasks[number] = []
                return 201, self.projects[number]
            case ("GET", "api", "projects", number) if int(number) in self.projects:
                return 200, self.projects[int(number)]
            case ("POST", "api", "projects", number, "import"):
                mine = self.tasks[int(number)]
                for task in body:
                    mine.append({"id": len(mine) + 1, "annotations": [], **task})
                return 201, {"task_count": len(body)}
            case ("GET", "api", "tasks"):
                mine = self.tasks[int(query["project"][0])]
                size, page = int(query["page_size"][0]), int(query.get("page", ["1"])[0])
                if self.fails_from_page is not None and page >= self.fails_from_page:
                    return 0, None
                start = size * (page - 1)
                if page > 1 and start >= len(mine):
                    return 404, {"detail": "Invalid page."}
                return 200, {
                    "tasks": mine[start : start + size], "total": len(mine),
                    "total_annotations": 0, "total_predictions": 0,
                }  # fmt: skip
        return 404, {"detail": "Not found."}


@contextlib.contextmanager
def studio_server() -> Iterator[StandIn]:
    """A server at its `url` until the block ends."""
    studio = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            if self.headers.get("Authorization") != f"Token {studio.token}":
                status, value = 401, {"detail": "Invalid token."}
            else:
                status, value = studio.answered(self.command, self.path, body)
            if status == 0:
                self.connection.close()
                return
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _answer

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    studio.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield studio
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
