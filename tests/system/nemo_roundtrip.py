"""Save a model as a `.nemo` archive, restore it, and say whether it is the same.

python -m tests.system.nemo_roundtrip RUN_CONFIG ARCHIVE RESULT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf

from nemo_gdpo.config.composition import read_config
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.nemo.classes import MegatronGPTDPOModel, MegatronGPTGDPOModel, model_class
from nemo_gdpo.training.run import Run


def main() -> None:
    """Write what was found to RESULT."""
    file, archive, result = sys.argv[1:]
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
        "config": OmegaConf.to_container(
            MegatronGPTGDPOModel.restore_from(archive, return_config=True).objective
        ),
        "refusal": refusal,
    }
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
