"""The sparse item-item matrix B: entry (j, i) is what having liked item j adds to the score of item i.

`models/ease.py` fits it. Positions are those of the encoder's id table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

MAX_DENSE_ITEMS = 10_000
"""Catalogues up to this size may keep every entry, as one dense array (400 MB at the limit)."""

_BLOCK_FLOATS = 4_000_000


class ItemSimilarity:
    """Immutable, so any number of threads may read it.

    Held by row (what one seen item adds), entries of a row from the greatest to the least; or as one dense
    array where at least a fourth of the entries are there and the catalogue is small enough.

    Args:
        matrix: scipy.sparse matrix or array [n, n]; finite, zeros on the diagonal.

    Raises:
        ValueError: the matrix is not square, not finite, or has something on the diagonal.
    """

    def __init__(self, matrix: Any) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"an item-item matrix is square, this one is {matrix.shape}")
        if matrix.diagonal().any():
            raise ValueError("an item adds nothing to its own score: the diagonal must be zero")
        self.size: int = matrix.shape[0]
        self._dense: Float32 | None = None
        self._indptr: Int64 = np.zeros(1, np.int64)
        self._columns: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        self._values: Float32 = np.zeros(0, np.float32)
        sparse = bool(sp.issparse(matrix))
        if sparse:
            # A copy: the arrays may be a read-only map of a file, and the next lines work in place.
            rows: Any = sp.csr_matrix(matrix.astype(np.float32), copy=True)
            rows.sum_duplicates()
            rows.eliminate_zeros()
            values, count = rows.data, int(rows.nnz)
        else:
            values = np.ascontiguousarray(matrix, np.float32)
            count = int(np.count_nonzero(values))
            rows = None
        if not np.isfinite(values).all():
            raise ValueError("an item-item matrix must be finite")
        self.nnz = count
        """Entries that are not zero."""
        if self.size <= MAX_DENSE_ITEMS and 4 * count >= self.size * self.size:
            self._dense = values if rows is None else rows.toarray()
        else:
            self._by_row(sp.csr_matrix(values) if rows is None else rows)

    def _by_row(self, rows: Any) -> None:
        owner = np.repeat(np.arange(self.size), np.diff(rows.indptr))
        order = np.lexsort((rows.indices, -rows.data, owner))
        self._indptr = rows.indptr.astype(np.int64)
        self._columns = rows.indices[order].astype(np.int32)
        self._values = rows.data[order].astype(np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        if self._dense is not None:
            return self._dense.nbytes
        return self._indptr.nbytes + self._columns.nbytes + self._values.nbytes

    def addends(self, seen_positions: Int64, target_positions: Int64) -> Float32:
        """B[seen, targets], float32 [s, t]; targets are unique. O(s * (t + entries per row))."""
        if self._dense is not None:
            return self._dense[np.ix_(seen_positions, target_positions)]
        result = np.zeros((len(seen_positions), len(target_positions)), np.float32)
        places = np.full(self.size, -1, np.int32)
        places[target_positions] = np.arange(len(target_positions), dtype=np.int32)
        entries, lengths = self._entries(seen_positions)
        columns = places[self._columns[entries]]
        rows = np.repeat(np.arange(len(seen_positions)), lengths)
        wanted = columns >= 0
        result[rows[wanted], columns[wanted]] = self._values[entries][wanted]
        return result

    def scores(self, seen: Int64, targets: Int64) -> Float32:
        """Sums over `seen` of B[seen, targets], float32 [t]. O(s * entries per row + t)."""
        if self._dense is None:
            entries, _ = self._entries(seen)
            sums = np.bincount(self._columns[entries], self._values[entries], minlength=self.size)
            return sums[targets].astype(np.float32)
        if len(targets) * 4 < self.size:
            part: Float32 = self._dense[np.ix_(seen, targets)].sum(0)
            return part
        # Whole rows are contiguous: adding them up is faster than gathering most of their entries.
        whole: Float32 = np.add.reduce(self._dense[seen], 0)
        return whole[targets]

    def neighbours(self, seen: Int64, limit: int) -> Int64:
        """The union of each seen item's `limit` strongest positive targets, ascending int64 positions."""
        if len(seen) == 0 or limit < 1:
            return np.empty(0, np.int64)
        if self._dense is not None:
            rows = self._dense[seen]
            count = min(limit, self.size)
            best = np.argpartition(-rows, count - 1, axis=1)[:, :count]
            return np.unique(best[np.take_along_axis(rows, best, 1) > 0]).astype(np.int64)
        entries, _ = self._entries(seen, limit)
        return np.unique(self._columns[entries][self._values[entries] > 0]).astype(np.int64)

    def product(self, liked: Any) -> Float32:
        """The sums of many users at once: liked scipy.sparse [u, n] -> liked @ B, float32 [u, n]."""
        if self._dense is not None:
            return np.asarray(liked @ self._dense, np.float32)
        matrix = sp.csr_matrix((self._values, self._columns, self._indptr), shape=(self.size, self.size))
        return np.asarray((liked @ matrix).toarray(), np.float32)

    def strongest(self, entries_per_column: int) -> ItemSimilarity:
        """The same with only the entries of greatest magnitude in each target's column."""
        if self._dense is not None:
            return ItemSimilarity(cut_columns(self._dense, entries_per_column))
        rows = np.repeat(np.arange(self.size), np.diff(self._indptr))
        order = np.lexsort((-np.abs(self._values), self._columns))
        columns = self._columns[order]
        kept = order[np.arange(len(order)) - np.searchsorted(columns, columns) < entries_per_column]
        return ItemSimilarity(
            sp.csr_matrix(
                (self._values[kept], (rows[kept], self._columns[kept])), shape=(self.size, self.size)
            )
        )

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays that `from_tensors` turns into an equal matrix."""
        if self._dense is not None:
            return {"dense": self._dense}
        return {"indptr": self._indptr, "columns": self._columns, "values": self._values}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[Any]]) -> ItemSimilarity:
        """Inverse of `tensors`; raises ValueError for arrays that are not such a matrix."""
        if set(tensors) == {"dense"}:
            return cls(np.asarray(tensors["dense"], np.float32))
        if set(tensors) != {"indptr", "columns", "values"}:
            raise ValueError(f"an item-item matrix has indptr, columns and values, not {sorted(tensors)}")
        indptr = np.asarray(tensors["indptr"], np.int64)
        columns = np.asarray(tensors["columns"], np.int32)
        values = np.asarray(tensors["values"], np.float32)
        size = len(indptr) - 1
        if size < 0 or indptr[0] != 0 or (np.diff(indptr) < 0).any() or indptr[-1] != len(columns):
            raise ValueError("indptr must ascend from 0 to the number of entries")
        if len(columns) != len(values) or (len(columns) and not 0 <= columns.min() <= columns.max() < size):
            raise ValueError(f"columns must be one per value and in [0, {size})")
        return cls(sp.csr_matrix((values, columns, indptr), shape=(size, size)))

    def _entries(self, rows: Int64, limit: int | None = None) -> tuple[Int64, Int64]:
        """Places of the entries of `rows`, concatenated, and how many each row has."""
        starts = self._indptr[rows]
        lengths = self._indptr[np.asarray(rows) + 1] - starts
        if limit is not None:
            lengths = np.minimum(lengths, limit)
        offsets = np.cumsum(lengths) - lengths
        return np.arange(lengths.sum()) + np.repeat(starts - offsets, lengths), lengths


def cut_columns(columns: Float32, limit: int) -> Any:
    """Keep the `limit` entries of greatest magnitude in each column: [n, m] -> scipy.sparse CSC [n, m]."""
    size, count = columns.shape
    limit = min(limit, size)
    kept = np.empty((count, limit), np.int32)
    # Some columns at a time, copied so that each lies in one piece: that is where the time goes otherwise.
    width = max(1, _BLOCK_FLOATS // max(1, size))
    for first in range(0, count, width):
        magnitudes = np.ascontiguousarray(columns[:, first : first + width].T)
        np.abs(magnitudes, out=magnitudes)
        kept[first : first + width] = np.argpartition(magnitudes, size - limit, axis=1)[:, size - limit :]
    kept.sort(axis=1)
    rows, owners = kept.ravel(), np.repeat(np.arange(count), limit)
    cut = sp.csc_matrix(
        (columns[rows, owners], rows, np.arange(0, count * limit + 1, limit)), shape=(size, count)
    )
    cut.eliminate_zeros()
    return cut
