"""A real Label Studio: its own process and environment, SQLite in a folder, loopback, offline."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_gdpo.launch.ports import free_port

STARTS = 1800.0
"""Seconds until it has to answer: some 300 migrations of an empty database come first, of which a
core makes a minute and a half of its own time. A server that ends is seen at once."""
STOPS = 30.0
NOWHERE = "http://127.0.0.1:9"
"""A proxy that nothing listens at: whatever the server asks of another machine fails at once."""


@dataclass(frozen=True)
class LabelStudio:
    """A server that answers, and the one account that it has."""

    url: str
    username: str = "labeller@localhost.example"
    password: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    token: str = field(default_factory=lambda: secrets.token_hex(20), repr=False)
    """A legacy token, as `Authorization: Token ...` has it; new servers have them switched off."""

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Ask its REST interface; the JSON of the answer.

        Raises:
            AssertionError: it refuses.
        """
        asked = urllib.request.Request(
            self.url + path,
            method=method,
            headers={"Authorization": f"Token {self.token}", "Content-Type": "application/json"},
            data=None if body is None else json.dumps(body).encode(),
        )
        try:
            with urllib.request.urlopen(asked, timeout=120) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            said = error.read()[:500].decode(errors="replace")
            raise AssertionError(f"{method} {path}: status {error.code}: {said}") from None

    def personal_token(self) -> str:
        """A new personal access token, the kind that an account page offers today."""
        made: str = self.call("POST", "/api/token/")["token"]
        return made

    def make_project(self, config: str, tasks: list[dict[str, Any]]) -> int:
        """A project with these tasks, which are shown in this order; its number."""
        made: int = self.call("POST", "/api/projects", {"title": "Pairs", "label_config": config})[
            "id"
        ]
        sent = self.call("POST", f"/api/projects/{made}/import", tasks)
        assert sent["task_count"] == len(tasks)
        return made


def _environment(folder: Path, studio: LabelStudio) -> dict[str, str]:
    """All variables of the server: none of this process's but PATH, so that none leads it astray.

    Secrets go this way because a command line is there for everybody to read.
    """
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "LABEL_STUDIO_USERNAME": studio.username,
        "LABEL_STUDIO_PASSWORD": studio.password,
        "LABEL_STUDIO_USER_TOKEN": studio.token,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        # Usage statistics, the look for a newer version, crash reports of server and page.
        "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
        "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NOWHERE),
        "no_proxy": "127.0.0.1,localhost",
    }


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Until it answers.

    Raises:
        AssertionError: it ended, or did not answer in time; with the end of its log.
    """
    limit = time.monotonic() + STARTS
    while time.monotonic() < limit and process.poll() is None:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{url}/health", timeout=10) as answer,
        ):
            assert json.load(answer) == {"status": "UP"}
            return
        time.sleep(0.5)
    state = "does not answer" if process.poll() is None else f"ended with {process.returncode}"
    raise AssertionError(f"Label Studio {state}:\n{log.read_text(errors='replace')[-3000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and whatever it started, which is in a session of its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=STOPS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 0)
        raise AssertionError(f"something of session {process.pid} lives on")


@contextlib.contextmanager
def label_studio(python: Path, folder: Path) -> Iterator[LabelStudio]:
    """A new server with an empty database, until the block ends.

    Args:
        python: of the environment `label-studio`.
        folder: for its database and log.
    """
    port = free_port()
    studio = LabelStudio(f"http://127.0.0.1:{port}")
    log = folder / "server.log"
    command = [str(python), "-m", "label_studio.server", "start", "--no-browser"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--internal-host", "127.0.0.1", "--port", str(port)],
            env=_environment(folder, studio),
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait(process, studio.url, log)
            yield studio
        finally:
            _stop(process)
