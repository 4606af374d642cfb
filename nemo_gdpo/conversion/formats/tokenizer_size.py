"""The number of embedding rows that a tokenizer needs, read from its files without running it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.model_config import read_json_object
from nemo_gdpo.errors import UserError


def _of_vocabulary(vocabulary: Any) -> Iterator[tuple[int, str]]:
    match vocabulary:
        case dict():
            yield from ((number, token) for token, number in vocabulary.items())
        case list():  # Unigram: [piece, score] in the order of the ids
            yield from ((number, str(piece[0])) for number, piece in enumerate(vocabulary))


def _of_tokenizer_json(values: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    yield from _of_vocabulary((values.get("model") or {}).get("vocab"))
    for token in values.get("added_tokens") or []:
        yield token["id"], token["content"]


def sentencepiece_size(path: Path) -> int:
    """Number of pieces of a SentencePiece model.

    Raises:
        UserError: it cannot be read.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        return int(SentencePieceProcessor(model_file=str(path)).get_piece_size())
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as a SentencePiece model ({error})") from None


def last_token(assets: Path, foreign: Collection[str] = frozenset()) -> tuple[int, str] | None:
    """The largest token id of a model directory and its token; None if it has no tokenizer.

    Args:
        assets: the directory.
        foreign: tokens that do not count.

    Raises:
        UserError: a file of the tokenizer cannot be read.
    """
    path = assets / "tokenizer.json"
    try:
        if path.is_file():
            found = list(_of_tokenizer_json(read_json_object(path)))
        else:
            path = assets / "vocab.json"
            found = list(_of_vocabulary(read_json_object(path))) if path.is_file() else []
            path = assets / "tokenizer.model"
            if path.is_file():
                found.append((sentencepiece_size(path) - 1, "the last piece"))
            path = assets / "added_tokens.json"
            if path.is_file():
                found += _of_vocabulary(read_json_object(path))
        return max((one for one in found if one[1] not in foreign), default=None)
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path} is not the file of a tokenizer ({type(error).__name__}: {error}); restore it"
        ) from None


def check_tokenizer_fits(assets: Path, bridge: ModelBridge) -> None:
    """Refuse a tokenizer with tokens that the embedding has no rows for; none at all is fine.

    Tokens of parts that the family lacks (`Family.foreign_tokens`) are let through: nothing can be
    made of them, and data that has one is refused.

    Raises:
        UserError: it has, or cannot be read.
    """
    last = last_token(assets, bridge.family.foreign_tokens)
    if last is not None and last[0] >= bridge.config.vocab_size:
        raise UserError(
            f"{assets}: the tokenizer has {last[0] + 1} tokens (the last is {last[1]!r}), the "
            f"embedding only {bridge.config.vocab_size} rows; put the tokenizer of these weights "
            "there, or remove the tokens that are too many"
        )
