"""One conversion in a separate process, killed (SIGKILL) in the middle.

python -m tests.conversion.interrupted DIRECTION SOURCE DESTINATION TENSORS

Dies when the tensor after the first TENSORS is asked for. Files are small: some are finished then.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from nemo_gdpo.conversion.convert import convert_hf_to_megatron, convert_megatron_to_hf
from nemo_gdpo.conversion.formats import dist_writer
from nemo_gdpo.conversion.formats.dist_reader import DistTensorSource
from nemo_gdpo.conversion.formats.hf_source import HuggingFaceSource

FILE_BYTES = 12_000


def die_after(source: Any, tensors: int) -> None:
    """Patch a source's `tensor` to kill this process."""
    read, left = source.tensor, [tensors]

    def tensor(self: Any, name: str) -> Any:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return read(self, name)

    source.tensor = tensor


if __name__ == "__main__":
    direction, origin, target, count = sys.argv[1:]
    if direction == "hf-to-megatron":
        dist_writer._FILE_BYTES = FILE_BYTES
        die_after(HuggingFaceSource, int(count))
        convert_hf_to_megatron(Path(origin), Path(target))
    else:
        die_after(DistTensorSource, int(count))
        convert_megatron_to_hf(Path(origin), Path(target), max_shard_bytes=FILE_BYTES)
