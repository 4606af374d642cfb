"""`nemo-gdpo plan`: what a run would need and take on hardware that need not be here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_gdpo.config.problem import Problem, raise_problems
from nemo_gdpo.config.request import Request
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.errors import EXIT_DONE, UserError
from nemo_gdpo.plan.hardware import KEY, Cluster, known_devices, parse_hardware
from nemo_gdpo.precisions import REHEARSALS, in_fp8

if TYPE_CHECKING:
    from nemo_gdpo.data.dataset import PreferenceDataset
    from nemo_gdpo.verbs.plan_layouts import Planner, Prediction

JSON = "--json"
"""Flag: JSON alone on stdout."""


@dataclass(frozen=True)
class Pairs:
    """The pairs whose lengths count."""

    data: PreferenceDataset
    source: str
    assumed: bool
    """Nothing could be read: all have one length, and their number is not known."""


def run(request: Request) -> int:
    """Print the plan; returns the exit status.

    Raises:
        UserError: the configuration or the hardware is wrong, or no layout of the run fits it.
    """
    from nemo_gdpo.training.forecast import architecture_of
    from nemo_gdpo.verbs.plan_layouts import Planner
    from nemo_gdpo.verbs.plan_report import report_of
    from nemo_gdpo.verbs.plan_text import as_text

    cluster = cluster_of(request)
    config = request.parse(TRAIN)
    refuse_unsuited(config, cluster)
    architecture = architecture_of(config)
    pairs = pairs_of(config)
    planner = Planner(architecture, pairs.data, cluster)
    raise_problems(elsewhere_wrong(planner, config))
    layouts = planner.best_layouts(config)
    own, wrong = own_layout(planner, config)
    shown = own or (layouts[0] if layouts else None)
    if shown is None or not (shown.fits or layouts):
        raise nothing_fits(planner, config, wrong, shown)
    report = report_of(planner, shown, layouts, pairs, own=own is not None, wrong=wrong)
    print(json.dumps(report, indent=2) if JSON in request.flags else as_text(report))
    return EXIT_DONE


def cluster_of(request: Request) -> Cluster:
    """What `hardware=` says, which is no key of a run and is taken out of the overrides.

    Raises:
        UserError: it is missing, given twice, or not known.
    """
    given = [text for text in request.overrides if text.startswith(f"{KEY}=")]
    request.overrides = [text for text in request.overrides if text not in given]
    if len(given) != 1:
        said = "is given twice; write it once" if given else "is not given; write DEVICExNUMBER"
        raise UserError(f"{KEY}: {said}, as {KEY}=h100x16, with one of {known_devices()}")
    return parse_hardware(given[0].partition("=")[2])


def refuse_unsuited(config: RunConfig, cluster: Cluster) -> None:
    """Refuse a precision that the devices lack.

    Raises:
        UserError: they have no FP8, or it is a rehearsal, which no cluster is planned for.
    """
    if config.precision in REHEARSALS:
        raise UserError(
            f"precision: {config.precision} rounds in fp32 and says nothing of what FP8 needs or "
            "takes on a GPU; plan with precision=fp8_tensorwise or fp8_blockwise"
        )
    if in_fp8(config.precision) and cluster.device.peak.fp8 is None:
        raise UserError(
            f"precision: {cluster.device.name} has no FP8 tensor cores ({KEY}={cluster.device.name}"
            f"x{cluster.count}); use precision=bf16, or h100 or newer"
        )


def pairs_of(config: RunConfig) -> Pairs:
    """The training pairs where they, and a tokenizer, can be read; else an assumed length."""
    from nemo_gdpo.training.forecast import assumed_pairs

    path = config.data.train_path
    found, why = None, "data.train_path is null"
    if path is not None:
        found, why = _read(config, path)
    if found is None:
        data = assumed_pairs(config)
        length = int(data.arrays.offsets[2])
        told = f"assumed: every sequence has {length} tokens, half of data.max_length ({why})"
        return Pairs(data, told, assumed=True)
    return Pairs(found, str(path), assumed=False)


def _read(config: RunConfig, path: str) -> tuple[PreferenceDataset | None, str]:
    """The pairs; or None, and why there are none."""
    from nemo_gdpo.data.from_config import build_split
    from nemo_gdpo.data.inspect import load_tokenizer, tokenizer_directory
    from nemo_gdpo.data.prepared import is_prepared, load_prepared

    if is_prepared(path):
        return load_prepared(path), ""
    if not Path(path).exists():
        return None, f"{path} is not here"
    model = config.model.restore_from_path
    assets = None if model is None else tokenizer_directory(Path(model))
    if assets is None:
        return None, f"{path} is here, but no tokenizer at model.restore_from_path={model}"
    tokenizer = load_tokenizer(assets)
    scores = config.objective.needs_scores
    return build_split(config.data, "train", tokenizer, assets, require_scores=scores), ""


def elsewhere_wrong(planner: Planner, config: RunConfig) -> list[Problem]:
    """What no layout would mend."""
    placed = planner.placed(config, {})
    of_layout = planner.problems(placed)
    return [one for one in planner.all_problems(placed) if one not in of_layout]


def own_layout(planner: Planner, config: RunConfig) -> tuple[Prediction | None, list[Problem]]:
    """The run as it is configured, on this cluster; or None, and what is wrong with that."""
    placed = planner.placed(config, {})
    wrong = planner.problems(placed)
    return (None, wrong) if wrong else (planner.predict(placed), [])


def nothing_fits(
    planner: Planner, config: RunConfig, wrong: list[Problem], shown: Prediction | None
) -> UserError:
    """The error of hardware on which no layout fits: with what would do."""
    from nemo_gdpo.plan.memory import fullest
    from nemo_gdpo.verbs.plan_changes import what_would_fit

    cluster = planner.cluster
    name = f"{cluster.device.name}x{cluster.count}"
    fitting = what_would_fit(planner, config)
    if wrong and name in fitting:
        return UserError(str(wrong[0]))
    needed = ""
    if shown is not None:
        needed = f" (as configured a device needs {fullest(shown.stages).total / 1e9:,.0f} GB)"
    remedy = f"would fit: {', '.join(fitting)}" if fitting else "lower data.max_length"
    return UserError(
        f"{KEY}={name}: no layout of this run fits into {cluster.device.memory} GB{needed}, by "
        f"prediction; {remedy}"
    )
