"""Backends: the choice of engine, its versions and settings before it starts, and its start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nemo_gdpo.config.generation import GenerateConfig, GenerationConfig
from nemo_gdpo.config.problem import Problem
from nemo_gdpo.constraints import has_structure
from nemo_gdpo.generation.model import ModelInfo, engine_dtype
from nemo_gdpo.generation.types import Engine, EngineSettings, Request


@dataclass(frozen=True)
class Backend:
    """An engine that is known and not started: a run with nothing to do never starts it."""

    info: dict[str, str]
    """Versions and devices, as `Engine.describe` will say; the manifest compares them."""
    settings: dict[str, str]
    """Other settings that decide the samples: the type that is computed in."""
    context: int
    """Greatest length of prompt and answer together."""
    start: Callable[[int], Engine]
    """Starts it; the argument is the greatest length of prompt and answer together, in tokens."""
    check: Callable[[Sequence[Request]], None] = lambda _: None
    """Refuses (UserError) what it cannot sample with, before it starts; gets a request a point."""
    takes_stop_tokens: bool = True
    """Whether an answer can be ended by a token's id."""


_ENGINE = (
    "python",
    "dtype",
    "tensor_parallel_size",
    "memory_utilization",
    "kv_cache_gib",
    "max_num_seqs",
    "in_flight",
    "enforce_eager",
)
UNREAD = {"vllm": ("server", "ray"), "ray": ("server",), "server": (*_ENGINE, "ray")}
"""Backend -> keys and sections of `generation` that it has no use for."""


def backend_problems(config: GenerateConfig) -> list[Problem]:
    """Settings that the chosen backend cannot honour."""
    generation, plain = config.generation, GenerationConfig()
    backend = generation.backend
    found: list[Problem] = []
    if backend == "server":
        from nemo_gdpo.io.http import url_problem

        if generation.server.url is None:
            remedy = "set it to the server's address: http://host:8000/v1"
            found.append(Problem("generation.server.url", "is not set", remedy))
        elif not generation.server.url.startswith(("http://", "https://")):
            given = f"{generation.server.url} is not an http or https address"
            found.append(Problem("generation.server.url", given, "write http://host:port/v1"))
        elif (wrong := url_problem(generation.server.url)) is not None:
            found.append(Problem("generation.server.url", *wrong))
    given_values, defaults = _leaves(generation), _leaves(plain)
    for key, value in given_values.items():
        if key.split(".")[0] in UNREAD[backend] and value != defaults[key]:
            whose = "it is the server's to choose" if key in _ENGINE else "nothing would read it"
            found.append(
                Problem(
                    f"generation.{key}",
                    f"is set, and with generation.backend={backend} {whose}",
                    "remove it, or choose another backend",
                )
            )
    return found


def _leaves(section: GenerationConfig) -> dict[str, object]:
    """`server.url` and the like -> values."""
    found: dict[str, object] = {}
    for key, value in section.model_dump().items():
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": entry for inner, entry in value.items()}
        else:
            found[key] = value
    return found


def open_backend(config: GenerateConfig, model: ModelInfo) -> Backend:
    """The configured backend.

    Raises:
        UserError: the server does not have the model, the machine not the devices, and the like.
        GenerationError: the server does not answer.
    """
    if config.generation.backend == "server":
        return _server(config, model)
    dtype = engine_dtype(config)
    from nemo_gdpo.generation.vllm_engine import check_sampling

    def settings(length: int) -> EngineSettings:
        generation = config.generation
        return EngineSettings(
            model=str(model.path.resolve()),
            dtype=dtype,
            tensor_parallel_size=generation.tensor_parallel_size,
            max_model_len=length,
            memory_utilization=generation.memory_utilization,
            kv_cache_gib=generation.kv_cache_gib,
            max_num_seqs=generation.max_num_seqs,
            in_flight=generation.in_flight,
            enforce_eager=generation.enforce_eager,
            adapter=None if model.adapter is None else str(model.adapter.resolve()),
            adapter_rank=model.adapter_rank,
            structured=has_structure(config.constraints),
        )

    if config.generation.backend == "ray":
        from nemo_gdpo.generation.ray_engine import RayEngine, ray_info

        return Backend(
            info=ray_info(config.generation.ray, config.generation.tensor_parallel_size),
            settings={"dtype": dtype},
            context=model.context,
            start=lambda length: RayEngine(settings(length), config.generation.ray),
            check=check_sampling,
        )
    from nemo_gdpo.generation.vllm_engine import VLLMEngine, check_devices, engine_info

    check_devices(config.generation)
    return Backend(
        info=engine_info(),
        settings={"dtype": dtype},
        context=model.context,
        start=lambda length: VLLMEngine(settings(length)),
        check=check_sampling,
    )


def _server(config: GenerateConfig, model: ModelInfo) -> Backend:
    from nemo_gdpo.generation.server_engine import ServerEngine

    engine = ServerEngine(config, model)
    limit = engine.max_model_len
    return Backend(
        info=engine.describe(),
        settings={"dtype": "of the server"},
        context=model.context if limit is None else min(model.context, limit),
        start=lambda _: engine,
        takes_stop_tokens=engine.is_vllm,
    )
