"""How a run ends: the exports that were asked for, and what is said of it and written down."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.control import from_main_rank, on_every_rank
from nemo_gdpo.precisions import REHEARSAL, REHEARSALS
from nemo_gdpo.training.clock import EXPORT
from nemo_gdpo.training.export import export_adapter, export_run, model_card_of
from nemo_gdpo.training.loggers import METRICS, read_metrics
from nemo_gdpo.training.parts import Outcome
from nemo_gdpo.training.summary import Ending, end_lines

if TYPE_CHECKING:
    from nemo_gdpo.training.run import Run


def is_export_wanted(config: RunConfig) -> bool:
    """Whether a finished run writes more than its checkpoints."""
    return config.export_nemo or config.export_hf or config.lora.is_exported


def export_what_is_wanted(run: Run, checkpoint: Path) -> None:
    """Write what was asked for besides the checkpoint, from it. Collective.

    Raises:
        UserError: on every rank, when an export cannot be made.
        RunError: on every rank, when the disk failed; the run itself is complete.
    """
    run.clock.enter(EXPORT)
    label = f" ({REHEARSAL})" if run.config.precision in REHEARSALS else ""
    if run.config.export_nemo:
        assert run.nemo is not None  # `Run.train` refuses to begin without
        archive = run.output_dir / "model.nemo"
        run.nemo.model_card = on_every_rank("writing the card", lambda: model_card_of(run))
        run.nemo.save_to(str(archive))
        run.say(f"exported {archive}{label}")
    for stage, is_wanted, export in (
        ("exporting to Hugging Face", run.config.export_hf, export_run),
        ("exporting the adapter", run.config.lora.is_exported, export_adapter),
    ):
        if is_wanted:  # the others wait: all end with the status of the export
            exported = from_main_rank(stage, partial(export, run, checkpoint))
            run.say(f"exported {exported}{label}")


def summarise(run: Run, outcome: Outcome) -> None:
    """Say how the run ended, and write it down. It is over: no disk makes it a failure."""
    trainer = run.trainer
    run.clock.note(trainer.progress.step if trainer else None, ended=outcome.value)
    if not run.mesh.is_main:
        return
    ending = Ending(
        outcome=outcome.value,
        total_steps=run.identity["total_steps"],
        objective=run.config.objective.name,
        precision=run.config.precision,
        why_no_mfu=trainer.speed.why_no_peak if trainer else "training did not begin",
        checkpoint=trainer.checkpointer.newest(trainer.progress.step) if trainer else None,
    )
    lines, starts = read_metrics(run.output_dir / METRICS), run.clock.starts()
    for line in end_lines(ending, lines, starts, run.output_dir):
        run.say(line)
