"""How far a run of rounds is: `rounds.json`, replaced as a whole each time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_gdpo.config.base import FREE, fields_of, on_resume_of, plain_data, section_of
from nemo_gdpo.config.rounds import RoundsConfig
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import read_json_object, write_output
from nemo_gdpo.rounds.plan import Stage

STATE = "rounds.json"
_VERSION = 1
_MAY_CHANGE = frozenset(
    {
        "rounds.device", "rounds.batch_tokens",
        "generation.python", "generation.tensor_parallel_size", "generation.memory_utilization",
        "generation.kv_cache_gib", "generation.max_num_seqs", "generation.in_flight",
        "generation.enforce_eager", "generation.rows_per_shard", "generation.backend",
        "generation.ray",
    }
)  # fmt: skip
"""Keys beside train's own that say where and how fast a run takes place, not which run it is."""


@dataclass
class State:
    """The stages that are done."""

    identity: dict[str, Any]
    """Settings that decide the results, and hashes of what the run starts from."""
    stages: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    """Name of a stage that is done -> its `inputs` and `outputs`, by name, as hashes."""

    def outputs(self, stage: Stage) -> dict[str, str]:
        """Hashes of the results of a stage that is done."""
        return self.stages[stage.name]["outputs"]

    def write(self, output: Path) -> None:
        """Replace the file.

        Raises:
            UserError, RunError: it cannot be written.
        """
        plain = {"version": _VERSION, "identity": self.identity, "stages": self.stages}
        write_output(output / STATE, _json(plain))


def _json(plain: Mapping[str, Any]) -> str:
    return json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def identity_of(config: RoundsConfig, started_from: Mapping[str, str]) -> dict[str, Any]:
    """What has to be the same whenever the rounds go on.

    Args:
        config: of the rounds.
        started_from: hashes of prompts and model.
    """
    found = _fixed(RunConfig, plain_data(config), "")
    for name in ("rounds", "generation", "constraints", "pairs"):
        for key, value in plain_data(getattr(config, name)).items():
            if f"{name}.{key}" not in _MAY_CHANGE:
                found[f"{name}.{key}"] = value
    if config.rounds.reward_temperature_end is None:
        del found["rounds.number"]
    return {"settings": found, "started_from": dict(started_from)}


def _fixed(section: type[Any], plain: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Dotted keys of train that may not change when a run is resumed, with their values."""
    found: dict[str, Any] = {}
    for name, declared in fields_of(section).items():
        key, inner = f"{prefix}{name}", section_of(declared)
        if key == "objective":
            found |= {f"{key}.{k}": v for k, v in plain[name].items()}
        elif inner is not None:
            found |= _fixed(inner, plain[name], f"{key}.")
        elif on_resume_of(section, name) is not FREE:
            found[key] = plain[name]
    return found


def read_state(output: Path, identity: Mapping[str, Any]) -> State:
    """The state in a directory, an empty one where there is none.

    Raises:
        UserError: it is damaged, or of a run with other settings; naming the first that differs.
    """
    path = output / STATE
    if not path.is_file():
        return State(dict(identity))
    plain = read_json_object(path)
    stages, before = plain.get("stages"), plain.get("identity")
    is_one = plain.get("version") == _VERSION and isinstance(before, dict)
    if not isinstance(stages, dict) or not is_one or not _is_state(stages):
        raise UserError(f"{path} is damaged, or of another version; restore it")
    _refuse_others(before or {}, identity, output)
    return State(dict(identity), stages)


def _is_state(stages: Mapping[str, Any]) -> bool:
    return all(
        isinstance(stage, dict)
        and set(stage) == {"inputs", "outputs"}
        and all(isinstance(part, dict) for part in stage.values())
        for stage in stages.values()
    )


def _refuse_others(before: Mapping[str, Any], now: Mapping[str, Any], output: Path) -> None:
    for part, told in (("settings", ""), ("started_from", "the contents of ")):
        old, new = before.get(part, {}), now[part]
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                raise UserError(
                    f"{told}{key}: {output} holds rounds with {old.get(key)!r}, and now it is "
                    f"{new.get(key)!r}; set it back, or choose another output_dir"
                )
