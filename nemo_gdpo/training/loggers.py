"""Where metrics go: JSONL always; TensorBoard and Weights & Biases through NeMo's exp_manager."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from omegaconf import DictConfig

from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import write_file
from nemo_gdpo.io.rows import RowFile


def _wandb_can_log_in() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in {"offline", "disabled"}:
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.is_file() and "wandb" in netrc.read_text()


def _lightning_loggers(cfg: DictConfig, output_dir: Path) -> list[Any]:
    """Let NeMo's exp_manager make the experiment directory and its loggers.

    Raises:
        UserError: W&B is asked for and would have to prompt for a key.
    """
    if not (cfg.logger.tensorboard or cfg.logger.wandb):
        return []
    if cfg.logger.wandb and not _wandb_can_log_in():
        raise UserError(
            "logger.wandb=true, but there is no key: export WANDB_API_KEY, or WANDB_MODE=offline, "
            "or set logger.wandb=false"
        )
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.pytorch import Trainer
    from nemo.utils.exp_manager import exp_manager

    # The trainer serves exp_manager only. Its own environment keeps it from joining our world.
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[LightningEnvironment()],
    )
    exp_manager(
        trainer,
        {
            "explicit_log_dir": str(output_dir / "logs"),
            "name": output_dir.name,
            "create_tensorboard_logger": cfg.logger.tensorboard,
            "create_wandb_logger": cfg.logger.wandb,
            "wandb_logger_kwargs": {
                "project": cfg.logger.wandb_project,
                "name": cfg.logger.wandb_name or output_dir.name,
                "save_dir": str(output_dir / "logs"),
            }
            if cfg.logger.wandb
            else None,
            "create_checkpoint_callback": False,
            "log_step_timing": False,
            "log_tflops_per_sec_per_gpu": False,
            "seconds_to_sleep": 0.0,
        },
    )
    return list(trainer.loggers)


class MetricsLog:
    """One JSON object a step in `metrics.jsonl`, and the same numbers to the other loggers."""

    def __init__(
        self, cfg: DictConfig, output_dir: Path, *, enabled: bool, resume_step: int
    ) -> None:
        """Open the log on the main rank.

        Args:
            cfg: the run's configuration.
            output_dir: of the run.
            enabled: False on all ranks but the main one, where nothing is written.
            resume_step: first step to come; lines of later steps, which a resumed run writes
                again, are dropped.
        """
        self._file: Any = None
        self._loggers: list[Any] = []
        self._wandb = False
        if not enabled:
            return
        path = output_dir / "metrics.jsonl"
        kept = self._lines_before(path, resume_step)
        write_file(path, "".join(kept))
        self._file = RowFile(path)
        self._loggers = _lightning_loggers(cfg, output_dir)
        self._wandb = bool(cfg.logger.wandb)

    @staticmethod
    def _lines_before(path: Path, step: int) -> list[str]:
        if not path.is_file():
            return []
        kept = []
        for line in path.read_text().splitlines(keepends=True):
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # a torn last line of a killed run
            if entry["step"] < step:
                kept.append(line if line.endswith("\n") else line + "\n")
        return kept

    def write(self, entry: dict[str, Any]) -> None:
        """Append one step. `entry` has `step` and numbers."""
        if self._file is None:
            return
        self._file.append((json.dumps(entry) + "\n").encode())
        numbers = {k: v for k, v in entry.items() if k != "step"}
        for logger in self._loggers:
            logger.log_metrics(numbers, step=entry["step"])

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for logger in self._loggers:
            logger.finalize("success" if kind is None else "failed")
        if self._wandb:
            # Wait for its service to write what it was sent: the process may end right after.
            import wandb

            wandb.finish(exit_code=0 if kind is None else 1)
        if self._file is not None:
            self._file.close()
