"""The run's pairs: tokenised once by the main rank, read by all."""

from __future__ import annotations

from pathlib import Path

from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.control import from_main_rank, on_every_rank
from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.data.from_config import SplitName, build_split
from nemo_gdpo.data.prepared import load_prepared, save_prepared
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.late import sizes_of, wait_for_files
from nemo_gdpo.training.model_source import ModelSource


def _tokenise(config: RunConfig, name: SplitName, source: ModelSource) -> PreferenceDataset:
    data = build_split(
        config.data,
        name,
        source.tokenizer(),
        source.assets,
        require_scores=config.objective.needs_scores,
    )
    assert data is not None  # a path is configured
    refuse_tokens_beyond(data, source.model_config.vocab_size, str(config.data.path_of(name)))
    return data


def refuse_tokens_beyond(data: PreferenceDataset, vocab_size: int, where: str) -> None:
    """Refuse pairs with tokens that the model has no embedding of.

    Raises:
        UserError: there is one; the first is named.
    """
    for pair in data:
        largest = max(*pair.prompt_ids, *pair.chosen.ids, *pair.rejected.ids)
        if largest >= vocab_size:
            raise UserError(
                f"{where}: pair {pair.id} has token {largest}, and the model's embedding only "
                f"{vocab_size} rows; tokenise the data with this model's tokenizer, or remove the "
                "pair"
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


def load_split(
    config: RunConfig, name: SplitName, source: ModelSource, output_dir: Path
) -> PreferenceDataset | None:
    """The pairs of `train` or `validation`; None when no path is configured. Collective.

    Raises:
        UserError: on every rank, when the main rank finds something wrong with the input, or one
            cannot read what it wrote.
    """
    if config.data.path_of(name) is None:
        return None
    prepared = output_dir / "data" / name

    def tokenise() -> dict[str, int]:
        data = _tokenise(config, name, source)
        save_prepared(data, prepared)
        print(f"{name}: {_describe(data)}", flush=True)
        return sizes_of(prepared)

    def load() -> PreferenceDataset:
        wait_for_files(prepared, made, "set output_dir to a directory that all nodes share")
        return load_prepared(prepared)

    made = from_main_rank(f"tokenising {name}", tokenise)
    return on_every_rank(f"reading the tokens of {name}", load)
