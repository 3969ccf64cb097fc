"""Ordering texts by how near they are to a query."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


def by_cosine(query: Float32, documents: Float32, n: int | None = None) -> tuple[Int64, Float32]:
    """Places of the n nearest documents, best first, and their cosines; equal ones in their order.

    query float32 [d], documents float32 [m, d]; neither need be normalised, a zero vector has cosine 0.
    """
    norms = np.linalg.norm(documents, axis=1) * np.linalg.norm(query)
    cosines = np.divide(documents @ query, norms, out=np.zeros(len(documents), np.float32), where=norms > 0)
    order = np.argsort(-cosines, kind="stable")[:n]
    return order, cosines[order]
