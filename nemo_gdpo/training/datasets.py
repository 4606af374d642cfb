"""The run's pairs: tokenised once by the main rank, read by all.

First they are tokenised in memory, or found: a start that is refused leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.control import from_main_rank, on_every_rank
from nemo_gdpo.conversion.cache import assets_digest
from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.data.from_config import SPLITS, SplitName, build_split
from nemo_gdpo.data.given import PairColumns
from nemo_gdpo.data.prepared import load_prepared, made_from, prepared_date, save_prepared
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import digest_of, file_sha256
from nemo_gdpo.io.late import sizes_of, wait_for_files
from nemo_gdpo.training.model_source import ModelSource
from nemo_gdpo.training.packing import refuse_long_pairs

BLOCK = 1 << 20
"""Tokens that are looked at at once."""
READING = 1
"""Raised by hand when readers, checks or templates make other tokens of the same input."""


def _tokenise(
    config: RunConfig, name: SplitName, source: ModelSource, output_dir: Path, date: str | None
) -> PreferenceDataset:
    data = build_split(
        config.data,
        name,
        source.tokenizer(),
        source.assets,
        require_scores=config.objective.needs_scores,
        date=date,
        output=output_dir / "data" / name,
    )
    assert data is not None  # a path is configured
    refuse_tokens_beyond(data, source.model_config.vocab_size, str(config.data.path_of(name)))
    return data


def refuse_tokens_beyond(data: PreferenceDataset, vocab_size: int, where: str) -> None:
    """Refuse pairs with tokens that the model has no embedding of.

    Raises:
        UserError: there is one; the first is named.
    """
    second = data.arrays.second_tokens
    if second is not None and second.max() >= vocab_size:
        raise UserError(
            f"{where}: a prompt has token {second.max()}, and the model's embedding only "
            f"{vocab_size} rows; tokenise the data with this model's tokenizer"
        )
    tokens = data.arrays.tokens
    for start in range(0, len(tokens), BLOCK):
        block = tokens[start : start + BLOCK]
        if block.max() < vocab_size:
            continue
        at = start + int(np.argmax(block >= vocab_size))
        pair = data[(int(np.searchsorted(data.arrays.offsets, at, side="right")) - 1) // 3]
        largest = max(*pair.prompt_ids, *pair.chosen.ids, *pair.rejected.ids)
        raise UserError(
            f"{where}: pair {pair.id} has token {largest}, and the model's embedding only "
            f"{vocab_size} rows; tokenise the data with this model's tokenizer, or remove the pair"
        )


def _describe(data: PreferenceDataset) -> str:
    stats = data.stats
    dropped = {
        "ties": stats.ties_dropped,
        "identical after cutting": stats.identical_after_cut,
        **stats.bad_dropped,
    }
    shown = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    odd = {"occur more than once": stats.repeated, "contradict another": stats.contradictory}
    told = "".join(f"; {count} {what}" for what, count in odd.items() if count)
    return (
        f"{stats.pairs} pairs, {stats.prompt_tokens} prompt and {stats.response_tokens} response "
        f"tokens; cut: {stats.prompts_cut} prompts, {stats.responses_cut} responses; dropped: "
        f"{shown or 'none'}{told}"
    )


@dataclass(frozen=True)
class Planned:
    """What every rank knows of a split before anything of it is written."""

    fingerprint: str
    pairs: int
    end_token_id: int
    date: str | None
    """Day that the template wrote into the tokens; None for a template without a clock."""


@dataclass
class DataPlan:
    """The pairs of a run: tokenised, or found, in memory, and not yet written."""

    splits: dict[str, Planned]
    """Those that have a path; the same on every rank."""
    here: dict[str, PreferenceDataset]
    """The pairs, on the main rank."""
    _new: dict[str, str | None]
    """On the main rank: what those were made from that are still to be written."""

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the tokens of each split."""
        splits = self.splits.items()
        return {f"data fingerprint of {name}": split.fingerprint for name, split in splits}

    @property
    def date(self) -> str | None:
        """Day in the tokens; None without one."""
        return self.splits["train"].date

    def write(self, output_dir: Path) -> dict[str, PreferenceDataset]:
        """Write what is new, and read all of it on every rank. Collective.

        Raises:
            RunError: it cannot be written; nothing that was there is lost.
        """
        return {name: self._write(output_dir / "data" / name, name) for name in self.splits}

    def _write(self, prepared: Path, name: str) -> PreferenceDataset:
        def write() -> dict[str, int]:
            if name in self._new:
                save_prepared(self.here[name], prepared, made_from=self._new[name])
            return sizes_of(prepared)

        def load() -> PreferenceDataset:
            wait_for_files(prepared, made, "set output_dir to a directory that all nodes share")
            # The main rank looks through what it wrote, once, and through what it found, before;
            # the others see files of the same sizes.
            known = None if name in self._new else self.splits[name].fingerprint
            data = load_prepared(prepared, again=_again(prepared), verified=known)
            if name in self.here:
                self.here[name] = data  # what was in the making needs no disk any more
            return data

        made = from_main_rank(f"writing the tokens of {name}", write)
        return on_every_rank(f"reading the tokens of {name}", load)


