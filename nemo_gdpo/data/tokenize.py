"""Raw pairs to tokenised pairs: the template, then truncation.

The prompt is cut to `max_prompt_length` first, then each response to what `max_length` leaves it.
A cut response loses its end token and is marked incomplete; it keeps at least one token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nemo_gdpo.data.faults import Faults
from nemo_gdpo.data.repeats import HALF, Repeats, pair_keys, pair_keys_of
from nemo_gdpo.data.templates import PairEncoder
from nemo_gdpo.data.types import RawPair, ReadStats, TokenizedPair, TokenizedResponse
from nemo_gdpo.errors import UserError

TRUNCATION_MODES = ("keep_end", "keep_start", "error")


@dataclass
class TokenizeStats:
    """Counts of what became of the pairs; printed after preparing and stored with the data."""

    pairs: int = 0
    """Pairs kept."""
    ties_dropped: int = 0
    bad_dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> pairs dropped, with `on_bad_pair="drop"`."""
    identical_after_cut: int = 0
    """Dropped: the limit cut the responses before they differ."""
    repeated: int = 0
    """Pairs that stand there more than once."""
    contradictory: int = 0
    """Pairs whose rejected response another pair prefers over their chosen one."""
    prompts_cut: int = 0
    responses_cut: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0
    end_token_id: int | None = None
    """The token that complete responses end in."""

    def add_reading(self, stats: ReadStats) -> None:
        self.ties_dropped += stats.ties_dropped
        for reason, count in stats.bad_dropped.items():
            self.bad_dropped[reason] = self.bad_dropped.get(reason, 0) + count

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """Lengths in tokens; None is any. `mode`: the end of a long prompt that stays, or "error"."""

    max_prompt_length: int | None = None
    max_length: int | None = None
    mode: str = "keep_end"

    def __post_init__(self) -> None:
        if self.mode not in TRUNCATION_MODES:
            raise UserError(
                f"data.truncation_mode={self.mode!r} is unknown; use one of "
                f"{', '.join(TRUNCATION_MODES)}"
            )
        # A BOS and one token of text are the least that a prompt cut to size can be.
        if self.max_prompt_length is not None and self.max_prompt_length < 2:
            raise UserError(
                f"data.max_prompt_length={self.max_prompt_length}: it must be at least 2; raise it"
            )
        if self.max_length is not None and self.max_length < 3:
            raise UserError(f"data.max_length={self.max_length}: it must be at least 3; raise it")
        if None not in (self.max_prompt_length, self.max_length) and (
            (self.max_prompt_length or 0) >= (self.max_length or 0)
        ):
            raise UserError(
                f"data.max_prompt_length={self.max_prompt_length} leaves no room for a response in "
                f"data.max_length={self.max_length}; raise max_length or lower max_prompt_length"
            )


