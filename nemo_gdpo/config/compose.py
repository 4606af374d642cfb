"""From overrides to the resolved configuration, with Hydra, and with suggestions for mistakes."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_gdpo.config.schema import dotted_keys, unknown_key
from nemo_gdpo.config.secrets import refuse_secrets
from nemo_gdpo.config.suggest import closest, hint
from nemo_gdpo.errors import UserError

ROOT_CONFIG = "train"


class Composed(NamedTuple):
    """One configuration in two forms."""

    plain: dict[str, Any]
    """Resolved dictionaries, lists and values; the same as `config` without interpolations."""
    config: DictConfig
    """As composed, in struct mode, interpolations kept."""


def config_dir() -> Path:
    """The directory of `train.yaml` and the groups: in the wheel, or beside the package in a clone.

    Raises:
        UserError: neither is there.
    """
    packaged = Path(str(importlib.resources.files("nemo_gdpo"))) / "_conf"
    checkout = Path(__file__).resolve().parents[2] / "conf"
    for directory in (packaged, checkout):
        if (directory / f"{ROOT_CONFIG}.yaml").is_file():
            return directory
    raise UserError(
        f"the configuration files are missing: neither {packaged} nor {checkout} holds "
        f"{ROOT_CONFIG}.yaml; install the package again, or run from a complete clone"
    )


def group_options(directory: Path) -> dict[str, list[str]]:
    """Group name -> option names. Files whose name starts with an underscore are parts of others."""
    return {
        group.name: sorted(f.stem for f in group.glob("*.yaml") if not f.stem.startswith("_"))
        for group in sorted(directory.iterdir())
        if group.is_dir() and not group.name.startswith((".", "_"))
    }


def _parse(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            parsed.extend(parser.parse_overrides([text]))
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{text!r} is not an override ({reason}); write key=value, and quote a value with "
                "special characters twice: 'key=\"value\"'"
            ) from None
    return parsed


def _check_override(override: Override, groups: dict[str, list[str]]) -> None:
    key = override.key_or_group
    if override.is_delete():
        raise UserError(
            f"~{key}: a key cannot be taken away; set it to null where the schema allows that"
        )
    if override.is_sweep_override():
        raise UserError(
            f"{key}: {override.get_value_element_as_str()} asks for several runs; start one "
            "command for each, and write lists in brackets"
        )
    if key in groups and not override.is_add():
        value = override.value()
        chosen = value if isinstance(value, str) else None
        if chosen is not None and chosen not in groups[key]:
            raise UserError(
                f"{key}={chosen}: there is no such choice{hint(chosen, groups[key])}; the choices "
                f"are {', '.join(groups[key])}"
            )
        if chosen is not None or value is None:
            return
    keys = dotted_keys()
    if key in keys or any(known.startswith(f"{key}.") for known in keys):
        return
    problem = unknown_key(key)
    meant_group = closest(key, groups) if "." not in key else None
    if meant_group:
        raise UserError(
            f"{key}: is neither a key nor a group of the configuration (did you mean "
            f"{meant_group}?); correct or remove it"
        )
    raise UserError(str(problem))


def _hydra_problem(error: HydraException, overrides: Sequence[Override]) -> UserError:
    """Which override Hydra could not apply, in words of the schema."""
    text = str(error)
    for override in overrides:
        key = override.key_or_group
        if f"'{key}'" in text and key.startswith("objective."):
            chosen = [o.value() for o in overrides if o.key_or_group == "objective"]
            name = str(chosen[-1]) if chosen else None
            if name is not None:
                return UserError(str(unknown_key(key, name)))
            owners = "the objective that is chosen"
            return UserError(f"{key}: is not a setting of {owners}; choose another objective=…")
    return UserError(f"the configuration cannot be composed: {' '.join(text.split())}")


def compose(overrides: Sequence[str], directory: Path | None = None) -> Composed:
    """Compose `train.yaml` with `overrides`, in Hydra's grammar, and resolve it.

    Neither weights nor a GPU are needed, and no file but the configuration is read. Types and
    ranges are checked by `parse_config`, everything else by `problems`.

    Args:
        overrides: `key=value`, `group=option`.
        directory: of the configuration files; None is the package's own.

    Raises:
        UserError: an unknown key or choice (with a suggestion), a credential, a malformed override.
    """
    refuse_secrets(overrides)
    root = config_dir() if directory is None else directory.resolve()
    parsed = _parse(overrides)
    groups = group_options(root)
    for override in parsed:
        _check_override(override, groups)
    try:
        with initialize_config_dir(str(root), version_base="1.3"):
            config = hydra_compose(ROOT_CONFIG, overrides=list(overrides))
    except HydraException as error:
        raise _hydra_problem(error, parsed) from None
    return Composed(resolve(config), config)


def resolve(config: DictConfig) -> dict[str, Any]:
    """The plain resolved form of a composed configuration.

    Raises:
        UserError: an interpolation cannot be resolved.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration cannot be resolved: {' '.join(str(error).split())}") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def to_yaml(composed: Composed, *, resolved: bool) -> str:
    """What `--cfg job` prints: with interpolations, or with their values."""
    return OmegaConf.to_yaml(composed.config, resolve=resolved)
