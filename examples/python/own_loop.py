"""The objectives and the log-probs in a training loop of your own, on a transformers model.

    python -m examples.python.own_loop MODEL

No Megatron, no configuration: `selected_logprobs` gives log p(y_{i+1} | s_i) and, for GDPO,
log p(EOS | s_i) from hidden states and the output matrix; an objective turns the log-probs of
policy and reference into one loss a pair.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_gdpo import GDPO, selected_logprobs
from nemo_gdpo.objectives import PairLogps, PairTargets, TokenLogps

PROMPT, CHOSEN, REJECTED = "Name a river.", " The Rhine.", " Rivers are wet."


def response_logps(model: Any, prompt_ids: list[int], response_ids: list[int]) -> TokenLogps:
    """Log-probs of one response, [1, T], with the EOS column."""
    ids = torch.tensor([prompt_ids + response_ids])
    hidden_SH: Tensor = model.model(ids).last_hidden_state[0]
    # The state before each response token scores it.
    states_TH = hidden_SH[len(prompt_ids) - 1 : -1]
    columns = selected_logprobs(
        states_TH,
        model.lm_head.weight,
        torch.tensor(response_ids),
        eos_id=response_ids[-1],
    )
    assert columns.eos_T is not None
    return TokenLogps(
        label_NT=columns.label_T[None],
        mask_NT=torch.ones(1, len(response_ids), dtype=torch.bool),
        eos_NT=columns.eos_T[None],
    )


def main(directory: str, *, steps: int = 5, rate: float = 1e-4) -> list[float]:
    """Train on one pair; returns the loss before each update."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    policy = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    reference = copy.deepcopy(policy).requires_grad_(False)
    prompt, chosen, rejected = (
        tokenizer(text, add_special_tokens=False).input_ids for text in (PROMPT, CHOSEN, REJECTED)
    )
    end = [tokenizer.eos_token_id]

    def pair(model: Any) -> PairLogps:
        return PairLogps(
            chosen=response_logps(model, prompt, chosen + end),
            rejected=response_logps(model, prompt, rejected + end),
        )

    objective = GDPO()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate)
    with torch.no_grad():
        fixed = pair(reference)
    losses = []
    for step in range(steps):
        loss = objective(pair(policy), fixed, PairTargets()).loss_N.mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
        print(f"step {step}: loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main(sys.argv[1])
