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
from nemo_gdpo.errors import UserError
from nemo_gdpo.generation.engine_arguments import sampling_arguments
from nemo_gdpo.generation.errors import GenerationError
from nemo_gdpo.generation.model import ModelInfo
from nemo_gdpo.generation.types import Completed, Request, Sample
from nemo_gdpo.io.http import Client, Server

_VLLM_ONLY = ("min_p", "top_k", "stop_token_ids", "ignore_eos", "skip_special_tokens")


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
        self._is_vllm = entry.get("owned_by") == "vllm"
        limit = entry.get("max_model_len")
        self.max_model_len: int | None = limit if isinstance(limit, int) else None
        """The server's own limit, where it says one."""
        self._check(config.generation)
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

    def _check(self, generation: GenerationConfig) -> None:
        if self._is_vllm:
            return
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
        if not self._is_vllm:
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

    def generate(self, requests: Sequence[Request]) -> Iterator[Completed]:
        samples = ((n, s) for n, request in enumerate(requests) for s in range(len(request.seeds)))
        rows: dict[int, dict[int, Sample]] = {}
        pending: dict[Future[Sample], tuple[int, int]] = {}
        executor = ThreadPoolExecutor(self._config.concurrency, thread_name_prefix="server")
        following = next(samples, None)
        try:
            while pending or following is not None:
                while following is not None and len(pending) < 2 * self._config.concurrency:
                    number, sample = following
                    if self._client.is_stopping and number not in rows:
                        following = None  # begun rows are finished, others left for the next run
                        break
                    rows.setdefault(number, {})
                    future = executor.submit(self._sample, requests[number], sample)
                    pending[future] = following
                    following = next(samples, None)
                done, _ = wait(pending, return_when=FIRST_COMPLETED, timeout=1.0)
                for future in done:
                    number, sample = pending.pop(future)
                    rows[number][sample] = future.result()
                    if len(rows[number]) == len(requests[number].seeds):
                        finished = rows.pop(number)
                        yield Completed(
                            requests[number], tuple(finished[n] for n in sorted(finished))
                        )
        finally:
            self._client.stop()
            executor.shutdown(wait=True, cancel_futures=True)

    def _sample(self, request: Request, sample: int) -> Sample:
        body = {name: v for name, v in sampling_arguments(request, sample).items() if v is not None}
        if self._is_vllm:
            body["return_token_ids"] = True
        else:
            body = {name: value for name, value in body.items() if name not in _VLLM_ONLY}
            if not body["stop"]:
                del body["stop"]
        body |= {"model": self._model, "prompt": list(request.prompt_token_ids)}
        answer = self._client.request("POST", "/completions", body)
        try:
            return _sample_of(answer, request.logprobs)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise GenerationError(
                f"the server at {self._url} gave an answer that is not a completion ({error!r})"
            ) from None


def _sample_of(answer: Mapping[str, Any], detail: str) -> Sample:
    choice = answer["choices"][0]
    ids = choice.get("token_ids")
    count = len(ids) if ids is not None else int(answer["usage"]["completion_tokens"])
    each: tuple[float, ...] | None = None
    if detail != "none":
        each = tuple(float(value) for value in choice["logprobs"]["token_logprobs"])
        if len(each) != count or not all(math.isfinite(value) for value in each):
            raise ValueError(f"{len(each)} log-probabilities for {count} tokens")
    if choice["finish_reason"] not in ("stop", "length"):
        raise ValueError(f"finish_reason {choice['finish_reason']!r}")
    return Sample(
        text=str(choice["text"]),
        token_ids=None if ids is None else tuple(int(token) for token in ids),
        finish_reason=str(choice["finish_reason"]),
        stop_reason=choice.get("stop_reason"),
        token_count=count,
        cumulative_logprob=None if each is None else math.fsum(each),
        token_logprobs=each if detail == "tokens" else None,
    )
