"""Responses as paths of a GFlowNet whose every prefix may end (Hu et al. 2023).

With a_t = log pi(y_{t+1} | s_t), e_t = log pi(EOS | s_t), and A, E the same under the reference,
the flow through a prefix is F(s) = R(s EOS) / pi(EOS | s), and no extra head is needed. One
transition's residual is

    delta_t = log R(s_t EOS) + a_t + e_{t+1} - log R(s_{t+1} EOS) - e_t,    t = 0 .. n - 1,

with log R(s_t EOS) = [sum_{i<t} A_i + E_t] / T, and a bonus for the whole response at state n.

Shapes: N responses, T positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_gdpo.objectives.pairwise import masked
from nemo_gdpo.objectives.types import TokenLogps


def flow_path(
    policy: TokenLogps,
    reference: TokenLogps,
    bonus_N: Tensor,
    *,
    eos_temperature: float = 1.0,
    reward_temperature: float = 1.0,
    tokenwise: bool = False,
) -> FlowPath:
    """Residuals of N responses; gradients flow to the policy alone.

    Args:
        policy: label and EOS columns.
        reference: label column, and the EOS column of `eos_temperature`.
        bonus_N: what a complete response's log-reward has beside the reference's log-prob. A cut
            response has none: its last state is a prefix like any other.
        eos_temperature: of the reference's end token.
        reward_temperature: T, divides the reference's log-prob.
        tokenwise: the reward of GDPO's released code, log R(s_t EOS) = A_t + E_t, without the sum.

    Raises:
        ValueError: an EOS column is missing.
    """
    mask_NT = policy.mask_NT
    tempered = eos_temperature != 1.0
    reference_eos_NT = reference.tempered_eos_NT if tempered else reference.eos_NT
    if policy.eos_NT is None or reference_eos_NT is None:
        column = "tempered_eos_NT" if tempered else "eos_NT"
        raise ValueError(f"a flow needs the policy's eos_NT and the reference's {column}")
    a_NT, e_NT = masked(policy.label_NT, mask_NT), masked(policy.eos_NT, mask_NT)
    A_NT = masked(reference.label_NT, mask_NT).detach()
    E_NT = masked(reference_eos_NT, mask_NT).detach()
    if reward_temperature != 1.0:
        A_NT, E_NT = A_NT / reward_temperature, E_NT / reward_temperature
    bonus_N = bonus_N.to(E_NT.dtype)
    if policy.complete_N is not None:
        bonus_N = bonus_N.where(policy.complete_N, 0.0)

    # The residual's terms, grouped so that a policy equal to its reference cancels exactly:
    # summing the reward first would leave the rounding of sums near -300.
    excess_NT = e_NT - E_NT
    log_flow_N = -excess_NT[:, 0]
    if tokenwise:
        step_NT = a_NT[:, :-1] + A_NT[:, :-1] - A_NT[:, 1:]
        log_flow_N = log_flow_N + A_NT[:, 0]
    else:
        step_NT = a_NT[:, :-1] - A_NT[:, :-1]
    states_N = mask_NT.sum(dim=1)
    # Column t of `delta` leads to state t + 1; the bonus belongs to state n alone.
    arrives_at_T = torch.arange(1, mask_NT.shape[1], device=mask_NT.device)
    final_NT = arrives_at_T == states_N[:, None] - 1
    delta_NT = step_NT + (excess_NT[:, 1:] - excess_NT[:, :-1]) - bonus_N[:, None] * final_NT
    return FlowPath(
        delta_NT=masked(delta_NT, mask_NT[:, 1:]),
        log_flow_N=log_flow_N + bonus_N * (states_N == 1),
        mask_NT=mask_NT,
        mean_eos_logp_N=e_NT.detach().sum(dim=1) / states_N,
    )


def share_that_ends(transitions: int, decay: float) -> float:
    """Weighted share of the sub-trajectories of `transitions` steps that end with the response."""
    # Sub-trajectories of length m: n - m + 1 of them, exactly one of which ends at the end.
    weights = [decay ** (m - 1) for m in range(1, transitions + 1)]
    total = sum(weight * (transitions - m) for m, weight in enumerate(weights))
    return sum(weights) / total if transitions else 0.0


@dataclass(frozen=True)
class FlowPath:
    """One side's responses as paths through states 0 .. n."""

    delta_NT: Tensor
    """delta_t, [N, T - 1]; 0 where there is no transition."""
    log_flow_N: Tensor
    """log F(s_0) = log R(s_0 EOS) - e_0."""
    mask_NT: Tensor
    """bool [N, T]: state t exists."""
    mean_eos_logp_N: Tensor
    """Mean of e_t over the states, detached."""

    @property
    def log_ratio_to_reward_N(self) -> Tensor:
        """log pi(s_n EOS) - log R(s_n EOS), by telescoping; -log Z(x) where all flows balance."""
        return self.delta_NT.sum(dim=1) - self.log_flow_N

    @property
    def mean_residual_N(self) -> Tensor:
        """Mean |delta_t| over the transitions; 0 without any."""
        transitions_N = self.mask_NT[:, 1:].sum(dim=1).clamp(min=1)
        return self.delta_NT.detach().abs().sum(dim=1) / transitions_N

    def sub_trajectory_loss(self, decay: float) -> Tensor:
        """sum_{i<j} w (delta_i + .. + delta_{j-1})^2 / sum_{i<j} w with w = decay^(j-i-1); [N]."""
        sums_NT = torch.cat(
            [torch.zeros_like(self.log_flow_N)[:, None], self.delta_NT.cumsum(dim=1)], dim=1
        )
        states_N = self.mask_NT.sum(dim=1)
        if decay == 1.0:
            # The mean squared difference of all pairs is twice the sample variance.
            mean_N = masked(sums_NT, self.mask_NT).sum(dim=1) / states_N
            centred_NT = masked(sums_NT - mean_N[:, None], self.mask_NT)
            return 2 * centred_NT.square().sum(dim=1) / (states_N - 1).clamp(min=1)
        # Zero, and part of the graph: a batch without any transition has a gradient too.
        total_N = sums_NT[:, 0]
        weight_N = torch.zeros_like(self.log_flow_N)
        for length in range(1, sums_NT.shape[1]):
            exists_NT = self.mask_NT[:, length:]
            if decay < 1.0:
                share_N = torch.full_like(total_N, decay ** (length - 1))
            else:
                # A row's common factor cancels: growing weights are counted down from its longest
                # sub-trajectory, so that they cannot overflow.
                shorter_by_N = (states_N - 1 - length).clamp(min=0)
                share_N = (1.0 / decay) ** shorter_by_N.to(total_N.dtype)
            squares_NT = (sums_NT[:, length:] - sums_NT[:, :-length]).square()
            total_N = total_N + share_N * masked(squares_NT, exists_NT).sum(dim=1)
            weight_N = weight_N + share_N * exists_NT.sum(dim=1)
        # Some sub-trajectory has weight 1, unless none exists.
        return total_N / weight_N.clamp(min=1)
