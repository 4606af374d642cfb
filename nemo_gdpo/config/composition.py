"""Composition: presets, a file and overrides to the resolved configuration, with suggestions.

Defaults come from the sections (`nemo_gdpo.config.schema` and its siblings), so a file under
`conf/` says only what differs from them. Hydra merges, in this order: the defaults, a configuration
given with --config, the chosen presets of each group, and the overrides of the command line.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_gdpo.config.base import Section, defaults_of, fields_of, plain_data
from nemo_gdpo.config.lengths import resolve_lengths
from nemo_gdpo.config.problem import raise_problems
from nemo_gdpo.config.root import Root
from nemo_gdpo.config.secrets import refuse_secrets
from nemo_gdpo.config.suggest import alias, closest, hint
from nemo_gdpo.config.yaml_files import read_yaml_mapping, yaml_text
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.text import is_text

# `${unless:A,B}`: null where A is set, otherwise B.
OmegaConf.register_new_resolver(
    "unless", lambda given, value: value if given is None else None, replace=True
)
resolve_lengths()

_PROBE = "parallel"
"""A folder that the directory of presets always has."""
_COMPLETE = "# @package _global_"
"""First line of a preset that describes a complete run."""
_HOME = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|(?<=[=:,\[{\s])(~[^\s,:\[\]{}'"]*)""")
"""Quoted text, or a path that begins with `~` in the place of a value."""


S = TypeVar("S", bound=Section)


class Composed(NamedTuple):
    """One configuration in two forms."""

    plain: dict[str, Any]
    """Resolved dictionaries, lists and values; the same as `config` without interpolations."""
    config: DictConfig
    """As composed, in struct mode, interpolations kept."""


def config_dir() -> Path:
    """The directory with a folder of presets for each group.

    In the wheel, or beside the package in a clone.

    Raises:
        UserError: neither is there.
    """
    packaged = Path(str(importlib.resources.files("nemo_gdpo"))) / "_conf"
    checkout = Path(__file__).resolve().parents[2] / "conf"
    for directory in (packaged, checkout):
        if (directory / _PROBE).is_dir():
            return directory
    raise UserError(
        f"the presets are missing: neither {packaged} nor {checkout} holds {_PROBE}/; install the "
        "package again, or run from a complete clone"
    )


def group_options(directory: Path, root: Root[Any]) -> dict[str, list[str]]:
    """Group name -> names of its presets.

    A file named with a leading underscore is a part of others. The sections of the root's choice
    are presets without a file. An experiment that sets sections of another verb is none of this.
    """
    found = {
        group: {
            f.stem
            for f in (directory / group).glob("*.yaml")
            if not f.stem.startswith("_") and _is_of(f, root)
        }
        | ({preset} if preset is not None else set())
        for group, preset in root.groups.items()
    }
    if root.choice is not None:
        found[root.choice] |= set(root.sections)
    return {group: sorted(names) for group, names in sorted(found.items())}


@cache
def _sections_of(preset: Path) -> frozenset[str]:
    """What a preset of complete runs sets; nothing of one that fills a section."""
    text = preset.read_text(encoding="utf-8")
    if not text.startswith(_COMPLETE):
        return frozenset()
    return frozenset(map(str, read_yaml_mapping(preset))) - {"defaults"}


def _is_of(preset: Path, root: Root[Any]) -> bool:
    """Whether a verb has all sections that a preset sets."""
    return _sections_of(preset) <= set(fields_of(root.schema))


def _with_homes(override: str) -> str:
    """An override with `~/x` written out: a shell leaves it behind `=`, Hydra does not read it."""

    def written_out(match: re.Match[str]) -> str:
        if match[1] is not None:  # quoted text stays
            return match[1]
        path = match[2]
        with contextlib.suppress(RuntimeError):  # of a user that is not known
            path = str(Path(path).expanduser())
        return f'"{path}"'

    return _HOME.sub(written_out, override)


def _parse(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        if not is_text(text):
            raise UserError(f"{text!r} is no text in UTF-8; write it in the terminal's encoding")
        try:
            parsed.extend(parser.parse_overrides([text]))
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{text!r} is not an override ({reason}); write key=value, and quote a value with "
                "special characters twice: 'key=\"value\"'"
            ) from None
    return parsed


