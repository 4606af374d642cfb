"""What would fit, and the change that gains most; layouts and changes as overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.plan.hardware import DEVICES, Cluster
from nemo_gdpo.precisions import in_fp8
from nemo_gdpo.verbs.plan_layouts import IN_SEARCH, MESH, MICRO, RECOMPUTED, Planner, Prediction

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def what_would_fit(planner: Planner, config: RunConfig) -> list[str]:
    """The fewest of each known device on which some layout fits: `h100x8`."""
    found = []
    for device in DEVICES:
        if in_fp8(config.precision) and device.peak.fp8 is None:
            continue
        for count in COUNTS:
            if replace(planner, cluster=Cluster(device, count)).fits_somehow(config):
                found.append(f"{device.name}x{count}")
                break
    return found


def next_better(
    planner: Planner, now: Prediction, layouts: Sequence[Prediction]
) -> tuple[str, Prediction] | None:
    """The one change that gains most, or that makes the run fit; None where none gains 2 %.

    Only what leaves the trajectory as it is: rows, recomputation, the mesh, where states lie.
    """
    config, model = now.config, now.config.model
    tried: list[Mapping[str, Any]] = [
        {"data.packing": True},
        {"data.packing": True, "data.prefix_sharing": True},
        {RECOMPUTED: None},
        {RECOMPUTED: "selective"},
        {RECOMPUTED: "full"},
        {MICRO: 2 * model.micro_batch_size},
        {"optim.use_distributed_optimizer": True},
        {"reference": "cache"},
    ]
    found = []
    for changes in tried:
        other = planner.placed(config, changes)
        if other == config or planner.problems(other):
            continue
        found.append((_words(changes), planner.predict(other, IN_SEARCH)))
    found += [(words, one) for one in layouts[:1] if (words := layout_words(one, config))]
    fitting = [one for one in found if one[1].fits]
    if not fitting:
        return None
    best = max(fitting, key=lambda one: one[1].rank)
    gains = best[1].tokens_per_second > 1.02 * now.tokens_per_second
    return best if gains or not now.fits else None


def _words(changes: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_word(value)}" for key, value in changes.items())


def _word(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def layout_words(one: Prediction, beside: RunConfig | None = None) -> str:
    """A layout as overrides; only those that differ from another configuration, if one is given."""
    other = None if beside is None else _layout_keys(beside)
    own = _layout_keys(one.config)
    kept = own if other is None else {key: own[key] for key in own if own[key] != other[key]}
    return _words(kept)


def _layout_keys(config: RunConfig) -> dict[str, Any]:
    model = config.model
    return {
        MESH[0]: model.tensor_model_parallel_size,
        MESH[1]: model.pipeline_model_parallel_size,
        MESH[2]: model.context_parallel_size,
        "model.virtual_pipeline_model_parallel_size": model.virtual_pipeline_model_parallel_size,
        "model.sequence_parallel": model.sequence_parallel,
        MICRO: model.micro_batch_size,
        RECOMPUTED: model.activations_checkpoint_granularity,
    }
