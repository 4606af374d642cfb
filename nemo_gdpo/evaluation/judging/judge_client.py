"""Questions to a judge: chat completions of one model, at temperature 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nemo_gdpo.config.evaluation import JudgeServerConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.errors import EvaluationError
from nemo_gdpo.io.http import Client, RefusedError, Server, url_problem

KEY = "evaluation.judge"
_LIMITS = ("max_tokens", "max_completion_tokens")
"""Names of the greatest length; newer servers know the second only."""


@dataclass(frozen=True)
class JudgeAnswer:
    """What a judge said."""

    text: str
    cut: bool
    """Whether it was cut at its greatest length: what it says need not be what it would."""


class JudgeClient:
    """A model behind a URL.

    Args:
        config: with `url` and `model`.
        setting: where the configuration has it.

    Raises:
        UserError: the key's variable is not set, or the URL is not one or carries a credential.
    """

    def __init__(self, config: JudgeServerConfig, setting: str = KEY) -> None:
        assert config.url is not None
        self._config = config
        self.setting = setting
        problem = url_problem(config.url)
        if problem is not None:
            raise UserError(f"{setting}.url: {problem[0]}; {problem[1]}")
        self._client = Client(
            Server(
                url=config.url,
                key_variable=config.key_variable,
                timeout=config.timeout,
                retries=config.retries,
                concurrency=config.concurrency,
                setting=setting,
                what="the judge",
                check="url and model",
                remedy="the answers so far are kept: run the same command again once it answers",
                error=EvaluationError,
            )
        )

        self._limit = _LIMITS[0]

    @property
    def url(self) -> str:
        """Of the server, without a slash at its end."""
        return self._client.url

    @property
    def temperature(self) -> float | None:
        """That answers are sampled at; None leaves it to the server."""
        return self._config.temperature

    def stop(self) -> None:
        """Make no further attempt. May be called from another thread."""
        self._client.stop()

    def close(self) -> None:
        self._client.close()

    def ask(self, messages: list[dict[str, str]]) -> JudgeAnswer:
        """The answer.

        Raises:
            RefusedError: the server refuses this question.
            UserError: it refuses the key, the model or a setting.
            EvaluationError: it does not answer, after all attempts.
        """
        body: dict[str, Any] = {"model": self._config.model, "messages": messages}
        if self._config.temperature is not None:
            body["temperature"] = self._config.temperature
        limit = self._limit
        try:
            found = self._request({**body, limit: self._config.max_tokens})
        except RefusedError as error:
            other = _LIMITS[1 - _LIMITS.index(limit)]
            if other not in error.reason:
                raise
            self._limit = other
            found = self._request({**body, other: self._config.max_tokens})
        return self._answer(found)

    def _request(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._client.request("POST", "/chat/completions", body)
        except RefusedError as error:
            if "temperature" in body and "temperature" in error.reason.lower():
                raise UserError(
                    f"{self.setting}.temperature: {self.url} does not take {body['temperature']:g} "
                    f"({error.reason}); set null to leave it to the server"
                ) from None
            raise

    def _answer(self, found: dict[str, Any]) -> JudgeAnswer:
        try:
            choice = found["choices"][0]
            message = choice["message"]
            content, refusal = message.get("content"), message.get("refusal")
            ended = choice.get("finish_reason")
        except (LookupError, TypeError, AttributeError):
            raise UserError(
                f"{self.setting}.url: {self.url} answers with no chat completion; check the URL"
            ) from None
        text = self._client.redacted(_text_of(content))
        if ended == "content_filter" or (refusal and not text):
            reason = self._client.redacted(" ".join(str(refusal or "content_filter").split())[:300])
            told = RefusedError(f"{self.setting}: {self.url} refuses a question ({reason})", reason)
            told.filtered = True
            raise told
        return JudgeAnswer(text, ended == "length")


def _text_of(content: Any) -> str:
    """A message's text: as such, or in parts, of which thoughts do not count.

    A model that says nothing (or calls a tool) has null here: an answer without a verdict.
    """
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(
        part if isinstance(part, str) else str(part.get("text") or "")
        for part in parts
        if isinstance(part, str)
        or (isinstance(part, dict) and part.get("type", "text") in ("text", "output_text"))
    )
