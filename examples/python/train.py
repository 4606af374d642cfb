"""Train one model with two objectives from Python, and compare their margins.

    python -m examples.python.train MODEL pairs.jsonl runs/compared

MODEL is a Hugging Face directory; a line of pairs.jsonl has prompt, chosen and rejected.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nemo_gdpo
from nemo_gdpo import DPO, GDPO, recipes


def main(model: str, pairs: str, output_dir: str, *, steps: int = 4) -> dict[str, float]:
    """Train with DPO and with GDPO; returns the last margin of each, in nats of log-ratio."""
    margins: dict[str, float] = {}
    for objective in (DPO(beta=0.1), GDPO(alpha=1.0)):
        config = recipes.change(
            recipes.dpo(model, pairs, output_dir=Path(output_dir) / objective.name),
            {
                "objective": objective,
                "optim.lr": 1e-5,
                "trainer.max_steps": steps,
                "model.micro_batch_size": 2,
            },
        )
        result = nemo_gdpo.train(config)
        last = result.metrics[-1]
        margins[objective.name] = last["logps/chosen"] - last["logps/rejected"]
        print(f"{objective}: loss {last['loss']:.4f}, exported {result.hf}")
    return margins


if __name__ == "__main__":
    main(*sys.argv[1:4])
