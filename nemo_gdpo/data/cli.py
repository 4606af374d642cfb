"""`nemo-gdpo prepare`: tokenise a data set ahead of training."""

from __future__ import annotations

import json
from pathlib import Path

from nemo_gdpo.config.problem import raise_problems
from nemo_gdpo.config.request import Request
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.config.validate import problems_of_mapping
from nemo_gdpo.errors import EXIT_DONE, UserError
from nemo_gdpo.io.output_lock import hold


def run(request: Request) -> int:
    """Prepare as configured, once `validate` would find nothing; returns the exit status.

    Raises:
        UserError: the configuration or the input is wrong; all problems of the first rows at once.
    """
    from nemo_gdpo.data.inspect import inspect_data

    config, found = problems_of_mapping(request.compose(TRAIN).plain)
    inspection = inspect_data(config, faulty={problem.key for problem in found})
    raise_problems([*found, *inspection.problems])
    return _tokenise(config)


def _tokenise(config: RunConfig) -> int:
    from nemo_gdpo.data.from_config import SPLITS, build_split
    from nemo_gdpo.data.inspect import load_tokenizer, repeats_of, tokenizer_directory
    from nemo_gdpo.data.prepared import save_prepared
    from nemo_gdpo.data.repeats import shared_in_words

    model = Path(str(config.model.restore_from_path))
    assets = tokenizer_directory(model)
    if assets is None:
        raise UserError(
            f"model.restore_from_path={model}: no tokenizer can be loaded (it has no files of "
            "one); give the model's directory"
        )
    tokenizer = load_tokenizer(assets)
    with hold(Path(config.output_dir)):
        built = {
            name: build_split(
                config.data,
                name,
                tokenizer,
                assets,
                require_scores=config.objective.needs_scores,
                output=Path(config.output_dir) / name,
            )
            for name in SPLITS
        }
        # Nothing is written before all of it was read.
        data = {name: pairs for name, pairs in built.items() if pairs is not None}
        seen = {name: repeats_of(pairs) for name, pairs in data.items()}
        for name, pairs in data.items():
            target = save_prepared(pairs, Path(config.output_dir) / name)
            print(f"{name}: {json.dumps(pairs.stats.to_dict())}")
            print(f"{name}: {target}")
            for remark in seen[name].in_words(name):
                print(f"note: {remark}")
    if len(seen) == len(SPLITS):
        for remark in shared_in_words(seen["train"], seen["validation"]):
            print(f"note: {remark}")
    return EXIT_DONE
