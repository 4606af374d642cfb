"""Questions to an OpenAI-compatible server, with retries. The key stays in memory."""

from __future__ import annotations

import os
import threading
from typing import Any
from urllib.parse import urlsplit

import httpx

from nemo_gdpo.config.evaluation import JudgeConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.errors import EvaluationError

KEY = "evaluation.judge"
CONNECT_SECONDS = 10.0
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
BUSY = (408, 409, 425, 429)
"""Statuses, beside those from 500 on, that another attempt may mend."""


class _RetryError(Exception):
    """An attempt failed in a way that the next may not."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class JudgeClient:
    """Chat completions of one model, at temperature 0.

    Args:
        config: with `url` and `model`.
        first_pause: seconds before the second attempt; each further one takes twice as long.

    Raises:
        UserError: the key's variable is not set, or the URL is none or carries a credential.
    """

    def __init__(self, config: JudgeConfig, *, first_pause: float = FIRST_PAUSE) -> None:
        assert config.url is not None
        self._config = config
        self._url = config.url.rstrip("/")
        parts = urlsplit(self._url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{KEY}.url: {self._url} is no URL; write https://host/v1")
        if parts.username or parts.password or parts.query:
            raise UserError(
                f"{KEY}.url: it carries a user, a password or a query, which would be written into "
                "logs; give the plain URL, and the key by key_variable"
            )
        self._key = _read_key(config.key_variable)
        self._first_pause = first_pause
        self._stopping = threading.Event()
        self._client = httpx.Client(
            headers={} if self._key is None else {"Authorization": f"Bearer {self._key}"},
            timeout=httpx.Timeout(config.timeout, connect=min(CONNECT_SECONDS, config.timeout)),
            limits=httpx.Limits(max_connections=config.concurrency),
        )

    def stop(self) -> None:
        """Make no further attempt. May be called from another thread."""
        self._stopping.set()

    def close(self) -> None:
        self._client.close()

    def ask(self, messages: list[dict[str, str]]) -> str:
        """The answer's text.

        Raises:
            UserError: the server refuses the question, the key or the model.
            EvaluationError: it does not answer, after all attempts.
        """
        body = {
            "model": self._config.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": self._config.max_tokens,
        }
        pause = self._first_pause
        for attempt in range(self._config.retries + 1):
            try:
                return self._attempt(body)
            except _RetryError as error:
                wanted = pause if error.pause is None else min(error.pause, LONGEST_PAUSE)
                if attempt == self._config.retries or self._stopping.wait(wanted):
                    raise EvaluationError(
                        f"the judge at {self._url} is gone or failing ({error}; {attempt + 1} "
                        "attempts); the answers so far are kept: run the same command again once "
                        "it answers"
                    ) from None
                pause = min(2 * pause, LONGEST_PAUSE)
        raise AssertionError("unreachable")

    def _attempt(self, body: dict[str, Any]) -> str:
        try:
            response = self._client.post(f"{self._url}/chat/completions", json=body)
        except httpx.TransportError as error:
            raise _RetryError(self.redacted(str(error) or type(error).__name__)) from None
        status = response.status_code
        if status in BUSY or status >= 500:
            raise _RetryError(f"status {status}", _retry_after(response))
        if status in (401, 403):
            raise UserError(
                f"{KEY}.key_variable: {self._url} refuses the key (status {status}); name the "
                "environment variable that holds a valid one"
            )
        if status != 200:
            reason = self.redacted(" ".join(response.text.split())[:300])
            raise UserError(
                f"{KEY}: {self._url} answers with status {status} ({reason}); check url and model"
            )
        try:
            content = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise UserError(
                f"{KEY}.url: {self._url} answers with no chat completion; check the URL"
            ) from None
        # A model that says nothing (or calls a tool) has null here: an answer that is no verdict.
        return self.redacted(content) if isinstance(content, str) else ""

    def redacted(self, text: str) -> str:
        """`text` without the key, which a server may repeat."""
        return text if self._key is None else text.replace(self._key, "[key]")


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"{KEY}.key_variable: the environment variable {variable} is not set; export "
            f"{variable}=KEY"
        )
    return key


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait, if it says so in seconds."""
    try:
        return max(0.0, float(response.headers.get("Retry-After", "")))
    except ValueError:
        return None
