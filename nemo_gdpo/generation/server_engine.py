"""Samples from an OpenAI-compatible server: token ids go out, one request a sample.

Written for vLLM's server, which takes the end tokens, `top_k` and `min_p` and gives token ids back.
Another server gets what OpenAI's interface has; what it cannot be asked for is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from nemo_gdpo.config.generation import GenerateConfig, GenerationConfig
from nemo_gdpo.constraints import has_structure
from nemo_gdpo.errors import UserError
from nemo_gdpo.generation.engine_arguments import sampling_arguments
from nemo_gdpo.generation.errors import GenerationError
from nemo_gdpo.generation.model import ModelInfo
from nemo_gdpo.generation.rows import whole_characters
from nemo_gdpo.generation.types import Completed, NotMade, Request, Sample
from nemo_gdpo.io.http import REFUSED_AT_FIRST, Client, RefusedError, Server

_VLLM_ONLY = ("min_p", "top_k", "stop_token_ids", "ignore_eos", "skip_special_tokens")
GIVE_UP_AFTER = 3
"""Requests in a row without an answer, each after all attempts: the server is gone."""


class _NoAnswerError(GenerationError):
    """What a server answers is no completion, or of no numbers."""


class ServerEngine:
    """An `Engine` behind a URL."""

    def __init__(self, config: GenerateConfig, model: ModelInfo) -> None:
        """Find the model on the server.

        Raises:
            UserError: no key, another model, or settings that this server cannot honour.
            GenerationError: the server does not answer.
        """
        self._config = config.generation.server
        assert self._config.url is not None
        self._client = Client(
            Server(
                url=self._config.url,
                key_variable=self._config.key_variable,
                timeout=self._config.timeout,
                retries=self._config.retries,
                concurrency=self._config.concurrency,
                setting="generation.server",
                what="the server",
                check="generation.server.url and the server's settings",
                remedy="start it again, then run the same command again",
                error=GenerationError,
            )
        )
        self._url = self._client.url
        entry = self._find_model(model.path)
        self._model = str(entry["id"])
        self.is_vllm = entry.get("owned_by") == "vllm"
        """Whether it takes what vLLM's server takes."""
        limit = entry.get("max_model_len")
        self.max_model_len: int | None = limit if isinstance(limit, int) else None
        """The server's own limit, where it says one."""
        self._check(config.generation, is_structured=has_structure(config.constraints))
        self._version = self._read_version()

    # --- what is there ----------------------------------------------------------------------

    def _find_model(self, path: Path) -> Mapping[str, Any]:
        listed = self._client.request("GET", "/models").get("data")
        entries = [e for e in listed if isinstance(e, dict) and "id" in e] if listed else []
        names = ", ".join(str(entry["id"]) for entry in entries) or "none"
        wanted = self._config.model
        if wanted is not None:
            found = [entry for entry in entries if entry["id"] == wanted]
            if not found:
                raise UserError(
                    f"generation.server.model: {self._url} has no {wanted} (its models: {names}); "
                    "name one of them, or start the server with the model"
                )
            return found[0]
        places = {str(path), str(path.resolve())}
        found = [e for e in entries if {str(e["id"]), str(e.get("root"))} & places]
        if not found:
            raise UserError(
                f"generation.server.model: none of the models of {self._url} ({names}) lies at "
                f"{path}; if one of them is the same model, name it here"
            )
        return found[0]

    def _check(self, generation: GenerationConfig, *, is_structured: bool) -> None:
        if self.is_vllm:
            return
        if is_structured:
            raise UserError(
                f"constraints.enforce: {self._url} is not vLLM's server, and OpenAI's interface "
                "holds no completion to a form; set it to false, and answers are only checked"
            )
        for name, values, neutral in (
            ("min_p", generation.min_p, (0.0,)),
            ("top_k", generation.top_k, (0,)),
        ):
            if tuple(values) != neutral:
                raise UserError(
                    f"generation.{name}: {self._url} is not vLLM's server, and OpenAI's interface "
                    f"has no {name}; leave it at {neutral[0]}"
                )

    def _read_version(self) -> str:
        if not self.is_vllm:
            return "unknown"
        root = self._url.removesuffix("/v1")
        return f"vllm {self._client.request('GET', f'{root}/version').get('version', 'unknown')}"

    def describe(self) -> dict[str, str]:
        return {"engine": "server", "engine_version": self._version, "device": "of the server"}

    # --- sampling ---------------------------------------------------------------------------

    def stop(self) -> None:
        self._client.stop()

    def close(self) -> None:
        self._client.close()

    def generate(self, requests: Sequence[Request]) -> Iterator[Completed | NotMade]:
        """See `Engine.generate`; what could not be made comes last.

        Raises:
            UserError: the server refuses everything, or has no log-probabilities.
            GenerationError: it is gone, or gives no completions at all.
        """
        samples = ((n, s) for n, request in enumerate(requests) for s in range(len(request.seeds)))
        rows = _Rows(requests)
        pending: dict[Future[Sample], tuple[int, int]] = {}
        executor = ThreadPoolExecutor(self._config.concurrency, thread_name_prefix="server")
        following = next(samples, None)
        try:
            while pending or following is not None:
                while following is not None and len(pending) < 2 * self._config.concurrency:
                    number, sample = following
                    if self._client.is_stopping and not rows.is_begun(number):
                        following = None  # begun rows are finished, others left for the next run
                        break
                    if not rows.has_failed(number):
                        rows.begin(number)
                        future = executor.submit(self._sample, requests[number], sample)
                        pending[future] = following
                    following = next(samples, None)
                done, _ = wait(pending, return_when=FIRST_COMPLETED, timeout=1.0)
                for future in done:
                    number, sample = pending.pop(future)
                    finished = rows.take(number, sample, future)
                    if finished is not None:
                        yield finished
            yield from rows.not_made()
        finally:
            self._client.stop()
            executor.shutdown(wait=True, cancel_futures=True)

    def _sample(self, request: Request, sample: int) -> Sample:
        body = {name: v for name, v in sampling_arguments(request, sample).items() if v is not None}
        if self.is_vllm:
            body["return_token_ids"] = True
            # They alone tell whether the logits are numbers.
            body["logprobs"] = 0
        else:
            body = {name: value for name, value in body.items() if name not in _VLLM_ONLY}
            if not body["stop"]:
                del body["stop"]
        body |= {"model": self._model, "prompt": list(request.prompt_token_ids)}
        answer = self._client.request("POST", "/completions", body)
        try:
            choice = answer["choices"][0]
            if request.logprobs != "none" and not choice.get("logprobs"):
                raise UserError(
                    f"generation.logprobs={request.logprobs}: the server at {self._url} gives no "
                    "log-probabilities; set none, or use vLLM's server"
                )
            if choice.get("finish_reason") == "content_filter":
                reason = "its content filter"
                raise RefusedError(f"the server at {self._url} refuses a prompt ({reason})", reason)
            return _sample_of(answer, request.logprobs)
        except (LookupError, TypeError, AttributeError, OverflowError) as error:
            told = repr(error)
        except UserError:
            raise
        except ValueError as error:
            told = repr(error)
        raise _NoAnswerError(
            f"the server at {self._url} gave an answer that is not a completion ({told})"
        )


