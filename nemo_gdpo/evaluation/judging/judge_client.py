"""Questions to a judge: chat completions of one model, at temperature 0."""

from __future__ import annotations

from nemo_gdpo.config.evaluation import JudgeConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.errors import EvaluationError
from nemo_gdpo.io.http import Client, Server, url_problem

KEY = "evaluation.judge"


class JudgeClient:
    """A model behind a URL.

    Args:
        config: with `url` and `model`.

    Raises:
        UserError: the key's variable is not set, or the URL is not one or carries a credential.
    """

    def __init__(self, config: JudgeConfig) -> None:
        assert config.url is not None
        self._config = config
        problem = url_problem(config.url)
        if problem is not None:
            raise UserError(f"{KEY}.url: {problem[0]}; {problem[1]}")
        self._client = Client(
            Server(
                url=config.url,
                key_variable=config.key_variable,
                timeout=config.timeout,
                retries=config.retries,
                concurrency=config.concurrency,
                setting=KEY,
                what="the judge",
                check="url and model",
                remedy="the answers so far are kept: run the same command again once it answers",
                error=EvaluationError,
            )
        )

    def stop(self) -> None:
        """Make no further attempt. May be called from another thread."""
        self._client.stop()

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
        answer = self._client.request("POST", "/chat/completions", body)
        try:
            content = answer["choices"][0]["message"]["content"]
        except (LookupError, TypeError):
            raise UserError(
                f"{KEY}.url: {self._client.url} answers with no chat completion; check the URL"
            ) from None
        # A model that says nothing (or calls a tool) has null here: an answer without a verdict.
        return self._client.redacted(content) if isinstance(content, str) else ""
