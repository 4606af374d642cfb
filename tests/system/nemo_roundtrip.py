"""Save a model as a `.nemo` archive, restore it, and say whether it is the same.

python -m tests.system.nemo_roundtrip RUN_CONFIG ARCHIVE RESULT [OTHER_ARCHIVE ITS_CHECKPOINT]

On one rank, or under RANK and WORLD_SIZE on the mesh of RUN_CONFIG; rank 0 writes RESULT.
"""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import OmegaConf

from nemo_gdpo.config.composition import read_config
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.models.preference_model import PreferenceModel
from nemo_gdpo.models.weights import load_weights
from nemo_gdpo.nemo import archive as nemo_archive
from nemo_gdpo.nemo.archive import ArchiveError
from nemo_gdpo.nemo.classes import MegatronGPTDPOModel, MegatronGPTGDPOModel, model_class
from nemo_gdpo.training.run import Run


def _same(first: PreferenceModel, second: PreferenceModel) -> bool:
    own, other = (dict(model.named_policy_parameters()) for model in (first, second))
    return own.keys() == other.keys() and all(torch.equal(own[n], other[n]) for n in own)


def _failed(model: Any, target: Path) -> str:
    """The message that a save to `target` ends in."""
    try:
        model.save_to(str(target))
    except ArchiveError as error:
        return str(error)
    return ""


def _full(directory: Path, target: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _failures(model: Any, archive: Path) -> list[str]:
    """Saves that fail: to a place under a file, in the place of a directory, on a full disk."""
    before = archive.read_bytes()
    blocked = archive.with_name("directory.nemo")
    blocked.mkdir(exist_ok=True)
    found = [_failed(model, archive / "below" / "model.nemo"), _failed(model, blocked)]
    pack, nemo_archive.pack = nemo_archive.pack, _full
    found.append(_failed(model, archive))
    nemo_archive.pack = pack
    assert archive.read_bytes() == before
    return found


def main() -> None:
    """Write what was found to RESULT."""
    file, archive, result, *others = sys.argv[1:]
    config = read_config(Path(file), TRAIN)
    run = Run.build(config, nemo_class=model_class(config.objective.name))
    assert isinstance(run.nemo, MegatronGPTGDPOModel)
    run.nemo.save_to(archive)
    restored = MegatronGPTGDPOModel.restore_from(archive)
    own = dict(run.model.named_policy_parameters())
    other = dict(restored.core.named_policy_parameters())
    refusal = ""
    try:
        MegatronGPTDPOModel.restore_from(archive)
    except ValueError as error:
        refusal = str(error)
    found = {
        "same_names": own.keys() == other.keys(),
        "parameters": len(own),
        "equal": all(torch.equal(own[name], other[name]) for name in own),
        "objective": str(restored.core.objective),
        "end_token_ids": [run.model.end_token_id, restored.core.end_token_id],
        "config": OmegaConf.to_container(
            MegatronGPTGDPOModel.restore_from(archive, return_config=True).objective
        ),
        "refusal": refusal,
        "failures": _failures(run.nemo, Path(archive)),
    }
    if others:
        moved = MegatronGPTGDPOModel.restore_from(others[0])
        found["other_differs"] = not _same(run.model, moved.core)
        load_weights(run.model, Path(others[1]))
        found["other_equal"] = _same(run.model, moved.core)
    every: list[dict[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(every, found)
    if dist.get_rank() == 0:
        Path(result).write_text(json.dumps(every))


if __name__ == "__main__":
    main()