class _Rows:
    """The rows of a run on a server: begun, made, or not to be made."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests
        self._begun: dict[int, dict[int, Sample]] = {}
        self._failed: dict[int, UserError | GenerationError] = {}
        self._answered = False
        self._in_a_row = 0

    def begin(self, number: int) -> None:
        self._begun.setdefault(number, {})

    def is_begun(self, number: int) -> bool:
        return number in self._begun

    def has_failed(self, number: int) -> bool:
        return number in self._failed

    def take(self, number: int, sample: int, future: Future[Sample]) -> Completed | None:
        """Take a sample, or that there is none; the row, once it is complete.

        Raises:
            UserError, GenerationError: see `ServerEngine.generate`.
        """
        try:
            found = future.result()
        except RefusedError as error:
            self._in_a_row = 0
            self._fail(number, error)
            self._answered |= error.filtered
            refused = len(self._failed)
            if refused >= REFUSED_AT_FIRST and not self._answered:
                raise
            return None
        except GenerationError as error:
            self._in_a_row += 1
            self._fail(number, error)
            if self._in_a_row >= GIVE_UP_AFTER:
                raise
            return None
        self._answered, self._in_a_row = True, 0
        if number in self._failed:
            return None
        row = self._begun[number]
        row[sample] = found
        if len(row) < len(self._requests[number].seeds):
            return None
        del self._begun[number]
        return Completed(self._requests[number], tuple(row[n] for n in sorted(row)))

    def _fail(self, number: int, error: UserError | GenerationError) -> None:
        self._failed.setdefault(number, error)
        self._begun.pop(number, None)

    def not_made(self) -> Iterator[NotMade]:
        """The rows that failed.

        Raises:
            UserError, GenerationError: nothing was answered; the first of the reasons.
        """
        for number, error in self._failed.items():
            if not self._answered:
                raise error
            refused = isinstance(error, RefusedError)
            reason = error.reason if isinstance(error, RefusedError) else str(error)
            told = f"the server refuses it ({reason})" if refused else reason
            yield NotMade(self._requests[number], told, is_refused=refused)


def _sample_of(answer: Mapping[str, Any], detail: str) -> Sample:
    choice = answer["choices"][0]
    ids = choice.get("token_ids")
    count = len(ids) if ids is not None else int(answer["usage"]["completion_tokens"])
    each = _log_probs(choice.get("logprobs"))
    if each is not None and not all(math.isfinite(value) for value in each):
        raise ValueError("a log-probability is not a number: its model is broken")
    if detail == "none":
        each = None
    elif each is None or len(each) != count:
        raise ValueError(f"{len(each or ())} log-probabilities for {count} tokens")
    if choice["finish_reason"] not in ("stop", "length"):
        raise ValueError(f"finish_reason {choice['finish_reason']!r}")
    return Sample(
        # Half of a character, at the end of an answer that was cut: as vLLM writes it.
        text=whole_characters(str(choice["text"])),
        token_ids=None if ids is None else tuple(int(token) for token in ids),
        finish_reason=str(choice["finish_reason"]),
        stop_reason=choice.get("stop_reason"),
        token_count=count,
        cumulative_logprob=None if each is None else math.fsum(each),
        token_logprobs=each if detail == "tokens" else None,
    )


def _log_probs(given: Any) -> tuple[float, ...] | None:
    values = given.get("token_logprobs") if isinstance(given, dict) else None
    return None if values is None else tuple(float(value) for value in values)
