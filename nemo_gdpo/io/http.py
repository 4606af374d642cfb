"""Requests to an OpenAI-compatible server, with retries. The key stays in memory."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from nemo_gdpo.errors import RunError, UserError
from nemo_gdpo.io.text import whole_characters

CONNECT_SECONDS = 10.0
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each further one waits twice as long."""
LONGEST_PAUSE = 30.0
BUSY = (408, 409, 425, 429)
"""Statuses, beside those from 500 on, that another attempt may get past."""


REFUSED = (400, 413, 422, 451)
"""Statuses that may be about this one request: its length, its content, a field of it."""
REFUSED_AT_FIRST = 8
"""Requests refused before any is answered that mean that the settings are wrong."""
_FILTERED = ("content_filter", "content filter", "content_policy", "content management policy")
"""What servers say in refusing what a request is about."""


class RefusedError(UserError):
    """The server refuses a request; it may take others."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
        """What the server says, without the key."""
        self.filtered = any(word in reason.lower() for word in _FILTERED)
        """Whether it says that the content is why."""


class _RetryError(Exception):
    """An attempt failed in a way that the next may not."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class Server:
    """Address, limits and names of a server, for requests and messages."""

    url: str
    """Base URL; ends in /v1, as a rule."""
    key_variable: str | None
    """Environment variable that holds the key; None sends none."""
    timeout: float
    """Seconds that an answer may take."""
    retries: int
    """Further attempts after the first."""
    concurrency: int
    """Connections: as many as threads, so that none of them waits for another."""
    setting: str
    """Section of the configuration that these come from: `evaluation.judge`."""
    what: str
    """Name of the server in messages: `the judge`."""
    check: str
    """What to check when the server refuses a request: `url and model`."""
    remedy: str
    """What is safe and what to do when it does not answer."""
    error: type[RunError]
    """Class of the error that is raised when it does not answer."""


def url_problem(url: str) -> tuple[str, str] | None:
    """(reason, remedy) of a URL that a server cannot be asked at; None when it can."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return f"{url} is not a URL", "write https://host/v1"
    if parts.username or parts.password or parts.query:
        return (
            "it carries a user, a password or a query, which would be written into logs",
            "give the plain URL, and the key by key_variable",
        )
    return None


class Client:
    """JSON in, JSON out; one client serves several threads."""

    def __init__(self, server: Server) -> None:
        """Read the key.

        Raises:
            UserError: the key's variable is not set.
        """
        self.url = server.url.rstrip("/")
        self._server = server
        self._key = _read_key(server)
        self._stopping = threading.Event()
        self._client = httpx.Client(
            headers={} if self._key is None else {"Authorization": f"Bearer {self._key}"},
            timeout=httpx.Timeout(server.timeout, connect=min(CONNECT_SECONDS, server.timeout)),
            limits=httpx.Limits(max_connections=server.concurrency),
        )

    def stop(self) -> None:
        """Make no further attempt. May be called from another thread or a signal's handler."""
        self._stopping.set()

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def close(self) -> None:
        self._client.close()

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object that the server answers with.

        Args:
            method: GET or POST.
            path: below the URL, or a complete URL.
            body: sent as JSON.

        Raises:
            RefusedError: the server refuses this request.
            UserError: it refuses the key or the model.
            RunError: `Server.error`: it does not answer, after all attempts.
        """
        server = self._server
        pause = FIRST_PAUSE
        for attempt in range(server.retries + 1):
            try:
                return self._attempt(method, path, body)
            except _RetryError as error:
                wanted = pause if error.pause is None else min(error.pause, LONGEST_PAUSE)
                # A server that is gone while the run is asked to stop is not waited for.
                if attempt == server.retries or self._stopping.wait(wanted):
                    raise server.error(
                        f"{server.what} at {self.url} is gone or failing ({error}; "
                        f"{attempt + 1} attempts); {server.remedy}"
                    ) from None
                pause = min(2 * pause, LONGEST_PAUSE)
        raise AssertionError("unreachable")

    def _attempt(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        url = path if path.startswith("http") else self.url + path
        try:
            response = self._client.request(method, url, json=body)
        except httpx.TransportError as error:
            raise _RetryError(self.redacted(str(error) or type(error).__name__)) from None
        status = response.status_code
        if status in BUSY or status >= 500:
            raise _RetryError(f"status {status}", _retry_after(response))
        setting = self._server.setting
        if status in (401, 403):
            raise UserError(
                f"{setting}.key_variable: {self.url} refuses the key (status {status}); name the "
                "environment variable that holds a valid one"
            )
        if status != 200:
            reason = self.redacted(" ".join(response.text.split())[:300])
            message = (
                f"{setting}: {url} answers with status {status} ({reason}); check "
                f"{self._server.check}"
            )
            raise RefusedError(message, reason) if status in REFUSED else UserError(message)
        return self._object(response, url)

    def _object(self, response: httpx.Response, url: str) -> dict[str, Any]:
        try:
            # A server that cuts an answer in the middle of a character may send half of it.
            found = whole_characters(response.json())
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise UserError(
                f"{self._server.setting}.url: {url} answers with something other than a JSON "
                "object; check the URL"
            )
        return found

    def redacted(self, text: str) -> str:
        """`text` without the key, which a server may repeat."""
        return text if self._key is None else text.replace(self._key, "[key]")


def _read_key(server: Server) -> str | None:
    variable = server.key_variable
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"{server.setting}.key_variable: the environment variable {variable} is not set; "
            f"export {variable}=KEY"
        )
    return key


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait, if it says so in seconds."""
    try:
        return max(0.0, float(response.headers.get("Retry-After", "")))
    except ValueError:
        return None
