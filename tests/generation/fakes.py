"""Requests, rows and manifests for the tests of this package; an engine that needs no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nemo_gdpo.generation.types import Completed, Request, Sample, SamplingPoint


def request(prompt_id: str = "a", temperature: float = 1.0, **changes: Any) -> Request:
    values: dict[str, Any] = {
        "id": prompt_id,
        "prompt": f"text of {prompt_id}",
        "prompt_token_ids": (5, 6, 7),
        "sampling": SamplingPoint(temperature=temperature),
        "seeds": (11, 12),
        "max_tokens": 4,
        "stop_token_ids": (1,),
    }
    return Request(**(values | changes))


def answer(request: Request) -> Completed:
    """A made-up answer that says which request and sample it is of."""
    samples = tuple(
        Sample(f"{request.id} {request.sampling.temperature} {seed}", (9, 1), "stop", 1, 2)
        for seed in request.seeds
    )
    return Completed(request, samples)


def row(prompt_id: str = "a", temperature: float = 1.0, **changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "id": prompt_id,
        "prompt": f"text of {prompt_id}",
        "sampling": SamplingPoint(temperature=temperature).to_dict(),
        "outputs": ["x"],
        "model_hash": "h",
    }
    return plain | changes


def manifest(**settings: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "model": {"path": "/m", "hash": "h", "encoding": "e"},
        "settings": {"seed": 1, "max_tokens": 4, "num_samples": 2} | settings,
        "engine": {"engine": "vllm", "engine_version": "0"},
        "points": [SamplingPoint().to_dict()],
        "prompt_files": [{"path": "/p", "sha256": "s", "prompts": 1}],
    }


class FakeEngine:
    """Answers one request after the other; `before` may interfere."""

    def __init__(self, before: Callable[[int], None] = lambda _: None) -> None:
        self.before = before
        self.asked: list[Request] = []
        self.closed = False
        self.stopping = False

    def generate(self, requests: Sequence[Request]) -> Iterator[Completed]:
        for number, one in enumerate(requests):
            self.before(number)
            if self.stopping:
                return
            self.asked.append(one)
            yield answer(one)

    def stop(self) -> None:
        self.stopping = True

    def describe(self) -> dict[str, str]:
        return {"engine": "fake", "engine_version": "1", "device": "none"}

    def close(self) -> None:
        self.closed = True
