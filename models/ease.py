r"""EASE in closed form: the item-item matrix that best rebuilds every user's items from the other ones.

Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data", arXiv:1905.03375. With X [U, n] the binary
matrix of liked items,

    B = argmin ||X - X B||^2 + l2 ||B||^2  with diag(B) = 0;   P = (X'X + l2 I)^-1,  B_ij = -P_ij / P_jj

Only the smaller side is ever inverted: with K = (XX' + l2 I)^-1 [U, U] (Woodbury), P = (I - X'KX) / l2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.sparse as sp

from models.item_similarity import MAX_DENSE_ITEMS, ItemSimilarity, cut_columns

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

MAX_INVERTED = 20_000
"""Rows of the largest matrix inverted: 1.6 GB in float32, some minutes on two cores."""

DEFAULT_CUT = 500
"""Entries per column where all of them would be too many to keep."""

_BLOCK_FLOATS = 16_000_000
_DOUBLE_PRECISION_UP_TO = 4_000


def fit_ease(
    user_rows: Int64,
    item_positions: Int64,
    num_items: int,
    l2: float,
    *,
    entries_per_column: int | None = None,
    max_inverted: int = MAX_INVERTED,
) -> ItemSimilarity:
    """Fit B and cut it.

    Where users and items both outnumber `max_inverted`, only the most liked `max_inverted` items take part;
    the others, which few users have liked, neither give nor receive anything.

    Args:
        user_rows: int64 [e], any ids of the users.
        item_positions: int64 [e], in [0, num_items); each pair at most once.
        num_items: n.
        l2: strength of the penalty, positive, in units of ratings.
        entries_per_column: entries kept per target, the greatest by magnitude; None keeps all up to 10,000
            items and 500 per column beyond.

    Complexity: O(min(U, n)^3 + entries * n) time, O(min(U, n)^2 + n * entries_per_column) memory.
    """
    liked = liked_matrix(user_rows, item_positions, num_items)
    if entries_per_column is None and num_items > MAX_DENSE_ITEMS:
        entries_per_column = DEFAULT_CUT
    if min(liked.shape) <= max_inverted:
        return ItemSimilarity(_solve(liked, l2, entries_per_column))
    counts = np.asarray(liked.sum(0)).ravel()
    chosen = np.sort(np.argsort(-counts, kind="stable")[:max_inverted])
    inner = sp.coo_matrix(_solve(liked[:, chosen], l2, entries_per_column or DEFAULT_CUT))
    return ItemSimilarity(
        sp.csr_matrix((inner.data, (chosen[inner.row], chosen[inner.col])), shape=(num_items, num_items))
    )


def ease_scores(liked: Any, l2: float) -> Float32:
    """The product liked @ B for the uncut B fitted on `liked` itself, without building B.

    Far cheaper than `fit_ease` where users are fewer than items; meant for choosing `l2`. Scores of items a
    user has liked are not comparable with those of other items. float32 [U, n].
    """
    num_users, num_items = liked.shape
    if num_users < num_items:
        # By the push-through identity X P = K X, hence X B = X - K X / diag(P).
        kx = _kernel_product(liked, l2)
        leverage = np.asarray(liked.multiply(kx).sum(0), np.float64).ravel()
        scores = kx / ((leverage - 1) / l2).astype(np.float32)
        result: Float32 = scores.astype(np.float32, copy=False) + liked.toarray()
        return result
    return np.asarray(liked @ _solve(liked, l2, None), np.float32)


def liked_matrix(user_rows: Int64, item_positions: Int64, num_items: int) -> Any:
    """X as scipy.sparse CSR float32 [distinct users, n], users in ascending order of their ids."""
    users, rows = np.unique(user_rows, return_inverse=True)
    ones = np.ones(len(rows), np.float32)
    return sp.csr_matrix((ones, (rows, item_positions)), shape=(len(users), num_items))


def _solve(liked: Any, l2: float, entries_per_column: int | None) -> Any:
    """B [n, n], dense if uncut and sparse otherwise."""
    if not l2 > 0:
        raise ValueError(f"l2 is {l2}, must be positive")
    num_users, num_items = liked.shape
    if num_users < num_items:
        return _in_blocks(liked, _kernel_product(liked, l2), entries_per_column)
    gram = _full((liked.T @ liked), num_items)
    gram[np.diag_indices(num_items)] += l2
    inverse = _inverse(gram)
    inverse /= -np.diag(inverse).copy()
    np.fill_diagonal(inverse, 0)
    dense = inverse.astype(np.float32, copy=False)
    return dense if entries_per_column is None else cut_columns(dense, entries_per_column)


def _kernel_product(liked: Any, l2: float) -> Float32:
    """KX, float32 [U, n]."""
    num_users = liked.shape[0]
    gram = _full((liked @ liked.T), num_users)
    gram[np.diag_indices(num_users)] += l2
    return np.ascontiguousarray((liked.T @ _inverse(gram).astype(np.float32, copy=False)).T)


def _in_blocks(liked: Any, kx: Float32, entries_per_column: int | None) -> Any:
    """B = X'KX / (1 - diag(X'KX)) off the diagonal, by blocks of columns so that memory stays bounded."""
    num_items = liked.shape[1]
    transposed = liked.T.tocsr()
    whole = np.empty((num_items, num_items), np.float32) if entries_per_column is None else None
    blocks = []
    width = max(1, _BLOCK_FLOATS // num_items)
    for first in range(0, num_items, width):
        last = min(first + width, num_items)
        block = transposed @ np.ascontiguousarray(kx[:, first:last])  # [n, width]
        own = (np.arange(first, last), np.arange(last - first))
        block /= 1 - block[own]
        block[own] = 0
        if whole is None:
            blocks.append(cut_columns(block, entries_per_column or DEFAULT_CUT))
        else:
            whole[:, first:last] = block
    return sp.hstack(blocks, "csr") if whole is None else whole


def _full(product: Any, size: int) -> npt.NDArray[Any]:
    # Up to here float64 costs nothing that matters; beyond, its memory would.
    dtype = np.float64 if size <= _DOUBLE_PRECISION_UP_TO else np.float32
    result: npt.NDArray[Any] = product.toarray().astype(dtype, copy=False)
    return result


def _inverse(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Inverse of a symmetric positive definite matrix, by Cholesky; overwrites `matrix`."""
    routines: Any = scipy.linalg.get_lapack_funcs(("potrf", "potri"), (matrix,))
    factor, invert = routines
    lower, failed = factor(matrix, lower=True, overwrite_a=True, clean=False)
    if not failed:
        lower, failed = invert(lower, lower=True, overwrite_c=True)
    if failed:
        raise ValueError(f"the matrix of {len(matrix)} rows is not positive definite: use a larger l2")
    lower = np.tril(lower)
    lower += np.tril(lower, -1).T
    result: npt.NDArray[Any] = lower
    return result
