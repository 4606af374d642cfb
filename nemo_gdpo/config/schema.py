"""The whole configuration of a run, and the way from a plain mapping to it."""

from __future__ import annotations

import copy
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_origin

from pydantic import Field, ValidationError

from nemo_gdpo.config.base import Section, Text
from nemo_gdpo.config.data import DataConfig
from nemo_gdpo.config.model import ModelConfig
from nemo_gdpo.config.objective import (
    OBJECTIVE_SECTIONS,
    DPOConfig,
    ObjectiveConfig,
    kwargs_of,
)
from nemo_gdpo.config.problem import Problem, refuse
from nemo_gdpo.config.suggest import closest, hint
from nemo_gdpo.config.training import LoggerConfig, OptimConfig, TrainerConfig

Precision = Literal["fp32", "bf16", "fp8_delayed", "fp8_tensorwise", "fp8_blockwise", "fp8_mxfp8"]


class RunConfig(Section):
    """Everything that `nemo-gdpo train` reads."""

    seed: Annotated[int, Field(ge=0)] = 1234
    """Of every random generator but the order of pairs, which is `data.seed`."""
    output_dir: Text = "runs/train"
    """Gets metrics.jsonl, config.yaml, checkpoints/, logs/ and, when asked for, hf/."""
    precision: Precision = "fp32"
    """Of weights and activations; log-probabilities, losses and gradients are always fp32."""
    reference: Literal["cache", "resident"] = "cache"
    """Compute the reference's log-probabilities before training, or keep a second copy."""
    reference_cache_dir: Text | None = None
    """Where the cache lies; null is output_dir/reference."""
    export_hf: bool = True
    """Write output_dir/hf (Hugging Face safetensors) at the end."""
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = DPOConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    trainer: TrainerConfig = TrainerConfig()
    logger: LoggerConfig = LoggerConfig()


def objective_kwargs(config: RunConfig) -> tuple[str, dict[str, Any]]:
    """(name, keyword arguments of the objective's dataclass)."""
    return kwargs_of(config.objective)


def _leaves(section: type[Section], prefix: str) -> Iterator[str]:
    # get_type_hints: the annotations are text under postponed evaluation.
    for name, annotation in typing.get_type_hints(section).items():
        if name == "model_config":
            continue
        if (
            get_origin(annotation) is None
            and isinstance(annotation, type)
            and issubclass(annotation, Section)
        ):
            yield from _leaves(annotation, f"{prefix}{name}.")
        elif section is RunConfig and name == "objective":
            continue
        else:
            yield f"{prefix}{name}"


def dotted_keys(objective: Text | None = None) -> frozenset[str]:
    """Every leaf key, with the fields of one objective, or of all of them for None."""
    keys = set(_leaves(RunConfig, ""))
    for name, section in OBJECTIVE_SECTIONS.items():
        if objective in (None, name):
            keys.update(_leaves(section, "objective."))
    return frozenset(keys)


def unknown_key(key: str, objective: Text | None = None) -> Problem:
    """The problem of `key` not being in the schema (or not under this objective)."""
    if objective is not None and key in dotted_keys():
        owners = [n for n in OBJECTIVE_SECTIONS if key in dotted_keys(n)]
        return Problem(
            key,
            f"objective={objective} has no such setting, only {', '.join(owners)}",
            f"remove it, or choose objective={owners[0]}",
        )
    found = hint(key, dotted_keys(objective))
    return Problem(key, f"is not a key of the configuration{found}", "correct or remove it")


def _schema_key(location: tuple[int | str, ...]) -> str:
    parts = [str(part) for part in location]
    # pydantic puts the tag of the union into the location: objective.gdpo.alpha.
    if parts[0] == "objective" and len(parts) > 2 and parts[1] in OBJECTIVE_SECTIONS:
        del parts[1]
    return ".".join(parts)


def _objective_name(config: Mapping[str, Any]) -> str | None:
    section = config.get("objective")
    name = section.get("name") if isinstance(section, Mapping) else None
    return name if isinstance(name, str) and name in OBJECTIVE_SECTIONS else None


def _as_problem(error: Mapping[str, Any], config: Mapping[str, Any]) -> Problem:
    key = _schema_key(error["loc"])
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown_key(key, _objective_name(config))
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        given = str(context.get("tag", "nothing"))
        return Problem(
            "objective.name",
            f"{given} is not an objective{hint(given, OBJECTIVE_SECTIONS)}",
            f"choose objective={'|'.join(OBJECTIVE_SECTIONS)}",
        )
    given = error["input"]
    shown = "null" if given is None else repr(given)
    if kind == "literal_error":
        expected = context["expected"].replace("'", "")
        names = [name.strip() for name in expected.replace(" or ", ", ").split(",")]
        meant = closest(str(given), names)
        return Problem(
            key,
            f"{shown} is not one of {', '.join(names)}",
            f"did you mean {meant}?" if meant else "choose one of them",
        )
    message = error["msg"][0].lower() + error["msg"][1:]
    return Problem(key, f"{shown} is not allowed: {message}", "correct the value")


def _drop(config: dict[str, Any], key: str) -> None:
    """Remove the offending leaf, so that the schema's default stands in for it."""
    node: Any = config
    *parents, leaf = key.split(".")
    for parent in parents:
        if not isinstance(node, dict) or not isinstance(node.get(parent), dict):
            # A list element, or a section that is no mapping: the whole of it goes.
            node.pop(parent, None)
            return
        node = node[parent]
    node.pop(leaf, None)


def parse_leniently(config: Mapping[str, Any]) -> tuple[RunConfig, list[Problem]]:
    """Parse, and name every mistake; a faulty value is replaced by its default.

    With an empty list the result is the configuration; otherwise it serves only to look for
    further problems, so that all of them can be named at once.
    """
    remaining = copy.deepcopy(dict(config))
    found: list[Problem] = []
    while True:
        try:
            return RunConfig.model_validate(remaining), found
        except ValidationError as errors:
            for error in errors.errors(include_url=False):
                problem = _as_problem(error, remaining)
                found.append(problem)
                if problem.key == "objective.name":
                    remaining.pop("objective")
                else:
                    _drop(remaining, problem.key)


def parse_config(config: Mapping[str, Any]) -> RunConfig:
    """The typed configuration of a plain resolved mapping.

    Raises:
        UserError: unknown keys, wrong types, values out of range; all of them at once.
    """
    parsed, found = parse_leniently(config)
    refuse(found)
    return parsed
