"""GFlowNet on groups of sampled answers (Hu et al. 2023), with the batch estimate of log Z.

K answers to a prompt, sampled by whatever policy, each with a score. The target is
pi*(y | x) = R(y) / Z(x) with log R(y) = log p_ref(y | x) / T + score / beta, where a score may be
the sum of log-constraints, a reward, or both. For every balance any full-support sampling policy
has the same minimiser: samples may be a round old.

The trajectory balance residual log Z(x) + log pi(y | x) - log R(y) has an unknown, Z. As in TBA
(arXiv:2503.18929) its estimate is a mean over the group, and no head is learned for it.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from nemo_gdpo.config.objective import GFlowNetSettings
from nemo_gdpo.objectives.flow import FlowPath, flow_path, share_that_ends
from nemo_gdpo.objectives.pairwise import PairwiseObjective, pair_sums, require, response_logp
from nemo_gdpo.objectives.types import (
    GroupLogps,
    ObjectiveOutput,
    PairLogps,
    PairTargets,
    Step0Inputs,
)


class GFlowNet(GFlowNetSettings, PairwiseObjective):
    """Squared imbalance of flows on answers with a given reward, by `balance`.

    - `"tb"`: with r_k = log pi(y_k) - log R(y_k), the loss of answer k of K is
      2 K / (K - 1) (r_k - mean r)^2, the mean not differentiated. Its mean over a group is the mean
      over all pairs of (r_i - r_j)^2, so that K = 2 is GDPO's contrastive `tb`. Answers that were
      cut have no reward: they are left out of the group.
    - `"subtb"`, `"db"`: as GDPO's, on single answers; a cut one is a prefix like any other.

    Answers come in twos, as a chosen and a rejected one; which is which means nothing.
    """

    needs_eos: ClassVar[bool] = True
    method: ClassVar[str] = "gflownet_online"
    citation: ClassVar[str] = (
        "Hu et al., Amortizing intractable inference in large language models, ICLR 2024"
    )

    def group_loss(self, policy: GroupLogps, reference: GroupLogps, score_N: Tensor) -> Tensor:
        """One loss an answer, [N].

        Args:
            policy: label and EOS columns of N answers.
            reference: of the same answers.
            score_N: of each answer.

        Raises:
            ValueError: an EOS column is missing.
        """
        path = self._path(policy, reference, score_N)
        if self.balance == "tb":
            complete_N = policy.responses.complete_N
            return self._against_group(path.log_ratio_to_reward_N, policy.group_N, complete_N)[0]
        return self._alone(path)

    def pair_losses(
        self, policy: PairLogps, reference: PairLogps, targets: PairTargets
    ) -> ObjectiveOutput:
        """Loss of each pair: the mean of its two answers' losses.

        Raises:
            ValueError: scores or an EOS column are missing, or the inputs do not fit together.
        """
        metrics = pair_sums(policy, reference).metrics(beta=1.0)
        chosen_N, rejected_N = targets.chosen_score_N, targets.rejected_score_N
        if chosen_N is None or rejected_N is None:
            raise ValueError("GFlowNet needs chosen_score_N and rejected_score_N")
        ours = GroupLogps.of_pairs(policy, targets.group_N)
        path = self._path(
            ours,
            GroupLogps.of_pairs(reference, targets.group_N),
            torch.cat([chosen_N, rejected_N]),
        )
        ratio_N, complete_N = path.log_ratio_to_reward_N, ours.responses.complete_N
        loss_N, off_N, log_z_N = self._against_group(ratio_N, ours.group_N, complete_N)
        if self.balance != "tb":
            loss_N = self._alone(path)
        for name, values_N in (
            ("gflownet/residual", off_N.abs()),
            ("gflownet/log_z", log_z_N),
            ("gflownet/log_reward", response_logp(ours.responses) - ratio_N),
            ("gflownet/entropy", -response_logp(ours.responses)),
            ("gflownet/db_residual", path.mean_residual_N),
            ("gflownet/cut", (~_all(complete_N, ratio_N)).to(ratio_N.dtype)),
        ):
            metrics[name] = _mean_of_two(values_N.detach())
        return ObjectiveOutput(_mean_of_two(loss_N), metrics)

    def pair_losses_at_reference(self, pairs: Step0Inputs) -> Tensor | None:
        """Loss of each pair when policy and reference are equal, float64 [N].

        r_k is (1 - 1/T) log p_ref(y_k) - score_k / beta. Not known (None) under `subtb` and `db`
        with T other than 1, where every transition is out of balance.
        """
        scores = pairs.chosen_score_N, pairs.rejected_score_N
        sides = pairs.chosen_complete_N, pairs.chosen_length_N
        if scores[0] is None or scores[1] is None or sides[0] is None or sides[1] is None:
            return None
        complete_N = torch.cat([sides[0], pairs.rejected_complete_N])
        bonus_N = torch.cat([scores[0], scores[1]]).double() / self.beta
        if self.balance == "tb":
            logp_N = torch.cat([pairs.chosen_logp_N, pairs.rejected_logp_N]).double().cpu()
            ratio_N = (1 - 1 / self.reward_temperature) * logp_N - bonus_N
            count = len(pairs.chosen_logp_N)
            group_N = torch.arange(count) if pairs.group_N is None else pairs.group_N
            return _mean_of_two(self._against_group(ratio_N, group_N.repeat(2), complete_N)[0])
        if self.reward_temperature != 1.0:
            return None
        transitions_N = torch.cat([sides[1], pairs.rejected_length_N]) - 1
        loss_N = bonus_N.square() * complete_N * (transitions_N > 0)
        if self.balance == "subtb":
            shares = [share_that_ends(n, self.subtb_lambda) for n in transitions_N.tolist()]
            loss_N = loss_N * torch.tensor(shares, dtype=torch.float64)
        return _mean_of_two(loss_N)

    def _path(self, policy: GroupLogps, reference: GroupLogps, score_N: Tensor) -> FlowPath:
        return flow_path(
            policy.responses,
            reference.responses,
            score_N.detach() / self.beta,
            reward_temperature=self.reward_temperature,
        )

    def _alone(self, path: FlowPath) -> Tensor:
        if self.balance == "subtb":
            return path.sub_trajectory_loss(self.subtb_lambda)
        return path.delta_NT.square().sum(dim=1)

    def _against_group(
        self, ratio_N: Tensor, group_N: Tensor, complete_N: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, r - mean r, estimate of log Z) of each answer; 0 where it has no other."""
        group_N = torch.unique(group_N, return_inverse=True)[1]
        counts_N = _all(complete_N, ratio_N).to(ratio_N.dtype)
        require(len(group_N) == len(ratio_N), "one group an answer")
        zeros_G = ratio_N.new_zeros(int(group_N.max()) + 1)
        size_N = zeros_G.index_add(0, group_N, counts_N)[group_N]
        sum_N = zeros_G.index_add(0, group_N, ratio_N.detach() * counts_N)[group_N]
        mean_N = sum_N / size_N.clamp(min=1)
        # An answer alone has nothing to be compared with.
        off_N = (ratio_N - mean_N) * counts_N * (size_N > 1)
        return 2 * size_N / (size_N - 1).clamp(min=1) * off_N.square(), off_N, -mean_N


def _all(complete_N: Tensor | None, like_N: Tensor) -> Tensor:
    """bool [N]: the answer is complete."""
    return torch.ones_like(like_N, dtype=torch.bool) if complete_N is None else complete_N


def _mean_of_two(values_N: Tensor) -> Tensor:
    """From all chosen and then all rejected answers to pairs."""
    chosen_N, rejected_N = values_N.chunk(2)
    return (chosen_N + rejected_N) / 2
