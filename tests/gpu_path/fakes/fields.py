"""Which fields of megatron's configurations a run sets, and which of those anything reads."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any
from unittest import mock

from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer import TransformerConfig

CLASSES = (TransformerConfig, DistributedDataParallelConfig, OptimizerConfig)
OURS = "nemo_gdpo."
COPIERS = ("copy", "dataclasses")
"""Modules that read every field, to make another of it."""


class Fields:
    """For each class of configuration by name, the fields that were set and read."""

    def __init__(self) -> None:
        self.set: dict[str, set[str]] = {kind.__name__: set() for kind in CLASSES}
        self.read: dict[str, set[str]] = {kind.__name__: set() for kind in CLASSES}

    def to_json(self) -> dict[str, dict[str, list[str]]]:
        """{class: {"set": ..., "read": ...}}"""
        return {
            name: {"set": sorted(self.set[name]), "read": sorted(self.read[name])}
            for name in self.set
        }

    def _init(self, kind: type[Any]) -> Any:
        init = kind.__init__

        def note(config: Any, *args: Any, **named: Any) -> None:
            if sys._getframe(1).f_globals["__name__"].startswith(OURS):
                self.set[kind.__name__] |= named.keys()
            init(config, *args, **named)

        return note

    def _put(self, kind: type[Any]) -> Any:
        put: Any = kind.__setattr__

        def note(config: Any, name: str, value: Any) -> None:
            if sys._getframe(1).f_globals["__name__"].startswith(OURS):
                self.set[kind.__name__].add(name)
            put(config, name, value)

        return note

    def _get(self, kind: type[Any]) -> Any:
        names = {field.name for field in dataclasses.fields(kind)}
        get: Any = kind.__getattribute__
        read = self.read[kind.__name__]

        def note(config: Any, name: str) -> Any:
            if name in names and _uses(sys._getframe(1), config):
                read.add(name)
            return get(config, name)

        return note


def _uses(reader: FrameType, config: Any) -> bool:
    """False for a configuration's own checks, and for what only copies it."""
    own = reader.f_locals.get("self") is config
    return not own and reader.f_globals["__name__"] not in COPIERS


@contextlib.contextmanager
def watched_fields() -> Iterator[Fields]:
    """Note what is set and read in here."""
    fields = Fields()
    with contextlib.ExitStack() as stack:
        for kind in CLASSES:
            stack.enter_context(mock.patch.object(kind, "__init__", fields._init(kind)))
            stack.enter_context(mock.patch.object(kind, "__setattr__", fields._put(kind)))
            stack.enter_context(mock.patch.object(kind, "__getattribute__", fields._get(kind)))
        yield fields
