"""The whole data, read before a model is converted: a conversion of minutes would be in vain."""

from __future__ import annotations

from pathlib import Path

from nemo_gdpo.config.problem import raise_problems
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.conversion.resolve import is_hf_directory
from nemo_gdpo.data.inspect import inspect_data
from nemo_gdpo.data.prepared import is_prepared


def refuse_bad_pairs(config: RunConfig) -> None:
    """Refuse pairs that tokenising would refuse, where a conversion comes first.

    Raises:
        UserError: something is wrong with the pairs; all problems at once.
    """
    model = Path(str(config.model.restore_from_path))
    converts = model.is_file() or (config.model.cache_converted and is_hf_directory(model))
    if converts and not is_prepared(Path(config.output_dir) / "data" / "train"):
        raise_problems(inspect_data(config, rows=None).problems)
