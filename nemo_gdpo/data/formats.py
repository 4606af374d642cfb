"""Column formats: one function per format, a row in, a raw pair out.

* `trl`: `prompt` (optional), `chosen`, `rejected`, as text or messages; `chosen_score` and
  `rejected_score`, or `margin`;
* `nemo_aligner`: `prompt`, `chosen_response`, `rejected_response`, optional `chosen_reward` and
  `rejected_reward`;
* `nemo_rl`: `context` (messages), `completions`: two of `{rank, completion}`, the lower rank wins.

The named presets of public data sets (`presets.py`, `odpo_json.py`) are formats, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nemo_gdpo.data import presets
from nemo_gdpo.data.checks import INVERTED, explicit_id, field, rest, score
from nemo_gdpo.data.conversation import split_prompt
from nemo_gdpo.data.faults import BadPairError
from nemo_gdpo.data.types import RawPair, Row
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.text import shown


def from_trl(row: Row) -> RawPair:
    """TRL's preference columns, explicit or implicit prompt, text or conversational.

    A `margin` is a difference of scores and becomes chosen_score = margin, rejected_score = 0.
    """
    used = ("prompt", "chosen", "rejected", "chosen_score", "rejected_score", "margin")
    prompt, chosen, rejected = split_prompt(
        row, row.data.get("prompt"), field(row, "chosen"), field(row, "rejected"), read=used
    )
    chosen_score, rejected_score = score(row, "chosen_score"), score(row, "rejected_score")
    margin = score(row, "margin")
    if margin is not None:
        if chosen_score is None and rejected_score is None:
            if margin < 0:
                raise BadPairError(
                    row.where,
                    INVERTED,
                    said=f"margin is {margin:g}, the chosen response scores less than the rejected "
                    "one",
                    remedy="swap the responses or correct the margin",
                )
            chosen_score, rejected_score = margin, 0.0
        elif not _is_margin(margin, chosen_score, rejected_score):
            raise UserError(
                f"{row.where}: margin {margin:g} contradicts chosen_score and rejected_score; "
                "give either the margin or both scores"
            )
    scores = chosen_score, rejected_score
    return RawPair(explicit_id(row), prompt, chosen, rejected, *scores, rest(row, used), row.where)


def _is_margin(margin: float, chosen_score: float | None, rejected_score: float | None) -> bool:
    if chosen_score is None or rejected_score is None:
        return False
    return abs(chosen_score - rejected_score - margin) <= 1e-6 * max(1.0, abs(margin))


def from_nemo_aligner(row: Row) -> RawPair:
    """NeMo-Aligner's DPO lines. A text prompt already carries its template and is used as it
    stands; a prompt of messages goes through the tokenizer's own template."""
    prompt = field(row, "prompt")
    chosen, rejected = field(row, "chosen_response"), field(row, "rejected_response")
    if not isinstance(prompt, str):
        chosen, rejected = _one_message(chosen), _one_message(rejected)
    prompt, chosen, rejected = split_prompt(row, prompt, chosen, rejected)
    scores = score(row, "chosen_reward"), score(row, "rejected_reward")
    used = ("prompt", "chosen_response", "rejected_response", "chosen_reward", "rejected_reward")
    return RawPair(explicit_id(row), prompt, chosen, rejected, *scores, rest(row, used), row.where)


def _one_message(response: Any) -> Any:
    return [response] if isinstance(response, Mapping) else response


def from_nemo_rl(row: Row) -> RawPair:
    """NeMo-RL's preference rows. Ranks are an order, not a measure, so they give no scores."""
    context = field(row, "context")
    if isinstance(context, str):
        context = [{"role": "user", "content": context}]
    completions = field(row, "completions")
    if not isinstance(completions, list) or len(completions) != 2:
        raise UserError(
            f"{row.where}: completions must be a list of exactly two; keep the best and the worst"
        )
    ranked: list[tuple[float, Any]] = []
    for index, item in enumerate(completions):
        if not isinstance(item, dict) or "rank" not in item or "completion" not in item:
            raise UserError(
                f"{row.where}: completions[{index}] needs the keys rank and completion; add them"
            )
        inner = Row({"rank": item["rank"]}, f"{row.where}, completions[{index}]", row.number)
        rank = score(inner, "rank")
        if rank is None:
            raise BadPairError(inner.where, "rank is null", remedy="give every completion a rank")
        ranked.append((rank, item["completion"]))
    if ranked[0][0] == ranked[1][0]:
        raise BadPairError(row.where, "tied ranks")
    ranked.sort(key=lambda pair: pair[0])
    prompt, chosen, rejected = split_prompt(row, context, ranked[0][1], ranked[1][1])
    used = ("context", "completions")
    return RawPair(
        explicit_id(row), prompt, chosen, rejected, None, None, rest(row, used), row.where
    )


def from_unpaired(row: Row, threshold: float | None) -> RawPair:
    """One response with its own label: `prompt`, `response` (or `completion`, as TRL has it), and
    `label` (true or false), or a `score` that is compared with `threshold`.

    The response stands in both places.
    """
    name = "completion" if "completion" in row.data else "response"
    response = field(row, name)
    prompt, response, _ = split_prompt(row, field(row, "prompt"), response, response)
    verdict = "label" if threshold is None else "score"
    value = field(row, verdict)
    if threshold is not None:
        value = (score(row, verdict) or 0.0) >= threshold
    if not isinstance(value, bool):
        raise UserError(
            f"{row.where}: 'label' is not true or false; write it so, or give a score and set "
            "data.label_threshold"
        )
    meta = rest(row, ("prompt", name, verdict))
    return RawPair(
        explicit_id(row), prompt, response, response, meta=meta, where=row.where, label=value
    )


Converter = Callable[[Row], RawPair]

FORMATS: dict[str, Converter] = {
    "trl": from_trl,
    "nemo_aligner": from_nemo_aligner,
    "nemo_rl": from_nemo_rl,
    "anthropic_hh": presets.from_anthropic_hh,
    "ultrafeedback_binarized": presets.from_ultrafeedback_binarized,
    "tldr_comparisons": presets.from_tldr_comparisons,
}


def detect_format(row: Row) -> str:
    """The format of a file, from the columns of its first row.

    `tldr_comparisons` has TRL's columns and must be asked for by name.
    """
    columns = {*row.data, *row.nulls}
    if {"context", "completions"} <= columns:
        return "nemo_rl"
    if {"chosen_response", "rejected_response"} <= columns:
        return "nemo_aligner"
    if {"chosen", "rejected"} <= columns:
        if {"score_chosen", "score_rejected"} <= columns:
            return "ultrafeedback_binarized"
        if presets.looks_like_hh(row):
            return "anthropic_hh"
        return "trl"
    if (
        "prompt" in columns
        and {"response", "completion"} & columns
        and {"label", "score"} & columns
    ):
        raise UserError(
            f"{row.where}: rows of one response each, which only data.format=unpaired reads, and "
            "with objective=gdpo and objective.balance=db or subtb only; set it"
        )
    if {"prompt", "text", "reward"} <= columns or presets.looks_like_tldr_json(row):
        return "odpo_json"
    raise UserError(
        f"{row.where}: no known format has the columns {shown(columns)}; "
        "name them prompt, chosen and rejected, or set data.format"
    )
