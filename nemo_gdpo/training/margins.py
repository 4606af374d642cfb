"""Implicit reward margins beta h of all training pairs, under the newest checkpoint of a run.

The policy is read as a resumed run would read it, the reference comes from the run's cache (or its
second copy), and the pairs pass through the run's own micro-batches, as in a validation.
"""

from __future__ import annotations

from pathlib import Path

from nemo_gdpo.control import from_main_rank
from nemo_gdpo.data.keyed import keyed_pairs
from nemo_gdpo.errors import Stopped
from nemo_gdpo.io.files import digest_of, file_sha256, write_output
from nemo_gdpo.io.manifest import MANIFEST
from nemo_gdpo.io.rows import encode_row
from nemo_gdpo.labeling.choose import Margins, header
from nemo_gdpo.launch.signals import StopRequest
from nemo_gdpo.training.mesh import leave_world
from nemo_gdpo.training.resume import resume
from nemo_gdpo.training.run import Run
from nemo_gdpo.training.signals import stopped_together
from nemo_gdpo.training.trainer import PreferenceTrainer

MARGIN = "rewards/margins"
FOLDER = "margins"


def write_margins(run: Run) -> Path:
    """Compute the margins, write output_dir/margins/step_N.jsonl, and leave the world. Collective.

    Raises:
        UserError: the pairs' texts cannot be read, or the checkpoint is of another run.
        NotFiniteError: a log-prob is not finite; names the pairs.
        Stopped: a signal came, or the time is up; nothing is written.
    """
    with run.holding_output():
        try:
            with run.stop_request() as stop:
                path = _write_margins(run, stop)
        except Stopped as error:
            if error.agreed:
                leave_world()
            raise
    leave_world()
    return path


def _write_margins(run: Run, stop: StopRequest) -> Path:
    keyed = _Keyed()
    from_main_rank("reading the pairs' texts", lambda: keyed.read(run))
    trainer = run.build_trainer(run.prepare_reference(stop), stop)
    for line in resume(run.output_dir / "checkpoints", trainer, run.newest):
        run.say(line)
    with stop.deferred():
        values = _margins(trainer)
    path = run.output_dir / FOLDER / f"step_{trainer.progress.step:08d}.jsonl"
    from_main_rank("writing the margins", lambda: _write(path, run, trainer, values, keyed))
    run.say(f"margins of {len(values)} pairs after {trainer.progress.step} steps: {path}")
    return path


class _Keyed:
    """On the main rank: the data set's fingerprint, and the pair of each id."""

    def __init__(self) -> None:
        self.data = ""
        self.pair_of: dict[str, str] = {}

    def read(self, run: Run) -> None:
        data = run.config.data
        identity, pairs = keyed_pairs(
            str(data.train_path), format=data.reader_format, split=data.split,
            on_bad_pair=data.on_bad_pair,
        )  # fmt: skip
        self.data = identity.data
        # Of pairs that stand there twice the first is taken.
        self.pair_of = {pair.id: key for key, pair in pairs.items()}


def _margins(trainer: PreferenceTrainer) -> list[float]:
    """beta h of every training pair, in the order of the data. Collective."""
    columns = trainer.forward_all(trainer.train, label="margins", doing="the margins")
    if columns is None:
        raise stopped_together(
            f"stopped by {trainer.stopping.why}; no margins are written: the same command starts "
            "again"
        )
    return [float(value) for value in columns[MARGIN].tolist()]


def _write(
    path: Path, run: Run, trainer: PreferenceTrainer, values: list[float], keyed: _Keyed
) -> None:
    ids = [pair.id for pair in trainer.train.data]
    of_pair = {
        keyed.pair_of[name]: value
        for name, value in zip(ids, values, strict=True)
        if name in keyed.pair_of
    }
    margins = Margins(_model_hash(run), run.weights, trainer.progress.step, keyed.data, of_pair)
    rows = [header(margins), *({"pair": p, "margin": m} for p, m in of_pair.items())]
    write_output(path, b"".join(encode_row(row) for row in rows))


def _model_hash(run: Run) -> str:
    """Hash of the weights that were asked: of the checkpoint's manifest, which hashes its files."""
    newest = None if run.newest is None else run.newest.found.path
    if newest is None:
        return run.weights
    return digest_of({"weights": run.weights, "checkpoint": file_sha256(newest / MANIFEST)})
