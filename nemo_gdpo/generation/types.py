"""Requests to an engine and completions from it: plain data that any process can carry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from nemo_gdpo.constraints import Structure

Prompt = str | Sequence[Mapping[str, str]]
"""Text, or the messages of a conversation."""
LogprobDetail = Literal["none", "cumulative", "tokens"]
"""Which log-probabilities a row keeps: none, one sum a sample, or one for each token as well."""


@dataclass(frozen=True)
class SamplingPoint:
    """One point of the sweep. The values that change nothing are 1.0, 1.0, 0.0 and 0."""

    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens that holds this probability."""
    min_p: float = 0.0
    """Sample from tokens that have this share of the likeliest token's probability."""
    top_k: int = 0
    """Sample from this many tokens; 0 is all."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)

    def label(self) -> str:
        """Short text for tables and legends: what differs from plain sampling is named."""
        parts = [f"T={self.temperature:g}"]
        parts += [f"top_p={self.top_p:g}"] if self.top_p != 1.0 else []
        parts += [f"min_p={self.min_p:g}"] if self.min_p != 0.0 else []
        parts += [f"top_k={self.top_k}"] if self.top_k > 0 else []
        return " ".join(parts)


@dataclass(frozen=True)
class Request:
    """One row to come: a prompt at one sampling point, and a seed for each of its samples."""

    id: str
    """Id of the prompt."""
    prompt: Prompt
    """Prompt as given; for the row."""
    prompt_token_ids: tuple[int, ...]
    """What the model reads."""
    sampling: SamplingPoint
    seeds: tuple[int, ...]
    """One for each sample; their number is the number of samples."""
    max_tokens: int
    """Greatest number of tokens that a sample may have."""
    stop_token_ids: tuple[int, ...]
    """The only end tokens: a sample ends with the first of them, which belongs to it."""
    stop: tuple[str, ...] = ()
    """A sample ends before the first of these texts."""
    logprobs: LogprobDetail = "none"
    structure: Structure | None = None
    """What the engine holds every sample to."""

    def to_dict(self) -> dict[str, Any]:
        """Dictionaries, lists and numbers only."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Request:
        """The inverse of `to_dict`, also after a way through JSON or Arrow."""
        values = dict(plain)
        values["sampling"] = SamplingPoint(**values["sampling"])
        for name in ("prompt_token_ids", "seeds", "stop_token_ids"):
            values[name] = tuple(int(value) for value in values[name])
        values["stop"] = tuple(str(text) for text in values["stop"])
        if values.get("structure") is not None:
            values["structure"] = Structure.from_dict(values["structure"])
        return cls(**values)


@dataclass(frozen=True)
class Sample:
    """One answer to a request."""

    text: str
    """Text without the stop token or the stop text."""
    token_ids: tuple[int, ...] | None
    """Tokens, with the stop token where it ended in one. None: a server that does not tell."""
    finish_reason: str
    """stop (a stop token or text) or length (max_tokens)."""
    stop_reason: int | str | None
    """The stop token's id or the stop text; None where it ended for its length."""
    token_count: int
    cumulative_logprob: float | None = None
    """Sum over the tokens; None unless asked for. Of the model itself: before temperature, top-p
    and the like."""
    token_logprobs: tuple[float, ...] | None = None
    """One for each token; None unless asked for."""


@dataclass(frozen=True)
class Completed:
    """A request that is done: as many samples as it has seeds, in their order."""

    request: Request
    samples: tuple[Sample, ...]

    def to_dict(self) -> dict[str, Any]:
        """Dictionaries, lists and numbers only."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Completed:
        """The inverse of `to_dict`, also after a way through JSON or Arrow."""
        return cls(
            Request.from_dict(plain["request"]),
            tuple(_sample_from_dict(sample) for sample in plain["samples"]),
        )


def _sample_from_dict(plain: Mapping[str, Any]) -> Sample:
    values = dict(plain)
    for name, kind in (("token_ids", int), ("token_logprobs", float)):
        if values[name] is not None:
            values[name] = tuple(kind(value) for value in values[name])
    return Sample(**values)


@dataclass(frozen=True)
class NotMade:
    """A request without a row; the others of a run have theirs."""

    request: Request
    reason: str
    """Part of a line."""
    is_refused: bool
    """Whether the engine refuses it, and would again; otherwise it failed."""


@dataclass(frozen=True)
class EngineSettings:
    """Settings of a vLLM engine; the same for one in this process and for those of Ray."""

    model: str
    """A Hugging Face directory."""
    dtype: str
    """Type of weights and activations: float32, bfloat16 or float16."""
    tensor_parallel_size: int
    """Devices that share one copy of the model."""
    max_model_len: int
    """Greatest length of prompt and sample together, in tokens."""
    memory_utilization: float | None
    """Share of a GPU's memory for the engine; on a CPU, of RAM. None takes the default."""
    kv_cache_gib: float | None
    """CPU only: memory of the key-value cache. None takes the default."""
    max_num_seqs: int
    """Samples that are decoded in one step."""
    in_flight: int
    """Samples that the engine holds at once, waiting ones included."""
    enforce_eager: bool
    """Run without compilation and CUDA graphs."""
    adapter: str | None = None
    """Directory of an adapter in PEFT's format."""
    adapter_rank: int = 0
    """Its rank."""
    structured: bool = False
    """Requests may have a `structure`."""


class Engine(Protocol):
    """Something that samples."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completed | NotMade]:
        """Yield every request once, as they finish, in any order.

        A request that cannot be made does not end the others. An engine that is told to `stop`
        while it works finishes what it has begun, yields that, and ends early; the rest is asked
        for again by the next run.
        """
        ...

    def stop(self) -> None:
        """Begin nothing more. May be called from a signal handler."""
        ...

    def describe(self) -> dict[str, str]:
        """Name and version of the engine: what decides the samples beside model and request."""
        ...

    def close(self) -> None:
        """Free the device and end helper processes."""
        ...
