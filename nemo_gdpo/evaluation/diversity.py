"""Diversity of K responses to one prompt. A degenerate model maximises every figure here: always
report quality beside them.

Shapes: K responses, D embedding dimensions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def semantic_diversity(embeddings_KD: npt.ArrayLike) -> float:
    """1 - mean cosine over all pairs of different responses (Kwon et al. 2024, diversity metric).

    Args:
        embeddings_KD: one vector a response, of any length but zero.

    Returns:
        0 when all responses point the same way; about 1 when they have nothing in common.

    Raises:
        ValueError: fewer than two responses, or a vector that is zero or not finite.
    """
    vectors = np.asarray(embeddings_KD, dtype=np.float64)
    if vectors.ndim != 2 or vectors.shape[0] < 2:
        raise ValueError(f"need embeddings [K >= 2, D], got shape {vectors.shape}")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or (norms == 0).any():
        raise ValueError("an embedding is zero or not finite, so its cosine is not defined")
    unit = vectors / norms
    count = unit.shape[0]
    cosine_KK = unit @ unit.T
    off_diagonal = cosine_KK.sum() - np.trace(cosine_KK)
    return float(1.0 - off_diagonal / (count * (count - 1)))
