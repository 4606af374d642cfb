"""`nemo-gdpo prepare`: make the demo's pairs, or tokenise a data set ahead of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..config.request import Request
from ..config.schema import TRAIN, RunConfig
from ..errors import EXIT_DONE, UserError


def run(request: Request) -> int:
    """Prepare as configured; returns the exit status.

    Raises:
        UserError: the configuration or the input is wrong.
    """
    config = request.parse(TRAIN)
    if config.data.preset == "movie_reviews" and config.data.source_path is not None:
        return _movie_reviews(config)
    return _tokenise(config)


def _movie_reviews(config: RunConfig) -> int:
    from .movie_reviews import write_movie_reviews

    data, target = config.data, Path(config.output_dir)
    wanted = {
        "source_path": Path(str(data.source_path)).name,
        "seed": data.seed,
        "num_train": data.num_train,
        "num_validation": data.num_validation,
        "validation_fraction": data.validation_fraction or 0.1,
        "chosen_min": data.chosen_min,
        "rejected_max": data.rejected_max,
        "min_gap": data.min_gap or 0.0,
    }
    request = target / "request.json"
    if request.is_file() and json.loads(request.read_text()) == wanted:
        print(f"movie reviews: reused {target}")
        return EXIT_DONE
    settings: dict[str, Any] = {k: v for k, v in wanted.items() if k != "source_path"}
    stats = write_movie_reviews(str(data.source_path), target, **settings)
    request.write_text(json.dumps(wanted, indent=1) + "\n")
    print(f"movie reviews: {json.dumps(stats)}")
    return EXIT_DONE


def _tokenise(config: RunConfig) -> int:
    from transformers import AutoTokenizer

    from .dataset import build_dataset
    from .prepared import save_prepared
    from .stop_tokens import assets_of, stop_token_ids

    data = config.data
    assets = assets_of(Path(str(config.model.restore_from_path)))
    try:
        tokenizer = AutoTokenizer.from_pretrained(assets)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.restore_from_path={assets}: no tokenizer can be loaded "
            f"({str(error).splitlines()[0]})"
        ) from None
    template = None if data.chat_template is None else Path(data.chat_template).read_text()
    for name, path, split in (
        ("train", data.train_path, data.split),
        ("validation", data.validation_path, data.validation_split),
    ):
        if path is None:
            continue
        built = build_dataset(
            path,
            tokenizer,
            format=data.reader_format,
            split=split,
            max_prompt_length=data.max_prompt_length,
            max_length=data.max_length,
            truncation_mode=data.truncation_mode,
            require_scores=config.objective.needs_scores,
            stop_token_ids=stop_token_ids(assets),
            chat_template=template,
            on_bad_pair=data.on_bad_pair,
        )
        target = save_prepared(built, Path(config.output_dir) / name)
        print(f"{name}: {json.dumps(built.stats.to_dict())}")
        print(f"{name}: {target}")
    return EXIT_DONE
