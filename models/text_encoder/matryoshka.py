"""Shorter vectors from models trained to bear it (Kusupati et al. 2022, https://arxiv.org/abs/2205.13147)."""

from __future__ import annotations

import numpy as np

from graph.errors import InvalidInput
from models.text_encoder.protocol import Float32


def shortened(vectors: Float32, dimensions: int) -> Float32:
    """First `dimensions` components of float32 [n, d] vectors, at unit length again; zeros stay zeros.

    Raises InvalidInput for dimensions outside 1..d.
    """
    available = vectors.shape[1]
    if not 1 <= dimensions <= available:
        raise InvalidInput(
            f"dimensions is {dimensions}; this model gives 1 to {available} of them", param="dimensions"
        )
    first = vectors[:, :dimensions]
    norms = np.linalg.norm(first, axis=1, keepdims=True)
    found: Float32 = np.divide(first, norms, out=np.zeros_like(first), where=norms > 0)
    return found