def _override_problem(
    override: Override, groups: dict[str, list[str]], root: Root[Any]
) -> str | None:
    """The problem of an override by itself, or None where nothing is wrong."""
    key = override.key_or_group
    if override.is_delete():
        return f"~{key}: a key cannot be taken away; set it to null where the schema allows that"
    if override.is_sweep_override():
        return (
            f"{override.input_line}: asks for several runs; start one command for each, and write "
            "lists in brackets"
        )
    if key in groups and not override.is_add():
        value = override.value()
        if isinstance(value, list):
            return f"{key}: takes one choice, not a list; the choices are {', '.join(groups[key])}"
        chosen = value if isinstance(value, str) else None
        if chosen is not None and chosen not in groups[key]:
            refusal = root.refusal(key, chosen)
            if refusal is not None:
                return str(refusal)
            return (
                f"{key}={chosen}: unknown choice{hint(chosen, groups[key])}; the choices "
                f"are {', '.join(groups[key])}"
            )
        if chosen is not None or (value is None and key != root.choice):
            return None
        if not isinstance(value, dict):
            return f"{key}={value}: takes the name of a choice: {', '.join(groups[key])}"
    keys = root.keys()
    inside = sorted(known for known in keys if known.startswith(f"{key}."))
    if inside and isinstance(override.value(), str):
        return f"{key}: is a section, not a value; set its keys, such as {inside[0]}"
    if key in keys or inside:
        return None
    meant_group = closest(key, groups) if "." not in key else None
    if meant_group and alias(key, root.aliases, keys) is None:
        return (
            f"{key}: is neither a key nor a group of the configuration (did you mean "
            f"{meant_group}?); correct or remove it"
        )
    return str(root.unknown_key(key))


def _root_node(
    root: Root[Any], base: Mapping[str, Any], chosen: Mapping[str, str | None]
) -> dict[str, Any]:
    """The primary configuration: the sections' defaults under `base`, then the groups.

    Args:
        root: what is composed.
        base: of --config, checked; {} without one.
        chosen: group -> preset.
    """
    without = frozenset() if root.choice is None else frozenset({root.choice})
    values = defaults_of(root.schema, without=without)
    first = [] if root.choice is None else [{root.choice: chosen[root.choice]}]
    rest = [{group: preset} for group, preset in chosen.items() if group != root.choice]
    merged = OmegaConf.merge(OmegaConf.create(values), OmegaConf.create(dict(base)))
    plain = OmegaConf.to_container(merged)
    assert isinstance(plain, dict)
    # Later entries win: --config's values over the choice's defaults, presets over both.
    return {"defaults": [*first, "_self_", *rest], **{str(k): v for k, v in plain.items()}}


def _compose(
    directory: Path,
    root: Root[Any],
    overrides: Sequence[str],
    base: Mapping[str, Any],
    chosen: Mapping[str, str | None],
) -> DictConfig:
    store = ConfigStore.instance()
    store.store(name=root.name, node=_root_node(root, base, chosen))
    for name, section in root.sections.items():
        store.store(group=root.choice, name=name, node=defaults_of(section))
    for group, preset in root.groups.items():
        if (
            group == root.choice
            or preset is None
            or (directory / group / f"{preset}.yaml").exists()
        ):
            continue
        store.store(group=group, name=preset, node={})  # all of it is default
    with initialize_config_dir(str(directory), version_base="1.3"):
        return hydra_compose(root.name, overrides=list(overrides))


def _foreign_setting(
    root: Root[Any], parsed: Sequence[Override], chosen_by: Callable[[list[str]], DictConfig]
) -> str | None:
    """A setting of another section than the chosen one, in words clearer than Hydra's."""
    settings = [o for o in parsed if o.key_or_group.startswith(f"{root.choice}.")]
    if root.choice is None or not settings:
        return None
    rest = [o.input_line for o in parsed if o not in settings and o.input_line is not None]
    # Composed without them, since only that tells which section an experiment chooses.
    name = str(chosen_by(rest)[root.choice].name)
    for override in settings:
        if override.key_or_group not in root.keys(name):
            return str(root.unknown_key(override.key_or_group, name))
    return None


