"""Low precisions end to end: the reference, the gate of step 0, training, checkpoint, resume."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nemo_gdpo.gpu_check.findings import Measurement, at_most
from nemo_gdpo.gpu_check.layers import BF16_TE, PACKED
from nemo_gdpo.gpu_check.probe import write_model, write_pairs
from nemo_gdpo.gpu_check.watched import probe_config, require_precision, train

ALLOWED_NATS = 0.3
"""Gap of a response at step 0 that the run's own gate allows, for short responses."""
RESUME_DRIFT = 0.02
"""Relative: kernels that add in no fixed order make two runs of the same steps differ."""


def train_and_resume(precision: str, folder: Path) -> Iterator[Measurement]:
    """Four updates; the same with a stop and a resume after two; both against bf16."""
    require_precision(precision)
    model, pairs = write_model(folder / "model"), write_pairs(folder / "pairs.jsonl")
    # Packed, as trainings are: the cached reference had other pairs beside each.
    settings = (f"precision={precision}", "model.layers=transformer_engine", *PACKED)
    through = train(probe_config(model, pairs, folder / "through", *settings))
    yield at_most("step 0, policy to reference", through.step0_gap(), ALLOWED_NATS, "nats")

    # The learning rate's schedule is the whole run's in both: it ends at step 4.
    saving = (*settings, "trainer.save_interval=2", "trainer.keep_checkpoints=2")
    whole = train(probe_config(model, pairs, folder / "stopped", *saving))
    yield at_most("one run to another", whole.drift(through), RESUME_DRIFT)
    _forget_last_checkpoint(folder / "stopped" / "checkpoints")
    resumed = train(probe_config(model, pairs, folder / "stopped", *saving))
    gap = resumed.drift(whole, first_step=2)
    yield at_most("resumed to uninterrupted", gap, RESUME_DRIFT)
    bf16 = train(probe_config(model, pairs, folder / "bf16", *BF16_TE, *PACKED))
    yield Measurement("log p to bf16", through.logp_gap(bf16), "nats")
    yield Measurement("trajectory to bf16", through.drift(bf16))


def _forget_last_checkpoint(root: Path) -> None:
    """Leave the one of step 2 as the newest."""
    import shutil

    newest = max(root.glob("step_*"))
    shutil.rmtree(newest)
    (root / "latest").write_text(max(root.glob("step_*")).name + "\n", encoding="utf-8")
