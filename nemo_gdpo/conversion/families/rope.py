"""Rotary position embeddings in config.json: transformers 5 has one form, all before it another."""

from __future__ import annotations

from typing import Any

from nemo_gdpo.conversion.families.fields import ConfigFields

SCALINGS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset(
        {"factor", "high_freq_factor", "low_freq_factor", "original_max_position_embeddings"}
    ),
}
"""Supported types -> the numbers that each needs."""
_DEFAULT_BASE = 10000.0


def _one_type(fields: ConfigFields, where: str, rope: dict[str, Any]) -> str:
    # `type` is the name that came first; some files have both.
    kinds = [k for k in (rope.pop("rope_type", None), rope.pop("type", None)) if k is not None]
    if len(set(map(str, kinds))) > 1:
        raise fields.refuse(f"{where} has two types ({kinds[0]} and {kinds[1]}); remove one")
    return str(kinds[0]) if kinds else "default"


def _scaling(fields: ConfigFields, where: str, rope: dict[str, Any]) -> dict[str, Any] | None:
    kind = _one_type(fields, where, rope)
    if kind not in SCALINGS:
        raise fields.refuse(
            f"rope type {kind} ({where}) is not supported; supported: {', '.join(SCALINGS)}"
        )
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise fields.refuse(f"{where}.partial_rotary_factor other than 1 is not supported")
    wanted = SCALINGS[kind]
    if rope.keys() != wanted:
        raise fields.refuse(
            f"{where} of type {kind} has the fields {sorted(rope)} instead of {sorted(wanted)}; "
            "restore the file"
        )
    for name, value in rope.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise fields.refuse(f"{where}.{name} is {value!r} instead of a positive number")
    return None if kind == "default" else {"rope_type": kind, **rope}


def read_rope(fields: ConfigFields) -> tuple[float, dict[str, Any] | None]:
    """(base, scaling) from `rope_parameters`, or from `rope_theta` and `rope_scaling`.

    Raises:
        UserError: an unsupported type, a missing or unknown number, or two forms that differ.
    """
    new, old = fields.mapping("rope_parameters"), fields.mapping("rope_scaling")
    top = fields.optional("rope_theta")
    old_base = fields.number("rope_theta", _DEFAULT_BASE)
    if not new:
        return old_base, _scaling(fields, "rope_scaling", old)
    base = new.pop("rope_theta", old_base)
    if isinstance(base, bool) or not isinstance(base, int | float) or base <= 0:
        raise fields.refuse(f"rope_parameters.rope_theta is {base!r} instead of a positive number")
    scaling = _scaling(fields, "rope_parameters", new)
    if top is not None and float(base) != old_base:
        raise fields.refuse(f"rope_theta is {old_base} and in rope_parameters {base}; remove one")
    if old:
        old.pop("rope_theta", None)
        if _scaling(fields, "rope_scaling", old) != scaling:
            raise fields.refuse("rope_scaling and rope_parameters differ; remove one")
    return float(base), scaling
