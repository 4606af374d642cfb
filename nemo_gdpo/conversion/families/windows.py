"""Sliding windows by layer, from the several ways in which config.json states them."""

from __future__ import annotations

from collections.abc import Callable

from nemo_gdpo.conversion.families.fields import ConfigFields

FULL, SLIDING = "full_attention", "sliding_attention"


def read_layer_windows(
    fields: ConfigFields,
    layers: int,
    window: int | None,
    is_sliding: Callable[[int], bool],
) -> list[int | None] | None:
    """The window of every layer; None when no layer has one.

    Args:
        fields: of config.json; `layer_types` is read here.
        layers: how many there are.
        window: positions that a query of a sliding layer sees, its own included; None is all.
        is_sliding: the family's rule for layer 0, 1, ..., where the file has no `layer_types`.

    Raises:
        UserError: `layer_types` has another length, or a type that is not built.
    """
    types = fields.optional("layer_types")
    if types is None:
        types = [SLIDING if is_sliding(layer) else FULL for layer in range(layers)]
    if not isinstance(types, list) or len(types) != layers:
        raise fields.error(f"layer_types does not name the types of {layers} layers")
    unknown = sorted({str(kind) for kind in types} - {FULL, SLIDING})
    if unknown:
        raise fields.error(f"layer_types has {', '.join(unknown)}; supported: {FULL}, {SLIDING}")
    if SLIDING not in types:
        return None
    if window is None:
        raise fields.error("layer_types has sliding layers and sliding_window is not set")
    return [window if kind == SLIDING else None for kind in types]
