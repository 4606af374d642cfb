"""GFlowNet-DPO (Kwon et al., EMNLP 2024), on the flow of Hu et al. 2023.

A response is a path of a GFlowNet whose every prefix may end. With a_t = log pi(y_{t+1} | s_t),
e_t = log pi(EOS | s_t), and A, E the same under the reference, the flow through a prefix is
F(s) = R(s EOS) / pi(EOS | s), and no extra head is needed. One transition's residual is

    delta_t = log R(s_t EOS) + a_t + e_{t+1} - log R(s_{t+1} EOS) - e_t,    t = 0 .. n - 1.

Everything is indexed by response position, never by padded column. State n is the last position: in
a complete response it scores EOS, and its reward carries alpha * c, with c = 0 for the chosen and
`rejected_log_reward` for the rejected response. In a cut response state n is a prefix like any
other: its label leads to a state that was not computed, and it carries no c.

A response of one position (EOS alone) has no transition: `db` and `subtb` have nothing to balance
and give 0, also when it is rejected. Only `tb` sees its preference.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from nemo_gdpo.config.objective import GDPOSettings
from nemo_gdpo.objectives.flow import FlowPath, flow_path, share_that_ends
from nemo_gdpo.objectives.pairwise import PairwiseObjective, less_margin, pair_sums, zeros_of
from nemo_gdpo.objectives.types import (
    ObjectiveOutput,
    PairLogps,
    PairTargets,
    Step0Inputs,
    TokenLogps,
)


class GDPO(GDPOSettings, PairwiseObjective):
    """Squared imbalance of flows, by `balance`.

    - `"db"`: sum over transitions of delta_t^2 (detailed balance).
    - `"subtb"`: mean of squared sub-trajectory sums, weighted subtb_lambda^(length - 1).
    - `"tb"`: contrastive trajectory balance on the pair, where the unknown log Z(x) cancels:
      ([log pi(y_w) - log pi(y_l)] - [log R(y_w) - log R(y_l)])^2. At eos_temperature 1 this is
      (h - kappa)^2 with kappa = -alpha * rejected_log_reward, which is summed IPO at
      kappa = 1 / (2 beta).

    `reward="cumulative"` is log R(s_t EOS) = sum_{i<t} A_i + E_t (Hu et al. 2023), with E of the
    reference's logits divided by `eos_temperature`. `"tokenwise"` is the reward of the released
    code, log R = A_t + E_t without the sum: content fluency under the reference drops out of its
    target, and equality with the reference is not balance. It reads the label of state n too.
    """

    needs_eos: ClassVar[bool] = True
    method: ClassVar[str] = "gflownet_dpo"
    citation: ClassVar[str] = (
        "Kwon et al., GDPO: Learning to Directly Align Language Models with Diversity Using "
        "GFlowNets, EMNLP 2024"
    )

    @property
    def reference_eos_temperature(self) -> float:
        """Temperature of the reference's end token in the reward."""
        return self.eos_temperature

    def pair_losses(
        self, policy: PairLogps, reference: PairLogps, targets: PairTargets
    ) -> ObjectiveOutput:
        """Loss of each pair: the mean of its two responses' losses, or the pair's own under `tb`.

        A given margin m lowers the log-reward of the complete rejected response: alpha * c - m.
        `rewards/*` are plain log-ratios (there is no beta).

        Raises:
            ValueError: an EOS column that is needed is missing, or the inputs do not fit together.
        """
        sums = pair_sums(policy, reference)
        metrics = sums.metrics(beta=1.0)
        if targets.chosen_label_N is not None and targets.rejected_label_N is not None:
            metrics |= sums.metrics_of_rows(targets.chosen_label_N, targets.rejected_label_N)
        chosen_bonus_N, rejected_bonus_N = self._bonuses(targets, sums.reference_chosen)
        chosen = self._path(policy.chosen, reference.chosen, chosen_bonus_N)
        rejected = self._path(policy.rejected, reference.rejected, rejected_bonus_N)
        if self.balance == "tb":
            residual_N = chosen.log_ratio_to_reward_N - rejected.log_ratio_to_reward_N
            loss_N = residual_N.square()
            metrics["gdpo/tb_residual"] = residual_N.detach()
        else:
            chosen_N, rejected_N = self._sequence_loss(chosen), self._sequence_loss(rejected)
            loss_N = (chosen_N + rejected_N) / 2
            metrics["gdpo/chosen_loss"] = chosen_N.detach()
            metrics["gdpo/rejected_loss"] = rejected_N.detach()
        for name, of_chosen, of_rejected in (
            ("gdpo/db_residual", chosen.mean_residual_N, rejected.mean_residual_N),
            ("gdpo/log_flow", chosen.log_flow_N, rejected.log_flow_N),
            ("gdpo/eos_logp", chosen.mean_eos_logp_N, rejected.mean_eos_logp_N),
        ):
            metrics[name] = (of_chosen.detach() + of_rejected.detach()) / 2
        return ObjectiveOutput(loss_N, metrics)

    def pair_losses_at_reference(self, pairs: Step0Inputs) -> Tensor | None:
        """Loss of each pair when policy and reference are equal, float64 [N].

        Only the last transition of a complete bad response misses balance, by its log-reward
        alpha * c - m. Not known (None) with the release's token-wise reward, or with a tempered
        EOS, where equality does not mean balance.
        """
        if self.reward != "cumulative" or self.eos_temperature != 1.0:
            return None
        given = PairTargets(
            margin_N=pairs.margin_N,
            chosen_label_N=pairs.chosen_label_N,
            rejected_label_N=pairs.rejected_label_N,
        )
        chosen_N, rejected_N = self._bonuses(given, zeros_of(pairs))
        rejected_N = rejected_N * pairs.rejected_complete_N
        if self.balance == "tb":
            return rejected_N.square()
        loss_N = self._unbalanced_end(rejected_N, pairs.rejected_length_N)
        if pairs.chosen_label_N is not None:
            assert pairs.chosen_complete_N is not None
            assert pairs.chosen_length_N is not None
            chosen_N = chosen_N * pairs.chosen_complete_N
            loss_N = loss_N + self._unbalanced_end(chosen_N, pairs.chosen_length_N)
        return loss_N / 2

    def _unbalanced_end(self, bonus_N: Tensor, length_N: Tensor) -> Tensor:
        """Loss of responses that balance but for the last transition, if they have one; [N]."""
        transitions_N = length_N - 1
        if self.balance == "db":
            return bonus_N.square() * (transitions_N > 0)
        shares = [share_that_ends(n, self.subtb_lambda) for n in transitions_N.tolist()]
        return bonus_N.square() * torch.tensor(shares, dtype=torch.float64)

    def _bonuses(self, targets: PairTargets, like_N: Tensor) -> tuple[Tensor, Tensor]:
        """Log-reward of complete chosen and of complete rejected responses, each [N].

        Unpaired rows, two of which stand there, have that of their own label.
        """
        good_N = torch.zeros_like(like_N)
        bad_N = torch.full_like(like_N, self.alpha * self.rejected_log_reward)
        if targets.chosen_label_N is not None and targets.rejected_label_N is not None:
            return (
                torch.where(targets.chosen_label_N, good_N, bad_N),
                torch.where(targets.rejected_label_N, good_N, bad_N),
            )
        return good_N, less_margin(bad_N, targets.margin_N)

    def _path(self, policy: TokenLogps, reference: TokenLogps, bonus_N: Tensor) -> FlowPath:
        """Residuals of one side's responses; `bonus_N` is the log-reward of the complete ones."""
        return flow_path(
            policy,
            reference,
            bonus_N,
            eos_temperature=self.eos_temperature,
            tokenwise=self.reward == "tokenwise",
        )

    def _sequence_loss(self, path: FlowPath) -> Tensor:
        if self.balance == "subtb":
            return path.sub_trajectory_loss(self.subtb_lambda)
        return path.delta_NT.square().sum(dim=1)
