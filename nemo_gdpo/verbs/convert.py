"""`nemo-gdpo convert`: the conversion package, with megatron passed to it for `verify`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_gdpo.conversion.cli import main as conversion_main
from nemo_gdpo.errors import EXIT_DONE

if TYPE_CHECKING:
    from torch import Tensor


def run(arguments: list[str]) -> int:
    """Convert, or compare; only running a Megatron checkpoint takes megatron."""
    try:
        return conversion_main(arguments, megatron_logits=_megatron_logits)
    except SystemExit as ended:  # argparse's way of having printed its help, or of refusing
        return ended.code if isinstance(ended.code, int) else EXIT_DONE


def _megatron_logits(checkpoint: Path, prompts: Sequence[Tensor]) -> list[Tensor]:
    from nemo_gdpo.training.parity import megatron_logits

    return megatron_logits(checkpoint, prompts)
