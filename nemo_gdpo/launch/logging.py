"""Keep libraries' chatter out of a run's output; NEMO_GDPO_VERBOSE=1 lets it through.

Errors stay. What a library says about its own fallbacks (no Apex, no Transformer Engine) is asked
of the platform instead, and refused where it would matter.
"""

from __future__ import annotations

import logging
import os
import warnings

NOISY_LOGGERS = (
    "megatron",
    "nv_one_logger",
    "nemo_logger",
    "lightning",
    "lightning.pytorch",
    "pytorch_lightning",
    "torch.distributed",
    "transformers",
)


def quiet_libraries() -> None:
    """Raise the loggers of libraries to ERROR and drop their warnings, here and in children."""
    if os.environ.get("NEMO_GDPO_VERBOSE") == "1":
        return
    warnings.filterwarnings("ignore")
    # Checkpoint writers and data workers are fresh interpreters.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    # megatron logs through the root logger in places.
    logging.getLogger().setLevel(logging.ERROR)
