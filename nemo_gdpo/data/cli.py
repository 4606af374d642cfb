"""`nemo-gdpo prepare`: tokenise a data set ahead of training."""

from __future__ import annotations

import json
from pathlib import Path

from nemo_gdpo.config.request import Request
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.errors import EXIT_DONE, UserError
from nemo_gdpo.io.output_lock import hold


def run(request: Request) -> int:
    """Prepare as configured; returns the exit status.

    Raises:
        UserError: the configuration or the input is wrong.
    """
    return _tokenise(request.parse(TRAIN))


def _tokenise(config: RunConfig) -> int:
    from transformers import AutoTokenizer

    from nemo_gdpo.config.stop_tokens import assets_of
    from nemo_gdpo.data.from_config import SPLITS, build_split
    from nemo_gdpo.data.prepared import save_prepared

    assets = assets_of(Path(str(config.model.restore_from_path)))
    try:
        tokenizer = AutoTokenizer.from_pretrained(assets)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.restore_from_path={assets}: no tokenizer can be loaded "
            f"({str(error).splitlines()[0]}); give the model's directory"
        ) from None
    with hold(Path(config.output_dir)):
        for name in SPLITS:
            built = build_split(
                config.data, name, tokenizer, assets, require_scores=config.objective.needs_scores
            )
            if built is None:
                continue
            target = save_prepared(built, Path(config.output_dir) / name)
            print(f"{name}: {json.dumps(built.stats.to_dict())}")
            print(f"{name}: {target}")
    return EXIT_DONE
