"""Save a model as a `.nemo` archive, restore it, and say whether it is the same.

python -m tests.system.nemo_roundtrip RUN_CONFIG ARCHIVE RESULT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nemo_gdpo.training  # noqa: F401 - installs the platform before any megatron import

import torch  # isort: skip
from omegaconf import OmegaConf  # isort: skip

from nemo_gdpo.models import MegatronGPTDPOModel, MegatronGPTGDPOModel  # isort: skip
from nemo_gdpo.training.run import assemble  # isort: skip


def main() -> None:
    """Write what was found to RESULT."""
    config, archive, result = sys.argv[1:]
    run = assemble(OmegaConf.load(config))
    run.model.save_to(archive)
    restored = MegatronGPTGDPOModel.restore_from(archive)
    own = dict(run.model.named_policy_parameters())
    other = dict(restored.named_policy_parameters())
    refusal = ""
    try:
        MegatronGPTDPOModel.restore_from(archive)
    except ValueError as error:
        refusal = str(error)
    found = {
        "same_names": own.keys() == other.keys(),
        "parameters": len(own),
        "equal": all(torch.equal(own[name], other[name]) for name in own),
        "objective": str(restored.objective),
        "config": OmegaConf.to_container(
            MegatronGPTGDPOModel.restore_from(archive, return_config=True).objective
        ),
        "refusal": refusal,
    }
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