def plan_data(
    config: RunConfig, source: ModelSource, output_dir: Path, date: str | None
) -> DataPlan:
    """Tokenise the pairs of a run, or find them tokenised; nothing is written. Collective.

    Args:
        config: of the run.
        source: the model, whose tokenizer is taken.
        output_dir: of the run; what an earlier start has tokenised from the same is taken.
        date: on which an earlier start began; None for a new run.

    Raises:
        UserError: on every rank, when something is wrong with the input, or what is there is
            damaged.
    """
    plan = DataPlan({}, {}, {})
    for name in SPLITS:
        if config.data.path_of(name) is not None:
            planned = partial(_plan_split, config, name, source, output_dir, date, plan)
            plan.splits[name] = from_main_rank(f"tokenising {name}", planned)
            date = date or plan.date
    return plan


def _plan_split(
    config: RunConfig,
    name: SplitName,
    source: ModelSource,
    output_dir: Path,
    date: str | None,
    plan: DataPlan,
) -> Planned:
    prepared = output_dir / "data" / name
    key = partial(_made_from, config, name, source)
    data = _found(prepared, key, config.data.date)
    if data is not None:
        print(f"{name}: {len(data)} pairs, as tokenised before in {prepared}", flush=True)
    else:
        data = _tokenise(config, name, source, output_dir, date or prepared_date(prepared))
        plan._new[name] = key(data.settings.get("date"))
        print(f"{name}: {_describe(data)}", flush=True)
    written = data.settings.get("date")
    if config.data.date is not None and written is None:
        raise UserError(
            f"data.date: {config.data.date} would not be read: the chat template has no clock; set "
            "it to null"
        )
    refuse_long_pairs(config, data)
    plan.here[name] = data
    return _planned(data)


def _planned(data: PreferenceDataset) -> Planned:
    return Planned(data.fingerprint, len(data), data.end_token_id, data.settings.get("date"))


def given_data(config: RunConfig, data: dict[str, PreferenceDataset]) -> DataPlan:
    """Pairs that every rank has in memory; nothing of them is written.

    Raises:
        UserError: a pair does not fit in a packed row.
    """
    for pairs in data.values():
        refuse_long_pairs(config, pairs)
    return DataPlan({name: _planned(pairs) for name, pairs in data.items()}, data, {})


def _found(
    prepared: Path, key: Callable[[str | None], str | None], date: str | None
) -> PreferenceDataset | None:
    """What an earlier start has tokenised, if it was from the same."""
    if not prepared.is_dir() or not any(prepared.iterdir()):
        return None
    data = load_prepared(prepared, again=_again(prepared))
    made = made_from(prepared)
    wanted = key(date or data.settings.get("date"))
    return data if made is not None and made == wanted else None


def _again(prepared: Path) -> str:
    return f"restore it, or delete {prepared}, and the next start makes it again"


def _made_from(
    config: RunConfig, name: SplitName, source: ModelSource, date: str | None
) -> str | None:
    """Digest of all that the tokens depend on; None where the source cannot be hashed."""
    data, template = config.data, config.data.chat_template
    contents = _contents(Path(str(data.path_of(name))))
    if contents is None:
        return None
    return digest_of(
        {
            "reading": READING,
            "contents": contents,
            "format": data.reader_format,
            "split": data.split_of(name),
            "on_bad_pair": data.on_bad_pair,
            "limits": [data.max_prompt_length, data.max_length, data.truncation_mode],
            "template": None if template is None else file_sha256(Path(template)),
            "assets": assets_digest(source.assets),
            "scores": config.objective.needs_scores,
            "date": date,
            **PairColumns.of(data).settings(),
        }
    )


def _contents(path: Path) -> str | None:
    """SHA-256 of a file, or of all files of a directory; None for a name on the hub."""
    if path.is_file():
        return file_sha256(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return digest_of({p.relative_to(path).as_posix(): file_sha256(p) for p in files})
    return None