def tokenize_pairs(
    pairs: Iterable[RawPair],
    encoder: PairEncoder,
    limits: Limits,
    *,
    on_bad_pair: str = "error",
    stats: TokenizeStats | None = None,
    problems: list[str] | None = None,
    repeats: Repeats | None = None,
) -> Iterator[TokenizedPair]:
    """Yield tokenised pairs; `stats` and `repeats` fill up while they are consumed.

    Args:
        pairs: see `read_pairs`.
        encoder: tokenizer and template.
        limits: lengths.
        on_bad_pair: "error" or "drop".
        stats: what became of the pairs.
        problems: what is wrong with pairs is appended here instead of being raised.
        repeats: the pairs that were seen.

    Raises:
        UserError: a pair that cannot be encoded, two different end tokens in one data set, or
            anything too long with `mode="error"`.
        TemplateFaultError: no pair can be encoded.
    """
    tally = Tally(on_bad_pair=on_bad_pair, stats=stats, problems=problems, repeats=repeats)
    for pair in pairs:
        outcome, found = encode(pair, encoder, limits)
        if tally.take(outcome, pair.place):
            assert found is not None
            yield found


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one pair, which depends on no other pair."""

    end_token_id: int | None = None
    """The token that its responses end in; None: it was refused before that was known."""
    error: UserError | None = None
    """Why it is left out."""
    keys: tuple[tuple[int, int], ...] | None = None
    """See `pair_keys_of`; None: the limit cut the responses before they differ."""
    other_error: UserError | None = None
    """Of the second of two unpaired rows. The one without an error is kept."""
    prompt_is_cut: bool = False
    responses_cut: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0


class Tally:
    """Counts outcomes in the order of the file, and takes their mistakes."""

    def __init__(
        self,
        *,
        on_bad_pair: str = "error",
        stats: TokenizeStats | None = None,
        problems: list[str] | None = None,
        repeats: Repeats | None = None,
    ) -> None:
        """Begin to count; see `tokenize_pairs`."""
        self._stats = TokenizeStats() if stats is None else stats
        self._repeats = Repeats() if repeats is None else repeats
        self._faults = Faults(on_bad_pair == "drop", self._stats.bad_dropped, problems)

    def take(self, outcome: Outcome, place: str) -> bool:
        """Count a pair; False when it is left out.

        Raises:
            UserError: see `tokenize_pairs`.
        """
        stats, error = self._stats, outcome.error
        if stats.end_token_id is None:
            stats.end_token_id = outcome.end_token_id
        elif outcome.end_token_id not in (None, stats.end_token_id):
            error = UserError(two_ends(place))
        for found in (error, outcome.other_error):
            if found is not None:
                self._faults.take(found)
        if outcome.keys is None and (error or outcome.other_error):
            return False
        if outcome.keys is None:
            stats.identical_after_cut += 1
            return False
        for key, opposite in outcome.keys:
            self._repeats.add_keys(key, opposite, place)
        stats.repeated = self._repeats.repeated
        stats.contradictory = self._repeats.contradictory
        stats.pairs += 1
        stats.prompts_cut += outcome.prompt_is_cut
        stats.responses_cut += outcome.responses_cut
        stats.prompt_tokens += outcome.prompt_tokens
        stats.response_tokens += outcome.response_tokens
        return True


def two_ends(place: str) -> str:
    """What is wrong with a row that ends in another token than those before it."""
    return (
        f"{place}: text and messages end in different tokens with this tokenizer; give all pairs "
        "as text or all as messages"
    )


def no_pair_is_left(path: str | Path, stats: TokenizeStats) -> str:
    """Why there is nothing to train on, after the template and the limits."""
    return (
        f"{path}: no pair is left ({stats.identical_after_cut} became identical when cut to "
        f"data.max_length, {sum(stats.bad_dropped.values())} were bad); raise the limit or "
        "fix the file"
    )


def encode(
    pair: RawPair, encoder: PairEncoder, limits: Limits
) -> tuple[Outcome, TokenizedPair | None]:
    """One pair through the template, cut to size; no pair where it is to be left out."""
    if pair.label is not None:
        return _encode_rows(pair, encoder, limits)
    end = None
    try:
        prompt, *responses = encoder.encode_pair(pair)
        end = encoder.end_token_id(pair)
        short_prompt, chosen, rejected = _cut(pair, prompt, responses, encoder, limits)
    except UserError as error:
        return Outcome(end, error), None
    if chosen.ids == rejected.ids and pair.is_ordered:
        return Outcome(end), None
    keys = (pair_keys(short_prompt, chosen.ids, rejected.ids),)
    outcome = Outcome(
        end,
        # Answers of a group may be alike: they were sampled.
        keys=keys if pair.is_ordered else (),
        prompt_is_cut=short_prompt != prompt,
        responses_cut=(not chosen.complete) + (not rejected.complete),
        prompt_tokens=len(short_prompt),
        response_tokens=len(chosen.ids) + len(rejected.ids),
    )
    return outcome, TokenizedPair(
        pair.id,
        short_prompt,
        chosen,
        rejected,
        pair.chosen_score,
        pair.rejected_score,
        dict(pair.meta),
        pair.weight,
        pair.margin,
    )


def _encode_rows(
    pair: RawPair, encoder: PairEncoder, limits: Limits
) -> tuple[Outcome, TokenizedPair | None]:
    """Two unpaired rows in one place; one that is alone, or whose partner is bad, stands there
    twice with half the weight, so that it counts as every other."""
    rows: list[tuple[RawPair, tuple[int, ...], bool, TokenizedResponse]] = []
    errors: list[UserError | None] = []
    end = None
    for one in (pair, pair.partner):
        if one is None:
            continue
        errors.append(None)
        try:
            prompt, response = encoder.encode_row(one)
            own_end = encoder.end_token_id(one)
            if end not in (None, own_end):
                raise UserError(two_ends(one.place))
            end = own_end
            short, said, _ = _cut(one, prompt, (response, response), encoder, limits)
            rows.append((one, short, short != prompt, said))
        except UserError as error:
            errors[-1] = error
    other_error = errors[1] if len(errors) > 1 else None
    if not rows:
        return Outcome(end, errors[0], other_error=other_error), None
    (first, prompt, _, said), (second, second_prompt, _, other) = rows[0], rows[-1]
    assert first.label is not None
    assert second.label is not None
    alone = len(rows) == 1
    metas = {"first": dict(first.meta), "second": dict(second.meta)}
    found = TokenizedPair(
        first.id if alone else f"{first.id}+{second.id}",
        prompt,
        said,
        other,
        meta=dict(first.meta) if alone else metas if any(metas.values()) else {},
        weight=HALF if alone else 1.0,
        labels=(first.label, second.label),
        second_prompt_ids=second_prompt,
    )
    outcome = Outcome(
        end,
        errors[0],
        keys=tuple(pair_keys_of(found)),
        prompt_is_cut=any(cut for _, _, cut, _ in rows),
        responses_cut=sum(not each.complete for *_, each in rows),
        prompt_tokens=sum(len(each) for _, each, _, _ in rows),
        response_tokens=sum(len(each.ids) for *_, each in rows),
        other_error=other_error,
    )
    return outcome, found


def _cut(
    pair: RawPair,
    prompt: tuple[int, ...],
    responses: Sequence[tuple[int, ...]],
    encoder: PairEncoder,
    limits: Limits,
) -> tuple[tuple[int, ...], TokenizedResponse, TokenizedResponse]:
    where = pair.place
    short_prompt = _cut_prompt(
        prompt, limits, encoder, chat=not isinstance(pair.prompt, str), where=where
    )
    room = None if limits.max_length is None else limits.max_length - len(short_prompt)
    if room is not None and room < 1:
        raise UserError(
            f"{where}: its prompt of {len(short_prompt)} tokens fills data.max_length="
            f"{limits.max_length}; set data.max_prompt_length or raise max_length"
        )
    chosen, rejected = (_cut_response(ids, room, limits, where) for ids in responses)
    return short_prompt, chosen, rejected


def _cut_prompt(
    ids: tuple[int, ...], limits: Limits, encoder: PairEncoder, *, chat: bool, where: str
) -> tuple[int, ...]:
    limit = limits.max_prompt_length
    if limit is None or len(ids) <= limit:
        return ids
    if limits.mode == "error":
        raise UserError(
            f"{where}: the prompt has {len(ids)} tokens, more than data.max_prompt_length={limit}; "
            "raise the limit or set data.truncation_mode"
        )
    if limits.mode == "keep_start":
        if chat:
            raise UserError(
                f"{where}: data.truncation_mode=keep_start would cut the assistant's header off "
                f"this conversation of {len(ids)} tokens; use keep_end or raise "
                "data.max_prompt_length"
            )
        return ids[:limit]
    if ids[0] == encoder.tokenizer.bos_token_id:
        return (ids[0], *ids[len(ids) - limit + 1 :])
    return ids[-limit:]


def _cut_response(
    ids: tuple[int, ...], room: int | None, limits: Limits, where: str
) -> TokenizedResponse:
    if room is None or len(ids) <= room:
        return TokenizedResponse(ids, complete=True)
    if limits.mode == "error":
        raise UserError(
            f"{where}: prompt and response need {len(ids) - room} tokens more than data.max_length="
            f"{limits.max_length}; raise the limit or set data.truncation_mode"
        )
    return TokenizedResponse(ids[:room], complete=False)
