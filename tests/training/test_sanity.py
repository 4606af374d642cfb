"""The closed forms of step 0 against the objectives themselves, at policy = reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nemo_gdpo.objectives import (
    ADPO,
    DPO,
    GDPO,
    IPO,
    ODPO,
    SPL,
    Objective,
    PairLogps,
    PairTargets,
    Step0Inputs,
    TokenLogps,
)
from nemo_gdpo.objectives.pairwise import response_logp
from nemo_gdpo.training.rounding import Noise
from nemo_gdpo.training.sanity import Step0MismatchError, check_step0_loss

CHOSEN_LENGTHS = [4, 1, 6, 3, 5]
REJECTED_LENGTHS = [5, 1, 2, 7, 3]
REJECTED_COMPLETE = [True, True, True, False, False]
WON, LOST = [3.0, 2.5, 2.0, 4.0, 1.5], [1.0, 2.0, 0.5, 3.9, 1.2]
IDS = [f"p{n}" for n in range(5)]
NOISE = Noise(logp=0.02, loss=0.001)

OBJECTIVES: list[Objective] = [
    DPO(beta=0.3),
    DPO(label_smoothing=0.2),
    DPO(beta=5.0, average_log_probs=True),
    IPO(beta=0.2),
    IPO(beta=0.05, average_log_probs=True),
    *(ODPO(offset=offset, alpha=0.7) for offset in ("log", "identity", "log1p", "ratio")),  # type: ignore[arg-type]
    ODPO(alpha=0.0),
    SPL(alpha=0.2, beta=0.1),
    SPL(alpha=0.1, beta=0.0),
    ADPO(gamma=0.5),
    ADPO(pseudo_labels=False),
    GDPO(balance="db", alpha=0.1),
    GDPO(balance="tb"),
    *(GDPO(balance="subtb", alpha=0.5, subtb_lambda=d) for d in (0.8, 1.0, 1.5)),
]


def logps(lengths: list[int], complete: list[bool], *, seed: int) -> TokenLogps:
    generator = torch.Generator().manual_seed(seed)
    shape = len(lengths), max(lengths)
    label, eos = (-5 * torch.rand(shape, generator=generator) for _ in range(2))
    mask_NT = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    return TokenLogps(label, mask_NT, eos, None, torch.tensor(complete))


def batch() -> PairLogps:
    return PairLogps(
        logps(CHOSEN_LENGTHS, [True, True, False, True, True], seed=1),
        logps(REJECTED_LENGTHS, REJECTED_COMPLETE, seed=2),
    )


def inputs() -> Step0Inputs:
    pairs = batch()
    return Step0Inputs(
        rejected_length_N=torch.tensor(REJECTED_LENGTHS),
        rejected_complete_N=torch.tensor(REJECTED_COMPLETE),
        chosen_logp_N=response_logp(pairs.chosen),
        rejected_logp_N=response_logp(pairs.rejected),
        chosen_score_N=torch.tensor(WON),
        rejected_score_N=torch.tensor(LOST),
        chosen_length_N=torch.tensor(CHOSEN_LENGTHS),
    )


def values(objective: Objective, policy: PairLogps, reference: PairLogps) -> dict[str, Tensor]:
    output = objective(policy, reference, PairTargets(torch.tensor(WON), torch.tensor(LOST)))
    return {"loss": output.loss_N, **output.metrics}


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_closed_form_is_the_objective_at_equality(objective: Objective) -> None:
    expected = objective.loss_at_reference(inputs())
    assert expected is not None
    actual = values(objective, batch(), batch())["loss"].double()
    torch.testing.assert_close(expected, actual, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_equal_models_pass(objective: Objective) -> None:
    check_step0_loss(objective, inputs(), values(objective, batch(), batch()), IDS, noise=None)


def test_figures_by_hand() -> None:
    strength = (0.1 * 8.0) ** 2
    # Cut responses carry no terminal reward; one position (EOS alone) has no transition.
    db = GDPO(balance="db", alpha=0.1).loss_at_reference(inputs())
    assert db is not None
    assert db.tolist() == pytest.approx([strength / 2, 0, strength / 2, 0, 0])
    tb = GDPO(balance="tb", alpha=0.1).loss_at_reference(inputs())
    assert tb is not None
    assert tb.tolist() == pytest.approx([strength, strength, strength, 0, 0])
    # 4 transitions: of 10 stretches 4 reach the end.
    subtb = GDPO(balance="subtb", alpha=0.1).loss_at_reference(inputs())
    assert subtb is not None
    assert float(subtb[0]) == pytest.approx(0.4 * strength / 2)
    odpo = ODPO(alpha=1.0).loss_at_reference(inputs())
    assert odpo is not None
    assert float(odpo[0]) == pytest.approx(math.log(1 + 2.0))


@pytest.mark.parametrize(
    "objective", [GDPO(reward="tokenwise", balance="db"), GDPO(eos_temperature=0.1)]
)
def test_no_closed_form_where_equality_is_not_balance(objective: GDPO) -> None:
    assert objective.loss_at_reference(inputs()) is None


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_another_model_is_stopped_and_the_worst_pair_named(objective: Objective, side: str) -> None:
    policy = batch()
    wrong = getattr(policy, side)
    wrong.label_NT[2, 0] += 0.05
    wrong.label_NT[3, 1] -= 0.2
    with pytest.raises(Step0MismatchError, match=f"{side} response of pair p3") as caught:
        check_step0_loss(objective, inputs(), values(objective, policy, batch()), IDS, noise=None)
    assert "\n" not in str(caught.value)


def test_a_wrong_loss_alone_is_stopped() -> None:
    """Log-probs agree, but the loss is of another objective."""
    found = values(DPO(), batch(), batch())
    found["loss"] = found["loss"] + torch.tensor([0.0, 0.1, 0.0, 0.0, 0.0])
    with pytest.raises(Step0MismatchError, match="the loss of pair p1"):
        check_step0_loss(DPO(), inputs(), found, IDS, noise=None)


def test_a_wrong_eos_column_alone_is_stopped() -> None:
    """GDPO reads a column that the labels do not show."""
    policy = batch()
    assert policy.chosen.eos_NT is not None
    policy.chosen.eos_NT[0, 1] -= 0.5
    objective = GDPO(balance="db")
    with pytest.raises(Step0MismatchError, match="the loss of pair p0"):
        check_step0_loss(objective, inputs(), values(objective, policy, batch()), IDS, noise=None)


def test_adpo_must_ask_for_everything() -> None:
    found = values(ADPO(), batch(), batch())
    found["queried"] = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    with pytest.raises(
        Step0MismatchError, match=r"queried is 1 for every pair .* but not for 1 of 5 pairs"
    ):
        check_step0_loss(ADPO(), inputs(), found, IDS, noise=None)


def off(gaps: dict[tuple[str, int], float]) -> PairLogps:
    """The batch with some responses off by so many nats."""
    policy = batch()
    for (side, row), nats in gaps.items():
        getattr(policy, side).label_NT[row, 0] += nats
    return policy


ALL = [(side, row) for side in ("chosen", "rejected") for row in range(5)]
LENGTH = {"chosen": CHOSEN_LENGTHS, "rejected": REJECTED_LENGTHS}


@pytest.mark.parametrize(
    ("gaps", "refused"),
    [
        # In units of the noise, 0.02 sqrt(T): 1 and 7 for one of them, 9 is too much.
        ({("chosen", 2): 0.02 * 6**0.5}, False),
        ({("chosen", 2): 7 * 0.02 * 6**0.5}, False),
        ({("chosen", 2): 9 * 0.02 * 6**0.5}, True),
        # All of them: 2 is a sound run's worst, 5 is another model's.
        ({(s, n): 2 * 0.02 * LENGTH[s][n] ** 0.5 for s, n in ALL}, False),
        ({(s, n): 5 * 0.02 * LENGTH[s][n] ** 0.5 for s, n in ALL}, True),
    ],
)
def test_low_precision_tolerance(gaps: dict[tuple[str, int], float], refused: bool) -> None:
    found = values(DPO(), off(gaps), batch())
    if not refused:
        check_step0_loss(DPO(), inputs(), found, IDS, noise=Noise(logp=0.02, loss=0.1))
        return
    with pytest.raises(Step0MismatchError, match=r"log p of the .* response of pair p"):
        check_step0_loss(DPO(), inputs(), found, IDS, noise=Noise(logp=0.02, loss=0.1))


def test_the_loss_has_a_tolerance_of_its_own() -> None:
    """Log-probs agree; DPO's loss is 0.693, and 0.1 more is no rounding."""
    found = values(DPO(), batch(), batch())
    found["loss"] = found["loss"] + torch.tensor([0.0, 0.1, 0.0, 0.0, 0.0])
    with pytest.raises(Step0MismatchError, match="the loss of pair p1"):
        check_step0_loss(DPO(), inputs(), found, IDS, noise=NOISE)
