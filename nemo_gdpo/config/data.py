"""The `data` section: where pairs come from and how they become tokens."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from nemo_gdpo.config.base import (
    CONTENT,
    FIXED,
    FREE,
    Day,
    OnResume,
    Section,
    Text,
    derived,
    from_environment,
)
from nemo_gdpo.config.lengths import USUAL_LENGTH, fitting_prompt

Length = Annotated[int, Field(ge=1)]
PairFormat = Literal["auto", "trl", "nemo_aligner", "nemo_rl"]
"""Columns of files whose rows are pairs."""
Preset = Literal[
    "anthropic_hh",
    "ultrafeedback_binarized",
    "tldr_comparisons",
    "odpo_json",
]
"""Public data sets in the columns they are published with."""


class DataConfig(Section):
    """Lengths count tokens."""

    on_resume: ClassVar[OnResume | None] = CONTENT
    name: Annotated[Text, FREE] = "jsonl"
    """What the data set is called in messages."""
    format: Literal[PairFormat, "unpaired", "groups"] = "auto"
    """Columns of the files; auto looks at the first row. unpaired: rows of one response each, with
    a label, for objectives that compare none. groups: a row is a prompt with `group_size` answers
    and their scores, for objective=gflownet."""
    group_size: Annotated[int, Field(ge=2, multiple_of=2)] | None = None
    """Answers to a prompt in each row of `format=groups`, an even number; they stay in one
    micro-batch. Two answers count as one pair wherever pairs are counted."""
    label_threshold: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """With `format=unpaired`: a row's `score` makes it a good one from here on; null reads its
    `label`, true or false."""
    preset: Preset | None = None
    """A public data set in the columns it is published with; takes the place of `format`."""
    train_path: Text | None = from_environment("NEMO_GDPO_TRAIN")
    """File (.jsonl, .parquet), data set directory, prepared directory, or hub name."""
    validation_path: Text | None = from_environment("NEMO_GDPO_VALIDATION")
    """The same for validation; null trains without."""
    split: Text = "train"
    """Split of a Hugging Face data set to train on; files have none."""
    validation_split: Text = "test"
    """Split of a Hugging Face data set to validate on."""
    on_bad_pair: Literal["error", "drop"] = "error"
    """A pair that cannot be learned from (empty, identical) stops the run, or is counted."""
    weight_column: Text | None = None
    """Column with a weight of each pair, a factor of its loss, not negative; null weighs all alike.
    Weights are not normalised: the loss stays the sum over pairs divided by their number."""
    margin_column: Text | None = None
    """Column with a margin of each pair, not negative: how much more of the objective's log-ratio
    is asked for, in its own units (see the objectives); null asks for none."""
    max_length: Length = derived(
        lambda _: USUAL_LENGTH, "${fitting_length:${model.restore_from_path}}"
    )
    """Prompt and response together; responses are cut at their end and marked incomplete. Not set,
    it is 1024, or the model's positions where it has fewer."""
    max_prompt_length: Length = derived(
        lambda above: fitting_prompt(above.get("max_length")),
        "${fitting_prompt:${data.max_length}}",
    )
    """Longer prompts are cut as `truncation_mode` says. Not set, it is 512, at most half of
    `max_length`."""
    truncation_mode: Literal["keep_end", "keep_start", "error"] = "keep_end"
    """Which part of a long prompt stays; error refuses anything too long."""
    seed: Annotated[int, Field(ge=0), FIXED] = 1234
    """Seed of the order of pairs."""
    packing: Annotated[bool, FREE] = True
    """Padding-free micro-batches: sequences one after the other in one row, as many pairs as fit,
    with the same result. False pads `model.micro_batch_size` pairs to the longest."""
    pack_tokens: Annotated[Annotated[int, Field(ge=2)] | None, FREE] = None
    """Positions of a packed row at most, for `packing`; takes the place of
    `model.micro_batch_size`. Null takes what the padded rows of so many pairs of `data.max_length`
    would."""
    prefix_sharing: Annotated[bool, FREE] = False
    """Compute each prompt once for both responses, which do not see each other, with the same
    result; for `packing`."""
    workers: Annotated[Annotated[int, Field(ge=1)] | None, FREE] = None
    """Processes that tokenise, with the same result; null takes as many as there are CPUs. A small
    file is tokenised by one."""
    chat_template: Text | None = None
    """Path to a Jinja file that replaces the tokenizer's own template."""
    date: Annotated[Day | None, FIXED] = None
    """Day that a template with a clock writes (Llama 3's date), as 2026-01-31; null takes the day
    on which the run began, on every later day as well."""

    def path_of(self, split: Literal["train", "validation"]) -> str | None:
        """Path of a split's pairs; None for a split without any."""
        return self.train_path if split == "train" else self.validation_path

    def split_of(self, name: Literal["train", "validation"]) -> str:
        """Split of a Hugging Face data set that serves as the named one."""
        return self.split if name == "train" else self.validation_split

    @property
    def pairs_of_group(self) -> int:
        """Pairs that stay together; 1 where each is by itself."""
        return (self.group_size or 2) // 2

    @property
    def reader_format(self) -> str:
        """The format to read files with: the preset's, or `format`."""
        return self.preset or self.format
