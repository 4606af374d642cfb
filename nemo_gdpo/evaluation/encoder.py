"""Sentence embeddings by mean pooling, from a local directory of a BERT-like encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch


def embed(
    texts: Sequence[str], model_dir: Path, *, batch_size: int = 32
) -> npt.NDArray[np.float32]:
    """Embed texts as sentence-transformers' all-MiniLM and all-mpnet models do.

    Mean of the last hidden states over the real tokens; vectors are not normalised.

    Args:
        texts: T of them.
        model_dir: a Hugging Face directory with safetensors weights.
        batch_size: texts a forward pass.

    Returns:
        [T, D].
    """
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModel.from_pretrained(model_dir, use_safetensors=True).eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(texts), batch_size):
            chunk = list(texts[start : start + batch_size])
            batch = tokenizer(
                chunk, padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            parts.append(((hidden * mask).sum(1) / mask.sum(1)).float().numpy())
    return np.concatenate(parts)
