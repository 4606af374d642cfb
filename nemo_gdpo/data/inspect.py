"""The data of a configuration, looked at before anything is made: all problems at once.

`validate`, `prepare` and `train` see the same. Weights are not needed: a tokenizer, if there is
one, shows what a template or a limit makes of the pairs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_gdpo.config.model_files import KEY as MODEL_KEY
from nemo_gdpo.config.model_files import is_megatron_checkpoint, megatron_checkpoint_root
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.config.stop_tokens import assets_of, stop_token_ids
from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.data.faults import shortened
from nemo_gdpo.data.from_config import SPLITS, SplitName, build_split
from nemo_gdpo.data.given import PairColumns
from nemo_gdpo.data.prepared import is_prepared
from nemo_gdpo.data.readers import read_pairs
from nemo_gdpo.data.repeats import Repeats, pair_keys_of, shared_in_words
from nemo_gdpo.data.templates import PairEncoder, read_template
from nemo_gdpo.data.tokenize import Limits, TokenizeStats, no_pair_is_left, tokenize_pairs
from nemo_gdpo.data.types import ReadStats
from nemo_gdpo.data.unpaired import two_by_two
from nemo_gdpo.errors import UserError
from nemo_gdpo.importing import uncollected

FIRST_ROWS = 1000
"""Rows of a split that are looked at, unless all are asked for."""
_VOCABULARIES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
)  # fmt: skip


@dataclass
class Inspection:
    """What was found in the data of a configuration."""

    problems: list[str] = field(default_factory=list)
    """Why it cannot be trained on; one line each."""
    remarks: list[str] = field(default_factory=list)
    """What is odd and keeps nothing from starting."""
    splits: dict[str, str] = field(default_factory=dict)
    """Split -> what was read, in words."""


@dataclass
class _Split:
    """One split while it is looked at."""

    problems: list[str]
    repeats: Repeats = field(default_factory=Repeats)
    reading: ReadStats = field(default_factory=ReadStats)
    stats: TokenizeStats = field(default_factory=TokenizeStats)


def load_tokenizer(assets: Path) -> Any:
    """The tokenizer of a model's directory.

    Raises:
        UserError: it has none that can be loaded.
    """
    with uncollected():
        from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(assets)
    except Exception as error:  # noqa: BLE001 - a damaged file raises almost anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{MODEL_KEY}={assets}: no tokenizer can be loaded ({reason}); give the model's "
            "directory"
        ) from None


def tokenizer_directory(model: Path) -> Path | None:
    """The directory with the tokenizer's files; None where only a conversion would show it."""
    if not model.is_dir():
        return None
    root = megatron_checkpoint_root(model) if is_megatron_checkpoint(model) else model
    assets = None if root is None else assets_of(root)
    found = assets is not None and any((assets / name).is_file() for name in _VOCABULARIES)
    return assets if found else None


def inspect_data(
    config: RunConfig, *, rows: int | None = FIRST_ROWS, faulty: Collection[str] = ()
) -> Inspection:
    """Read, check and tokenise the pairs of a run, and keep nothing of them.

    Args:
        config: of the run.
        rows: of each split; None reads all.
        faulty: keys of the configuration that are known to be wrong; what needs them is left out.
    """
    found = Inspection()
    assets = None
    if config.model.restore_from_path is not None and MODEL_KEY not in faulty:
        assets = tokenizer_directory(Path(config.model.restore_from_path))
    encoder = None
    if assets is not None and "data.chat_template" not in faulty:
        try:
            encoder = PairEncoder(
                load_tokenizer(assets),
                stop_token_ids=stop_token_ids(assets),
                chat_template=read_template(config.data.chat_template),
                date=config.data.date,
            )
        except UserError as error:
            found.problems.append(str(error))
    seen: dict[str, Repeats] = {}
    for name in SPLITS:
        path = config.data.path_of(name)
        if path is None or f"data.{name}_path" in faulty:
            continue
        split = _Split([])
        try:
            if is_prepared(path):
                found.splits[name] = _prepared(config, name, encoder, assets)
            else:
                _read(config, name, encoder, split, rows)
                found.splits[name] = _in_words(split, rows)
                found.remarks += split.repeats.in_words(name)
                seen[name] = split.repeats
        except UserError as error:
            split.problems.append(str(error))
        found.problems += shortened(split.problems)
    found.remarks += _about_both(config, seen)
    return found


def _prepared(
    config: RunConfig, name: SplitName, encoder: PairEncoder | None, assets: Path | None
) -> str:
    """A prepared directory, compared with the settings of the run."""
    if encoder is None or assets is None:
        return "prepared; its settings are compared when the model's tokenizer is there"
    built = build_split(
        config.data, name, encoder.tokenizer, assets, require_scores=config.objective.needs_scores
    )
    return f"{len(built or ())} prepared pairs"


def _read(
    config: RunConfig,
    name: SplitName,
    encoder: PairEncoder | None,
    split: _Split,
    rows: int | None,
) -> None:
    data = config.data
    path = str(data.path_of(name))
    limits = Limits(data.max_prompt_length, data.max_length, data.truncation_mode)
    raw = read_pairs(
        path,
        format=data.reader_format,
        split=data.split_of(name),
        require_scores=config.objective.needs_scores,
        on_bad_pair=data.on_bad_pair,
        stats=split.reading,
        problems=split.problems,
        limit=rows,
        columns=PairColumns.of(data),
    )
    if encoder is None:
        split.stats.pairs = sum(1 for _ in raw)
        return
    tokens = tokenize_pairs(
        two_by_two(raw),
        encoder,
        limits,
        on_bad_pair=data.on_bad_pair,
        stats=split.stats,
        problems=split.problems,
        repeats=split.repeats,
    )
    left = sum(1 for _ in tokens)
    if left == 0 and not split.problems:
        raise UserError(no_pair_is_left(path, split.stats))


def _in_words(split: _Split, rows: int | None) -> str:
    stats, reading = split.stats, split.reading
    stats.add_reading(reading)
    dropped = {"ties": stats.ties_dropped, "identical after cutting": stats.identical_after_cut}
    told = ", ".join(f"{n} {why}" for why, n in {**dropped, **stats.bad_dropped}.items() if n)
    among = "" if rows is None or reading.pairs < rows else f" in the first {rows} rows"
    return f"{stats.pairs} pairs{among}{f', dropped: {told}' if told else ''}"


def _about_both(config: RunConfig, seen: dict[str, Repeats]) -> list[str]:
    """What training and validation share."""
    if len(seen) < len(SPLITS):
        return []
    found = shared_in_words(seen["train"], seen["validation"])
    train, validation = (Path(str(config.data.path_of(name))) for name in SPLITS)
    if not found and train.is_file() and validation.is_file() and train.samefile(validation):
        return ["validation: the same file as for training"]
    return found


def repeats_of(data: PreferenceDataset) -> Repeats:
    """The pairs of a whole data set, for what two splits share."""
    found = Repeats()
    for pair in data:
        for key, opposite in pair_keys_of(pair):
            found.add_keys(key, opposite, f"pair {pair.id!r}")
    return found
