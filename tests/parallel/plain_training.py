"""The same training in plain transformers, autograd and torch's AdamW: no megatron, no batching."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.data.sampler import PreferenceSampler
from nemo_gdpo.data.types import TokenizedPair, TokenizedResponse
from nemo_gdpo.objectives import OBJECTIVES as OBJECTIVE_CLASSES
from nemo_gdpo.objectives import PairLogps, PairTargets, TokenLogps
from tests.parallel.plain_adapters import adapt
from tests.parallel.settings import (
    BATCH,
    BETAS,
    CLIP,
    END,
    EPS,
    LEARNING_RATE,
    OBJECTIVES,
    STEPS,
    WEIGHT_DECAY,
)
from tests.support.models import load


@dataclass
class Trajectory:
    """What three updates looked like."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    per_pair_losses: list[list[float]] = field(default_factory=list)
    logps: list[dict[str, list[float]]] = field(default_factory=list)
    """Sums of each pair's policy log-probs, by side."""
    queried: list[list[float]] = field(default_factory=list)
    gradient: dict[str, Tensor] = field(default_factory=dict)
    """Gradients of the first batch, under transformers' names."""


def columns(
    model: PreTrainedModel, pair: TokenizedPair, said: TokenizedResponse, temperature: float
) -> Tensor:
    """Log-probs [T, 3] of one response: label, EOS, EOS of logits divided by `temperature`."""
    ids = torch.tensor([[*pair.prompt_ids, *said.ids]])
    start = len(pair.prompt_ids) - 1
    logits_TV = model(ids).logits[0, start : start + len(said.ids)].float()
    logps_TV = logits_TV.log_softmax(-1)
    label_T = logps_TV.gather(1, torch.tensor(said.ids)[:, None])[:, 0]
    tempered_T = (logits_TV / temperature).log_softmax(-1)[:, END]
    return torch.stack([label_T, logps_TV[:, END], tempered_T], dim=1)


def _token_logps(model: PreTrainedModel, pair: TokenizedPair, temperature: float) -> PairLogps:
    def side(said: TokenizedResponse) -> TokenLogps:
        label_1T, eos_1T, tempered_1T = columns(model, pair, said, temperature).T[:, None]
        return TokenLogps(
            label_NT=label_1T,
            mask_NT=torch.ones_like(label_1T, dtype=torch.bool),
            eos_NT=eos_1T,
            tempered_eos_NT=tempered_1T,
            complete_N=torch.tensor([said.complete]),
        )

    return PairLogps(side(pair.chosen), side(pair.rejected))


def train(
    name: str, models: Path, data: PreferenceDataset, *, adapters: bool = False
) -> Trajectory:
    """Three updates of the setting `name` of `OBJECTIVES`.

    Args:
        models: holds `reference` and `policy`.
        adapters: train adapters of `reference`, by PEFT's names, instead of `policy`.
    """
    settings: dict[str, Any] = dict(OBJECTIVES[name])
    objective = OBJECTIVE_CLASSES[settings.pop("name")](**settings)
    temperature = settings.get("eos_temperature", 1.0)
    policy = load(models / ("reference" if adapters else "policy"))
    reference = load(models / "reference")
    trained = adapt(policy) if adapters else dict(policy.named_parameters())
    with torch.no_grad():
        references = [_token_logps(reference, pair, temperature) for pair in data]
    matrices = [p for p in trained.values() if p.dim() > 1]
    vectors = [p for p in trained.values() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": WEIGHT_DECAY},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        betas=BETAS,
        eps=EPS,
    )
    found = Trajectory()
    sampler = PreferenceSampler(len(data), 3, data.fingerprint)
    for step in range(STEPS):
        optimizer.zero_grad()
        indices = sampler.next_global_batch(BATCH)
        outputs = []
        for index in indices:
            pair = data[index]
            targets = PairTargets(
                torch.tensor([pair.chosen_score]), torch.tensor([pair.rejected_score])
            )
            output = objective(_token_logps(policy, pair, 1.0), references[index], targets)
            (output.loss_N.sum() / BATCH).backward()
            outputs.append(output)
        if step == 0:
            found.gradient = {
                name: p.grad.clone() for name, p in trained.items() if p.grad is not None
            }
        per_pair = [float(output.loss_N) for output in outputs]
        found.per_pair_losses.append(per_pair)
        found.losses.append(sum(per_pair) / BATCH)
        found.logps.append(
            {
                side: [float(output.metrics[f"logps/{side}"]) for output in outputs]
                for side in ("chosen", "rejected")
            }
        )
        if "queried" in outputs[0].metrics:
            found.queried.append([float(output.metrics["queried"]) for output in outputs])
        norm = torch.nn.utils.clip_grad_norm_(list(trained.values()), CLIP)
        found.grad_norms.append(float(norm))
        optimizer.step()
    return found
