"""What is refused: parameters that have no meaning and scores that have no offset."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch

from nemo_gdpo.objectives import ADPO, DPO, GDPO, IPO, ODPO, PairLogps, PairTargets

from .synthetic import NO_TARGETS, OBJECTIVES, pair_with_margin, random_batch, row

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("kind", [DPO, IPO, ODPO, ADPO])
@pytest.mark.parametrize("beta", [0.0, -0.1, NAN, INF])
def test_beta_must_be_positive_and_finite(kind: Callable[..., object], beta: float) -> None:
    with pytest.raises(ValueError, match=r"^1 validation error for .*\nbeta\n"):
        kind(beta=beta)


REFUSED: list[tuple[Callable[..., object], dict[str, Any], str]] = [
    (DPO, {"label_smoothing": -0.01}, "label_smoothing"),
    (DPO, {"label_smoothing": 0.5}, "label_smoothing"),
    (DPO, {"label_smoothing": NAN}, "label_smoothing"),
    (ADPO, {"gamma": -0.1}, "gamma"),
    (ADPO, {"gamma": NAN}, "gamma"),
    (ODPO, {"alpha": -1.0}, "alpha"),
    (ODPO, {"alpha": NAN}, "alpha"),
    (ODPO, {"alpha": INF}, "alpha"),
    (ODPO, {"offset": "sqrt"}, "offset\n.*'log', 'identity', 'log1p' or 'ratio'"),
    (GDPO, {"alpha": -0.1}, "alpha"),
    (GDPO, {"alpha": NAN}, "alpha"),
    (GDPO, {"alpha": INF}, "alpha"),
    (GDPO, {"rejected_log_reward": 0.1}, "rejected_log_reward"),
    (GDPO, {"rejected_log_reward": NAN}, "rejected_log_reward"),
    (GDPO, {"rejected_log_reward": -INF}, "rejected_log_reward"),
    (GDPO, {"eos_temperature": 0.0}, "eos_temperature"),
    (GDPO, {"eos_temperature": -1.0}, "eos_temperature"),
    (GDPO, {"eos_temperature": NAN}, "eos_temperature"),
    (GDPO, {"subtb_lambda": 0.0}, "subtb_lambda"),
    (GDPO, {"subtb_lambda": INF}, "subtb_lambda"),
    (GDPO, {"balance": "ctb"}, "balance\n.*'db', 'subtb' or 'tb'"),
    (GDPO, {"reward": "cumulated"}, "reward\n.*'cumulative' or 'tokenwise'"),
    (GDPO, {"balance": "db", "subtb_lambda": 2.0}, "nothing reads it with balance=db"),
    (
        GDPO,
        {"balance": "tb", "reward": "tokenwise"},
        "objective.reward: balance=tb compares whole responses",
    ),
]


@pytest.mark.parametrize(("kind", "parameters", "message"), REFUSED)
def test_parameters_out_of_range(
    kind: Callable[..., object], parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**parameters)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        (DPO, {"label_smoothing": 0.499}),
        (ADPO, {"gamma": 0.0}),
        (ADPO, {"gamma": INF}),
        (ODPO, {"alpha": 0.0}),
        (GDPO, {"alpha": 0.0}),
        (GDPO, {"rejected_log_reward": 0.0}),
        (GDPO, {"balance": "subtb", "subtb_lambda": 2.0}),
    ],
)
def test_parameters_at_the_edge_are_taken(
    kind: Callable[..., object], parameters: dict[str, Any]
) -> None:
    built = kind(**parameters)
    assert {name: getattr(built, name) for name in parameters} == parameters


def test_objectives_cannot_be_changed_after_the_check() -> None:
    with pytest.raises(FrozenInstanceError):
        DPO().beta = -1.0  # type: ignore[misc]


def test_which_objectives_need_the_eos_column() -> None:
    needs = {name for name, objective in OBJECTIVES.items() if objective.needs_eos}
    assert needs == {name for name in OBJECTIVES if name.startswith(("gdpo", "gflownet"))}


OFFSETS = pytest.mark.parametrize("offset", ["log", "identity", "log1p", "ratio"])


@OFFSETS
@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize(
    ("won", "lost", "message"),
    [
        (1.0, 1.0, "tied"),
        (1.0, 2.0, "below"),
        (NAN, 1.0, "not finite"),
        (2.0, NAN, "not finite"),
        (INF, 1.0, "not finite"),
        (INF, INF, "not finite"),
        (1.0, -INF, "not finite"),
    ],
)
def test_odpo_refuses_scores(
    offset: str, alpha: float, won: float, lost: float, message: str
) -> None:
    """Even at alpha 0, where a tie would be 0 * -inf = NaN; the pair is named by its index."""
    policy, reference = pair_with_margin(0.5, 1.5)
    targets = PairTargets(row(3.0, won), row(1.0, lost))
    with pytest.raises(ValueError, match=f"pair 1 .*{message}"):
        ODPO(alpha=alpha, offset=offset)(policy, reference, targets)


@OFFSETS
def test_odpo_refuses_missing_scores(offset: str) -> None:
    policy, reference = pair_with_margin(1.5)
    for targets in (NO_TARGETS, PairTargets(row(1.0), None), PairTargets(None, row(1.0))):
        with pytest.raises(ValueError, match="needs chosen_score and rejected_score"):
            ODPO(offset=offset)(policy, reference, targets)


@pytest.mark.parametrize(("won", "lost"), [(1.0, 0.0), (1.0, -1.0), (-1.0, -2.0)])
def test_odpo_ratio_needs_positive_scores(won: float, lost: float) -> None:
    targets = PairTargets(row(won), row(lost))
    with pytest.raises(ValueError, match="'ratio' needs positive scores"):
        ODPO(offset="ratio").offsets(targets)
    # The other forms see a gap only.
    assert torch.isfinite(ODPO(offset="log").offsets(targets)).all()


def test_odpo_near_ties_are_kept_in_wide_numbers() -> None:
    """A gap of 2^-8, one spacing of bfloat16 at 0.5: its logarithm is not rounded to bfloat16."""
    won, lost = torch.tensor([0.50390625, 0.5], dtype=torch.bfloat16).split(1)
    found = ODPO().offsets(PairTargets(won, lost))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(math.log(2.0**-8), rel=1e-6)


def test_odpo_offset_carries_no_gradient() -> None:
    policy, reference = pair_with_margin(1.5)
    won, lost = row(3.0).requires_grad_(), row(1.0).requires_grad_()
    output = ODPO()(policy, reference, PairTargets(won, lost))
    assert not output.loss_N.requires_grad
    assert not output.metrics["odpo/offset"].requires_grad


@pytest.mark.parametrize("balance", ["db", "subtb", "tb"])
@pytest.mark.parametrize("missing", ["policy", "reference", "tempered"])
def test_gdpo_refuses_a_missing_eos_column(balance: str, missing: str) -> None:
    policy, reference, _ = random_batch()
    temperature = 1.0
    if missing == "policy":
        policy = PairLogps(policy.chosen, replace(policy.rejected, eos_NT=None))
    elif missing == "reference":
        reference = PairLogps(replace(reference.chosen, eos_NT=None), reference.rejected)
    else:
        temperature = 0.1
        reference = PairLogps(replace(reference.chosen, tempered_eos_NT=None), reference.rejected)
    objective = GDPO(balance=balance, eos_temperature=temperature)
    with pytest.raises(ValueError, match="needs the policy's eos_NT"):
        objective(policy, reference, NO_TARGETS)


def test_odpo_scores_of_different_counts() -> None:
    policy, reference = pair_with_margin(1.5, 2.5)
    with pytest.raises(ValueError, match="not one a pair"):
        ODPO()(policy, reference, PairTargets(row(2.0, 3.0), row(1.0)))
