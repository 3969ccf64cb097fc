"""Small array operations of the incremental state."""

from __future__ import annotations

from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

Float32: TypeAlias = npt.NDArray[np.float32]
Float64: TypeAlias = npt.NDArray[np.float64]
Int64: TypeAlias = npt.NDArray[np.int64]
Matrix: TypeAlias = "sp.csr_matrix[np.float64]"
_Scalar = TypeVar("_Scalar", bound=np.generic)


def power(base: Float64, exponent: float) -> Float64:
    """Power of a non-negative base, zero where the base is zero."""
    positive = base > 0
    return np.where(positive, np.where(positive, base, 1.0) ** exponent, 0.0)


def dense(product: object) -> Float64:
    """A sparse product with a dense factor, which scipy's types leave open."""
    return np.asarray(product, np.float64)


def row_sums(matrix: Matrix) -> Float64:
    """Sums [rows] of a sparse matrix."""
    return np.asarray(matrix.sum(axis=1), np.float64).reshape(-1)


def segment_sums(values: Float32, indptr: Int64) -> Float32:
    """Sums [n] of the n segments of `values` that `indptr` [n+1] bounds."""
    # A sentinel keeps the start of an empty last segment inside the array.
    sums = np.add.reduceat(np.append(values, np.float32(0)), indptr[:-1])
    return np.where(np.diff(indptr) > 0, sums, np.float32(0))


def grown(array: npt.NDArray[_Scalar], used: int, size: int) -> npt.NDArray[_Scalar]:
    """A copy of the first `used` rows with room, zeroed, for `size`."""
    larger = np.zeros((size, *array.shape[1:]), array.dtype)
    larger[:used] = array[:used]
    return larger