def read_config_file(path: Path, root: Root[Any], *, option: str = "") -> dict[str, Any]:
    """The mapping of a YAML file: a run's own config.yaml, or anyone's that --config names.

    It may leave keys out. Names are checked here, values with the complete configuration.

    Args:
        path: of the file.
        root: whose keys it may have.
        option: what named the file on the command line, for messages.

    Raises:
        UserError: the file does not exist, it is not a YAML mapping, or it has unknown keys.
    """
    where = f"{option} {path}".lstrip()
    try:
        loaded = read_yaml_mapping(path)
    except ValueError as error:
        raise UserError(f"{where}: {error}; give a YAML file of key: value lines") from None
    keys = root.keys()
    leaves = list(_leaves_of(loaded, keys))
    refuse_secrets(f"{key}={value}" for key, value in leaves)
    unknown = [key for key, _ in leaves if key not in keys]
    raise_problems([f"{where}: {root.unknown_key(key)}" for key in unknown])
    return loaded


def _leaves_of(
    node: Mapping[Any, Any], keys: frozenset[str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested mapping; a mapping that is itself a value is a leaf."""
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in keys:
            yield from _leaves_of(value, keys, f"{key}.")
        else:
            yield key, value


def _chosen_presets(
    root: Root[Any], parsed: Sequence[Override], file: Path | None, base: dict[str, Any]
) -> dict[str, str | None]:
    """Group -> preset before the command line. A file stands in the place of the default presets.

    Where the command line chooses another section than the file's, the file's goes from `base`.

    Raises:
        UserError: --config beside an experiment: each describes a complete run.
    """
    if file is None:
        return dict(root.groups)
    given = {o.key_or_group for o in parsed}
    if "experiment" in given:
        raise UserError(
            f"--config {file} and experiment: each describes a complete run; give one of them, and "
            "single keys beside it"
        )
    chosen: dict[str, str | None] = dict.fromkeys(root.groups)  # None: the file has it all
    if root.choice is not None:
        section = base.get(root.choice)
        name = section.get("name") if isinstance(section, dict) else None
        chosen[root.choice] = name if name in root.sections else root.groups[root.choice]
        if root.choice in given or name not in root.sections:
            base.pop(root.choice, None)
    return chosen


def compose(
    overrides: Sequence[str],
    root: Root[Any],
    *,
    file: Path | None = None,
    directory: Path | None = None,
) -> Composed:
    """Compose a root's configuration with `overrides`, in Hydra's grammar, and resolve it.

    Neither weights nor a GPU are needed, and no file but the configuration is read. Types and
    ranges are checked by `Root.parse`, everything else by the verb (`problems` for training).

    Args:
        overrides: `key=value`, `group=preset`.
        root: what the verb reads.
        file: of --config; its keys take the place of the default presets.
        directory: of the presets; None is the package's own.

    Raises:
        UserError: an unknown key or choice (with a suggestion), a credential, a malformed override.
    """
    refuse_secrets(overrides)
    directory = config_dir() if directory is None else directory.resolve()
    overrides = [_with_homes(override) for override in overrides]
    parsed = _parse(overrides)
    groups = group_options(directory, root)
    found = [_override_problem(override, groups, root) for override in parsed]
    raise_problems([problem for problem in found if problem is not None])
    base = {} if file is None else read_config_file(file, root, option="--config")
    chosen = _chosen_presets(root, parsed, file, base)

    def composed_with(lines: list[str]) -> DictConfig:
        return _compose(directory, root, lines, base, chosen)

    try:
        config = composed_with(list(overrides))
    except (HydraException, ValueError) as error:  # Hydra raises plain ones, too
        reason = f"the configuration cannot be composed: {' '.join(str(error).split())}"
        foreign: str | None = None
        with contextlib.suppress(HydraException, ValueError):  # it is another override that fails
            foreign = _foreign_setting(root, parsed, composed_with)
        raise UserError(foreign or reason) from None
    return Composed(resolve(config), config)


def resolve(config: DictConfig) -> dict[str, Any]:
    """The plain resolved form of a composed configuration.

    Raises:
        UserError: an interpolation cannot be resolved.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the configuration cannot be resolved: {reason}") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def to_yaml(composed: Composed, *, resolved: bool) -> str:
    """The text that `--cfg job` prints: with interpolations, or with their values."""
    return OmegaConf.to_yaml(composed.config, resolve=resolved)


def config_yaml(config: Section) -> str:
    """A checked configuration as a file that `read_config` and --config take back."""
    return yaml_text(plain_data(config))


def read_config(path: Path, root: Root[S]) -> S:
    """A complete configuration from a file that `config_yaml` wrote.

    Raises:
        UserError: it cannot be read, or is not valid any more.
    """
    return root.parse(read_config_file(path, root))
