"""The raw pairs of a data set by the key that labels know them by."""

from __future__ import annotations

from nemo_gdpo.data.prepared import is_prepared
from nemo_gdpo.data.readers import read_pairs
from nemo_gdpo.data.types import RawPair
from nemo_gdpo.errors import UserError
from nemo_gdpo.labeling.events import Identity
from nemo_gdpo.labeling.pairs import data_fingerprint, pair_key


def key_of(pair: RawPair) -> str:
    """The pair's key in a ledger."""
    return pair_key(pair.prompt, pair.chosen, pair.rejected)


def keyed_pairs(
    path: str, *, format: str, split: str, on_bad_pair: str
) -> tuple[Identity, dict[str, RawPair]]:
    """What a ledger of these pairs is of, and the first pair with each key, in the file's order.

    Args:
        path: as for `read_pairs`; a prepared directory has no texts.
        format: as for `read_pairs`.
        split: as for `read_pairs`.
        on_bad_pair: as for `read_pairs`.

    Raises:
        UserError: the pairs cannot be read.
    """
    if is_prepared(path):
        raise UserError(
            f"data.train_path={path}: is a prepared directory, which has tokens and no texts; "
            "give the file that it was made of"
        )
    found: dict[str, RawPair] = {}
    for pair in read_pairs(path, format=format, split=split, on_bad_pair=on_bad_pair):
        found.setdefault(key_of(pair), pair)
    return Identity(data_fingerprint(found), len(found), path), found
