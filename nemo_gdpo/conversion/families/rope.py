"""Rotary position embeddings in config.json: transformers 5 has one form, all before it another."""

from __future__ import annotations

from typing import Any

from nemo_gdpo.conversion.families.fields import ConfigFields

SCALINGS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "llama3": frozenset(
        {"factor", "high_freq_factor", "low_freq_factor", "original_max_position_embeddings"}
    ),
    "yarn": frozenset({"factor", "original_max_position_embeddings"}),
}
"""Supported types -> the numbers that each needs."""
OPTIONAL: dict[str, frozenset[str]] = {
    "yarn": frozenset(
        {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}
    ),
}
"""Type -> what it may have besides; null is the same as absent."""
_DEFAULT_BASE = 10000.0


def _one_type(fields: ConfigFields, where: str, rope: dict[str, Any]) -> str:
    # `type` is the name that came first; some files have both.
    kinds = [k for k in (rope.pop("rope_type", None), rope.pop("type", None)) if k is not None]
    if len(set(map(str, kinds))) > 1:
        raise fields.error(f"{where} has two types ({kinds[0]} and {kinds[1]}); remove one")
    return str(kinds[0]) if kinds else "default"


def _scaling(fields: ConfigFields, where: str, rope: dict[str, Any]) -> dict[str, Any] | None:
    kind = _one_type(fields, where, rope)
    if kind not in SCALINGS:
        raise fields.error(
            f"rope type {kind} ({where}) is not supported; supported: {', '.join(SCALINGS)}"
        )
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise fields.error(f"{where}.partial_rotary_factor other than 1 is not supported")
    wanted, optional = SCALINGS[kind], OPTIONAL.get(kind, frozenset())
    rope = {
        name: value for name, value in rope.items() if name not in optional or value is not None
    }
    if kind == "yarn":
        # Its authors' code takes the model's own length where the file names none.
        rope.setdefault(
            "original_max_position_embeddings", fields.optional("max_position_embeddings")
        )
    if not wanted <= rope.keys() <= wanted | optional:
        raise fields.error(
            f"{where} of type {kind} has the fields {sorted(rope)} instead of {sorted(wanted)}"
            f"{f' and perhaps {sorted(optional)}' if optional else ''}; restore the file"
        )
    truncate = rope.pop("truncate", True)
    if not isinstance(truncate, bool):
        raise fields.error(f"{where}.truncate is {truncate!r} instead of true or false")
    for name, value in rope.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise fields.error(f"{where}.{name} is {value!r} instead of a positive number")
    if not truncate:
        rope["truncate"] = False
    return None if kind == "default" else {"rope_type": kind, **rope}


def read_rope(
    fields: ConfigFields, default_base: float = _DEFAULT_BASE
) -> tuple[float, dict[str, Any] | None]:
    """(base, scaling) from `rope_parameters`, or from `rope_theta` and `rope_scaling`.

    Args:
        fields: of config.json.
        default_base: where the file names none.

    Raises:
        UserError: an unsupported type, a missing or unknown number, or two forms that differ.
    """
    new, old = fields.mapping("rope_parameters"), fields.mapping("rope_scaling")
    top = fields.optional("rope_theta")
    old_base = fields.number("rope_theta", default_base)
    if not new:
        return old_base, _scaling(fields, "rope_scaling", old)
    base = new.pop("rope_theta", old_base)
    if isinstance(base, bool) or not isinstance(base, int | float) or base <= 0:
        raise fields.error(f"rope_parameters.rope_theta is {base!r} instead of a positive number")
    scaling = _scaling(fields, "rope_parameters", new)
    if top is not None and float(base) != old_base:
        raise fields.error(f"rope_theta is {old_base} and in rope_parameters {base}; remove one")
    if old:
        old.pop("rope_theta", None)
        if _scaling(fields, "rope_scaling", old) != scaling:
            raise fields.error("rope_scaling and rope_parameters differ; remove one")
    return float(base), scaling


def read_two_ropes(
    fields: ConfigFields, default_base: float, default_local_base: float
) -> tuple[float, dict[str, Any] | None, float]:
    """(base, scaling, base of the layers with a window), where a family has both.

    Either `rope_parameters` with one object for each type of layer, or `rope_theta`,
    `rope_local_base_freq` and `rope_scaling`.

    Raises:
        UserError: as `read_rope`; or the layers with a window have a scaling.
    """
    new = fields.mapping("rope_parameters")
    if not new:
        local = fields.number("rope_local_base_freq", default_local_base)
        return (*read_rope(fields, default_base), local)
    fields.optional("rope_local_base_freq")
    unknown = sorted(new.keys() - {"full_attention", "sliding_attention"})
    if unknown:
        raise fields.error(f"rope_parameters has unknown parts {', '.join(unknown)}")
    bases, scalings = [], []
    for name, default in (
        ("full_attention", default_base),
        ("sliding_attention", default_local_base),
    ):
        part = new.get(name) or {}
        if not isinstance(part, dict):
            raise fields.error(f"rope_parameters.{name} is {part!r} instead of an object")
        one = ConfigFields(
            {
                "rope_parameters": {"rope_theta": default, **part},
                "max_position_embeddings": fields.optional("max_position_embeddings"),
            },
            fields.where,
        )
        base, scaling = read_rope(one)
        bases.append(base)
        scalings.append(scaling)
    if scalings[1] is not None:
        raise fields.error(
            "rope_parameters.sliding_attention has a scaling, which is not supported"
        )
    return bases[0], scalings[0], bases[1]
