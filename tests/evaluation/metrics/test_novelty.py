"""NoveltyBench's partition, distinct_k and utility_k."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.metrics.diversity import distinct_k, utility_k
from nemo_gdpo.evaluation.metrics.novelty import (
    PairClassifier,
    by_classifier,
    by_cosine,
    partition,
    short_answers_equal,
    utility_score,
)

LONG = ["one two three four five six", "six five four three two one", "a b c d e f"]


def save_classifier(directory: Path, *, labels: int = 2) -> Path:
    """A tiny BERT over some words, with cls and sep."""
    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", *sorted(set(" ".join(LONG).split()))]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(directory)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=300,
        num_labels=labels,
        initializer_range=0.5,
        pad_token_id=3,
    )
    BertForSequenceClassification(config).save_pretrained(directory)
    return directory


def test_only_the_first_member_of_a_class_is_asked() -> None:
    """Neighbours are equivalent: 0-1, 1-2, 2-3, 3-4. Every third one opens a class... and 2 is
    compared with 0, not with 1, so it opens one, too."""
    asked = []

    def near(index: int, head: int) -> bool:
        asked.append((index, head))
        return abs(index - head) == 1

    assert partition(5, near) == [0, 0, 1, 1, 2]
    assert asked == [(1, 0), (2, 0), (3, 0), (3, 2), (4, 0), (4, 2)]


def test_the_order_of_responses_matters() -> None:
    values = [1, 0, 2]
    assert partition(3, lambda i, h: abs(values[i] - values[h]) == 1) == [0, 0, 0]
    values = [0, 1, 2]
    assert partition(3, lambda i, h: abs(values[i] - values[h]) == 1) == [0, 0, 1]


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ("Paris", "paris", True),
        ("Paris", "London", False),
        ("the red car", "the blue car", True),  # 2 of 3 words
        ("a b c d", "a b x y", True),  # exactly half
        ("a b c d e", "a b x y z", False),  # 2 of 5
        ("", "", True),
        ("", "yes", False),
        ("one two three four five six", "one", None),
    ],
)
def test_short_answers(first: str, second: str, equal: bool | None) -> None:
    assert short_answers_equal(first, second) is equal
    assert short_answers_equal(second, first) is equal


def test_long_answers_go_by_the_cosine_and_short_ones_by_words() -> None:
    responses = [*LONG, "yes", "no"]
    cosine = np.full((5, 5), 0.9)
    cosine[0, 2] = cosine[2, 0] = 0.79
    # yes and no have a high cosine, and no word in common.
    assert partition(5, by_cosine(responses, cosine, 0.8)) == [0, 0, 1, 0, 0]
    assert partition(2, by_cosine(["yes", "no"], cosine, 0.8)) == [0, 1]
    assert partition(2, by_cosine(LONG, cosine, 0.9)) == [0, 0]


def test_threshold_of_the_classifier() -> None:
    scores = {(LONG[1], LONG[0]): 0.103, (LONG[2], LONG[0]): 0.102}
    equivalent = by_classifier(LONG, lambda a, b: scores[a, b])
    assert partition(3, equivalent) == [0, 0, 1]


def test_classifier_against_transformers(tmp_path: Path) -> None:
    directory = save_classifier(tmp_path)
    classifier = PairClassifier(directory, torch.device("cpu"))
    model = BertForSequenceClassification.from_pretrained(directory).eval()
    vocabulary = PreTrainedTokenizerFast.from_pretrained(directory).get_vocab()
    first, second = ([vocabulary[w] for w in text.split()] for text in LONG[:2])
    ids = [1, *first, 2, *second, 2]
    kinds = [0] * 8 + [1] * 7
    with torch.no_grad():
        logits = model(torch.tensor([ids]), token_type_ids=torch.tensor([kinds])).logits
        other = model(torch.tensor([ids])).logits
    assert classifier(*LONG[:2]) == pytest.approx(float(logits.softmax(-1)[0, 1]), abs=1e-6)
    assert classifier(*LONG[:2]) != pytest.approx(float(other.softmax(-1)[0, 1]), abs=1e-4)
    assert classifier(*LONG[:2]) != pytest.approx(classifier(LONG[1], LONG[0]), abs=1e-4)
    # 128 tokens of each are seen.
    assert classifier("a " * 128 + "b", "c") == classifier("a " * 128, "c")
    assert classifier("a " * 127 + "b", "c") != classifier("a " * 128, "c")


def test_a_classifier_of_three_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 labels instead of 2"):
        PairClassifier(save_classifier(tmp_path, labels=3), torch.device("cpu"))


# --- distinct_k and utility_k ---------------------------------------------------------------


def test_utility_by_hand() -> None:
    """(7 + 0.64 x 5) / (1 + 0.8 + 0.64 + 0.512), the second and the fourth repeat a class."""
    assert utility_k([7, 3, 5, 9], [0, 0, 1, 0]) == pytest.approx(3.455285, abs=1e-6)
    assert distinct_k([0, 0, 1, 0]) == 2


def test_utility_of_all_different_is_a_weighted_mean() -> None:
    assert utility_k([6.0] * 10, range(10)) == pytest.approx(6.0)
    assert utility_k([1.0, 3.0], [4, 2], patience=0.5) == pytest.approx(2.5 / 1.5)


@pytest.mark.parametrize(
    ("scores", "classes", "patience"),
    [([], [], 0.8), ([1.0], [0, 1], 0.8), ([1.0], [0], 1.0), ([1.0], [0], 0.0)],
)
def test_utility_refuses(scores: list[float], classes: list[int], patience: float) -> None:
    with pytest.raises(ValueError, match=r"scores|patience"):
        utility_k(scores, classes, patience)


def test_no_response_has_no_classes() -> None:
    with pytest.raises(ValueError, match="no response"):
        distinct_k([])


def test_rewards_on_the_scale_of_one_to_ten() -> None:
    thresholds = [-0.8, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8]
    found = [utility_score(v, thresholds) for v in (-1.0, -0.8, -0.79, 0.0, 0.01, 0.8, 0.81)]
    assert found == [1, 1, 2, 5, 6, 9, 10]
