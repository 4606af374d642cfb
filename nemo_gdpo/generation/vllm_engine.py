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
    CHECKS_LOGITS,
    NOT_NUMBERS,
    engine_arguments,
    environment,
    sampling_arguments,
)
from nemo_gdpo.generation.errors import GenerationError
from nemo_gdpo.generation.types import Completed, EngineSettings, NotMade, Request, Sample
from nemo_gdpo.importing import uncollected

GIVE_UP_AFTER = 8
"""Rows of logits that are no numbers, before any other: it is the model."""


def _platform() -> Any:
    """vLLM's platform; vLLM reads the environment when it is imported."""
    with uncollected():
        import torch

        for name, value in environment(cpu=not torch.cuda.is_available()).items():
            os.environ.setdefault(name, value)
        os.environ[CHECKS_LOGITS] = "1"
        from vllm import LLM, SamplingParams  # noqa: F401 - most of it is imported by these
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


def check_sampling(requests: Sequence[Request]) -> None:
    """Refuse what vLLM cannot sample with, before a model is loaded.

    Raises:
        UserError: with vLLM's reason.
    """
    _platform()
    for request in requests:
        try:
            params = _sampling_params(request, 0)
            if request.structure is not None:
                from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

                validate_xgrammar_grammar(params)
        except Exception as error:  # noqa: BLE001 - its own classes, and those of Python
            raise UserError(
                f"generation: vLLM does not sample at {request.sampling.label()} ({_line(error)}); "
                "change the setting that it names"
            ) from None


def _sampling_params(request: Request, sample: int) -> Any:
    """vLLM's own of one sample."""
    from vllm import SamplingParams

    arguments = sampling_arguments(request, sample)
    if request.structure is not None:
        from vllm.sampling_params import StructuredOutputsParams

        arguments["structured_outputs"] = StructuredOutputsParams(**request.structure.to_argument())
    return SamplingParams(**arguments)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


class LogitsError(GenerationError):
    """A sample was drawn of logits that are no numbers."""


def sample_of(output: Any, detail: str) -> Sample:
    """One finished `vllm.CompletionOutput`.

    Raises:
        LogitsError: a log-probability is not a number: the model is broken.
    """
    ids = tuple(int(token) for token in output.token_ids)
    each: tuple[float, ...] | None = None
    total: float | None = None
    if detail != "none":
        pairs = zip(ids, output.logprobs, strict=True)
        each = tuple(float(found[token].logprob) for token, found in pairs)
        total = math.fsum(each)
        if not math.isfinite(total):
            raise LogitsError(
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


def _adapter_request(settings: EngineSettings) -> Any:
    """What every request says of the adapter; None without one."""
    if settings.adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, settings.adapter)


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
        self._adapter = _adapter_request(settings)
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
        self._not_numbers: set[tuple[int, int]] = set()
        """(row, sample) of requests with logits that are no numbers."""
        self._watch_logits(self._engine.engine_core)

    def _watch_logits(self, core: Any) -> None:
        """See the counts of every step: the engine puts them into statistics only."""
        get_output = core.get_output

        def watched() -> Any:
            found = get_output()
            for output in found.outputs:
                if output.num_nans_in_logits:
                    self._not_numbers.add(_numbers_of(output.request_id))
            return found

        core.get_output = watched

    def describe(self) -> dict[str, str]:
        return engine_info()

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        self._engine.engine_core.shutdown()

    def generate(self, requests: Sequence[Request]) -> Iterator[Completed | NotMade]:
        waiting = deque(enumerate(requests))
        begun: dict[int, _Row] = {}
        in_flight = made = broken = 0
        while begun or (waiting and not self._stopping):
            while waiting and not self._stopping:
                number, request = waiting[0]
                if in_flight and in_flight + len(request.seeds) > self._in_flight:
                    break
                waiting.popleft()
                refusal = self._add(number, request)
                if refusal is not None:
                    yield NotMade(request, refusal, is_refused=True)
                    continue
                begun[number] = _Row(request)
                in_flight += len(request.seeds)
            if not begun:
                continue
            for output in self._step():
                if not output.finished:
                    continue
                number, sample = _numbers_of(output.request_id)
                row = begun[number]
                row.take(sample, output.outputs[0], broken=(number, sample) in self._not_numbers)
                in_flight -= 1
                if not row.is_complete:
                    continue
                finished = begun.pop(number).result()
                made += isinstance(finished, Completed)
                broken += isinstance(finished, NotMade)
                if broken >= GIVE_UP_AFTER and not made:
                    raise GenerationError(f"{NOT_NUMBERS} (the first {broken} rows all have them)")
                yield finished

    def _step(self) -> list[Any]:
        try:
            return list(self._engine.step())
        except RuntimeError as error:
            raise _engine_failed(error) from error

    def _add(self, number: int, request: Request) -> str | None:
        """Hand a request to the engine; why it refuses it, or None."""
        prompt = {"prompt_token_ids": list(request.prompt_token_ids)}
        for sample in range(len(request.seeds)):
            try:
                (rendered,) = self._engine.renderer.render_cmpl([prompt])
                params = _sampling_params(request, sample)
                self._engine.add_request(
                    f"{number}-{sample}", rendered, params, lora_request=self._adapter
                )
            except RuntimeError as error:
                raise _engine_failed(error) from error
            except Exception as error:
                # Its samples are alike: it refuses the first one or none.
                if sample > 0:
                    raise
                return f"vLLM refuses it ({_line(error)})"
        return None


def _numbers_of(request_id: str) -> tuple[int, int]:
    """(row, sample) in the name of a request; the engine's own name for it has a suffix."""
    row, sample, *_ = request_id.split("-")
    return int(row), int(sample)


class _Row:
    """A request of which some samples are done."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._samples: dict[int, Sample | None] = {}

    def take(self, sample: int, output: Any, *, broken: bool) -> None:
        """Take a finished sample, or that it was drawn of no numbers."""
        try:
            self._samples[sample] = None if broken else sample_of(output, self.request.logprobs)
        except LogitsError:
            self._samples[sample] = None

    @property
    def is_complete(self) -> bool:
        return len(self._samples) == len(self.request.seeds)

    def result(self) -> Completed | NotMade:
        """The row, or that it has a sample of no numbers."""
        samples = [self._samples[number] for number in sorted(self._samples)]
        whole = tuple(sample for sample in samples if sample is not None)
        if len(whole) < len(samples):
            return NotMade(self.request, NOT_NUMBERS, is_refused=False)
        return Completed(self.request, whole)
