"""Pairs that do not belong to the model's vocabulary."""

from __future__ import annotations

import pytest

from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.data.types import TokenizedPair, TokenizedResponse
from nemo_gdpo.errors import UserError
from nemo_gdpo.training.datasets import refuse_tokens_beyond
from tests.support.datasets import dataset_of


def data(prompt: int, chosen: int, rejected: int) -> PreferenceDataset:
    one = TokenizedPair(
        id="pair-7",
        prompt_ids=(1, prompt),
        chosen=TokenizedResponse((chosen, 2), True),
        rejected=TokenizedResponse((rejected, 3, 2), True),
    )
    return dataset_of([one], end_token_id=2, pad_token_id=0)


@pytest.mark.parametrize("ids", [(10, 4, 5), (4, 10, 5), (4, 5, 10)])
def test_a_token_without_an_embedding_is_refused_with_its_pair(ids: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match=r"pairs.jsonl: pair pair-7 has token 10, .* 10 rows"):
        refuse_tokens_beyond(data(*ids), 10, "pairs.jsonl")
    refuse_tokens_beyond(data(*ids), 11, "pairs.jsonl")
