"""vLLM in this process, fed so that it is always full, a row given out as soon as it is done."""

from __future__ import annotations

import math
import os
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from nemo_gdpo.config.generation import GenerationConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.generation.engine_arguments import (
    engine_arguments,
    environment,
    sampling_arguments,
)
from nemo_gdpo.generation.errors import GenerationError
from nemo_gdpo.generation.types import Completed, EngineSettings, Request, Sample


def _platform() -> Any:
    """vLLM's platform; vLLM reads the environment when it is imported."""
    import torch

    for name, value in environment(cpu=not torch.cuda.is_available()).items():
        os.environ.setdefault(name, value)
    from vllm.platforms import current_platform

    return current_platform


def engine_info() -> dict[str, str]:
    """Versions and devices that decide the samples, without starting an engine."""
    platform = _platform()
    import vllm

    device = "cpu" if platform.is_cpu() else str(platform.get_device_name())
    return {"engine": "vllm", "engine_version": str(vllm.__version__), "device": device}


def check_devices(config: GenerationConfig) -> None:
    """Refuse what this machine cannot do.

    Raises:
        UserError: more GPUs are asked for than there are.
    """
    import torch

    size = config.tensor_parallel_size
    if size == 1:
        return
    if _platform().is_cpu():
        raise UserError(
            f"generation.tensor_parallel_size={size}: vLLM runs on the CPU here, where one process "
            "has the whole model; set 1"
        )
    if size > torch.cuda.device_count():
        raise UserError(
            f"generation.tensor_parallel_size={size}: there are {torch.cuda.device_count()} GPUs "
            "here; lower it"
        )


def sample_of(output: Any, detail: str) -> Sample:
    """One finished `vllm.CompletionOutput`.

    Raises:
        GenerationError: a log-probability is not a number: the model is broken.
    """
    ids = tuple(int(token) for token in output.token_ids)
    each: tuple[float, ...] | None = None
    total: float | None = None
    if detail != "none":
        pairs = zip(ids, output.logprobs, strict=True)
        each = tuple(float(found[token].logprob) for token, found in pairs)
        total = math.fsum(each)
        if not math.isfinite(total):
            raise GenerationError(
                "the model gave a log-probability that is not a finite number; its weights, or "
                "generation.dtype, are at fault"
            )
    return Sample(
        text=str(output.text),
        token_ids=ids,
        finish_reason=str(output.finish_reason),
        stop_reason=output.stop_reason,
        token_count=len(ids),
        cumulative_logprob=total,
        token_logprobs=each if detail == "tokens" else None,
    )


def _engine_failed(error: RuntimeError) -> GenerationError:
    """Print vLLM's own traceback to stderr: an engine cannot be fixed without it."""
    traceback.print_exception(error)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return GenerationError(
        f"vLLM failed ({lines[-1][:300]}); rows that are done are intact: fix what it names, and "
        "run the same command again"
    )


class VLLMEngine:
    """An `Engine` on this machine's devices."""

    def __init__(self, settings: EngineSettings) -> None:
        """Load the model.

        Raises:
            UserError: vLLM refuses the model, the settings or the memory it finds.
            GenerationError: it fails.
        """
        cpu = bool(_platform().is_cpu())
        from vllm import LLM

        self._in_flight = settings.in_flight
        self._stopping = False
        try:
            llm = LLM(**engine_arguments(settings, cpu=cpu))
        except (ValueError, NotImplementedError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"vLLM does not start with {settings.model}: {reason[:600]}; change the setting "
                "that it names, or the model"
            ) from error
        except RuntimeError as error:
            raise _engine_failed(error) from error
        self._engine = llm.llm_engine

    def describe(self) -> dict[str, str]:
        return engine_info()

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        self._engine.engine_core.shutdown()

    def generate(self, requests: Sequence[Request]) -> Iterator[Completed]:
        waiting = deque(enumerate(requests))
        begun: dict[int, _Row] = {}
        in_flight = 0
        while begun or (waiting and not self._stopping):
            while waiting and not self._stopping:
                number, request = waiting[0]
                if in_flight and in_flight + len(request.seeds) > self._in_flight:
                    break
                waiting.popleft()
                begun[number] = _Row(request)
                self._add(number, request)
                in_flight += len(request.seeds)
            for output in self._step():
                if not output.finished:
                    continue
                number, sample = (int(part) for part in output.request_id.split("-"))
                row = begun[number]
                row.samples[sample] = sample_of(output.outputs[0], row.request.logprobs)
                in_flight -= 1
                if len(row.samples) == len(row.request.seeds):
                    yield begun.pop(number).completed()

    def _step(self) -> list[Any]:
        try:
            return list(self._engine.step())
        except RuntimeError as error:
            raise _engine_failed(error) from error

    def _add(self, number: int, request: Request) -> None:
        from vllm import SamplingParams

        prompt = {"prompt_token_ids": list(request.prompt_token_ids)}
        for sample in range(len(request.seeds)):
            (rendered,) = self._engine.renderer.render_cmpl([prompt])
            params = SamplingParams(**sampling_arguments(request, sample))
            self._engine.add_request(f"{number}-{sample}", rendered, params)


class _Row:
    """A request of which some samples are done."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.samples: dict[int, Sample] = {}

    def completed(self) -> Completed:
        return Completed(self.request, tuple(self.samples[n] for n in sorted(self.samples)))
