"""The arguments of a verb on the command line: overrides and a few flags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from nemo_gdpo.config.base import Section
from nemo_gdpo.config.composition import Composed, compose
from nemo_gdpo.config.root import Root
from nemo_gdpo.errors import UserError

S = TypeVar("S", bound=Section)
CONFIG_FLAGS = ("--config FILE", "--cfg job", "--resolve")
"""Flags of every verb that reads a configuration."""


@dataclass
class Request:
    """Arguments of a verb, taken apart."""

    overrides: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    config_file: Path | None = None
    """File that --config names."""

    def compose(self, root: Root[S]) -> Composed:
        """The configuration before types and ranges are checked.

        Raises:
            UserError: there is no such file; or see `nemo_gdpo.config.composition.compose`.
        """
        file = self.config_file
        if file is not None and not file.is_file():
            raise UserError(f"--config {file}: file not found; give a run's config.yaml")
        return compose(self.overrides, root, file=file)

    def parse(self, root: Root[S]) -> S:
        """The typed configuration.

        Raises:
            UserError: it cannot be composed, or breaks the schema; all problems at once.
        """
        return root.parse(self.compose(root).plain)


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether -h or --help is given, in any position."""
    return any(argument in ("-h", "--help") for argument in arguments)


def _parts(arguments: Sequence[str]) -> list[str]:
    """Arguments with `--flag=value` taken apart."""
    return [part for a in arguments for part in (a.split("=", 1) if a.startswith("--") else [a])]


def read_request(verb: str, arguments: Sequence[str], flags: Sequence[str]) -> Request:
    """Tell overrides from flags.

    Args:
        verb: for messages.
        arguments: what follows it; --help is dealt with before.
        flags: what the verb takes, a value after a space: `--config FILE`.

    Raises:
        UserError: a flag that does not exist, or lacks its value.
    """
    request = Request()
    known = {name.partition(" ")[0] for name in flags}
    rest = iter(_parts(arguments))
    for argument in rest:
        if not argument.startswith("-"):
            request.overrides.append(argument)
        elif argument in ("--cfg", "-c") and "--cfg" in known:
            what = next(rest, "nothing")
            if what != "job":
                raise UserError(f"--cfg {what}: only `--cfg job` exists")
            request.flags.add("--cfg")
        elif argument == "--config" and argument in known:
            request.config_file = _config_file(rest)
        elif argument in known:
            request.flags.add(argument)
        else:
            takes = ", ".join([*flags, "--help"])
            raise UserError(f"{verb} {argument}: unknown flag; it takes {takes}")
    if "--resolve" in request.flags and "--cfg" not in request.flags:
        raise UserError("--resolve: only `--cfg job --resolve` means something; add --cfg job")
    return request


def _config_file(rest: Iterator[str]) -> Path:
    named = next(rest, None)
    if named is None or named.startswith("-"):
        raise UserError("--config: names no file; write --config FILE")
    return Path(named)
