"""What ranking knows about each item, by item row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from graph.errors import UnknownItem
from models.vector_index import VectorIndex, VectorSearch

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


class ItemTable:
    """Vectors, bias, degree and place in the encoder's id table of each item of one encoder generation.

    The index holds target vectors with the bias as one more dimension, where queries have 1. The other
    columns are indexed by row. Rows are never reused; like the graph's view, the columns keep the places of
    deleted items.

    `num_positions` is the size of the id table, None if nothing needs to know.

    No locking of its own: the ranker, which owns it, serialises mutation against everything else.
    """

    def __init__(self, dim: int, num_positions: int | None, index: VectorSearch | None = None) -> None:
        self.dim = dim
        self.index: VectorSearch = VectorIndex(dim + 1) if index is None else index
        self.source = np.zeros((0, dim), np.float32)  # [rows, D]
        self.degree = np.zeros(0, np.float32)  # [rows]
        self.position = np.full(0, -1, np.int64)  # [rows], in the encoder's id table, -1: not in it
        self.inverse_norm = np.zeros(0, np.float32)  # [rows], of the target without bias; 0 for a zero vector
        self.num_positions = num_positions
        self.row_of = np.full(num_positions or 0, -1, np.int64)  # [positions]: the live row, -1 for none

    def __len__(self) -> int:
        return len(self.index)

    def upsert(
        self,
        rows: Int64,
        source: Float32,
        target: Float32,
        bias: Float32,
        degree: npt.ArrayLike,
        positions: Int64,
    ) -> None:
        """Add or replace items; raises ValueError, with nothing changed, for arrays that do not fit."""
        rows, positions = np.asarray(rows, np.int64), np.asarray(positions, np.int64)
        source, target = np.asarray(source, np.float32), np.asarray(target, np.float32)
        bias, degree = np.asarray(bias, np.float32), np.asarray(degree, np.float32)
        count = len(rows)
        shapes = [array.shape for array in (rows, source, target, bias, degree, positions)]
        if shapes != [(count,), (count, self.dim), (count, self.dim), (count,), (count,), (count,)]:
            raise ValueError(f"shapes {shapes} do not fit {count} items of {self.dim} dimensions")
        if not np.isfinite(source).all():
            raise ValueError("source vectors must be finite")
        if count == 0:
            return
        last = int(positions.max())
        if self.num_positions is not None and last >= self.num_positions:
            raise ValueError(f"position {last} is outside an id table of {self.num_positions}")
        self.index.upsert(rows, np.column_stack([target, bias]))
        self._reserve(int(rows.max()) + 1)
        if last >= len(self.row_of):
            self.row_of = np.concatenate([self.row_of, np.full(last + 1 + last // 2, -1, np.int64)])
        self._forget_positions(rows)
        norm = np.linalg.norm(target, axis=1)
        self.source[rows] = source
        self.degree[rows] = degree
        self.position[rows] = positions
        self.inverse_norm[rows] = np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0)
        known = positions >= 0
        # An item created again under its id takes the place of the row before, if that is still here.
        before = self.row_of[positions[known]]
        self.position[before[before >= 0]] = -1
        self.row_of[positions[known]] = rows[known]

    def remove(self, rows: Int64) -> int:
        """Forget items; unknown rows are ignored. Returns how many there were."""
        rows = np.asarray(rows, np.int64)
        rows = rows[(rows >= 0) & (rows < len(self.position))]
        self._forget_positions(rows)
        return self.index.remove(rows)

    def vectors(self, rows: Int64) -> tuple[Float32, Float32, Float32]:
        """Copies of source [m, D], target [m, D] and bias [m]; raises UnknownItem."""
        rows = np.asarray(rows, np.int64)
        slots = self.index.slots(rows)
        if (slots < 0).any():
            raise UnknownItem(f"item row {int(rows[slots < 0][0])} has no vector here")
        found = self.index.dense()[1][slots]
        return self.source[rows], found[:, :-1].copy(), found[:, -1].copy()

    def known_slots(self, rows: Int64) -> Int64:
        """Slots of the rows that are here, ascending, without duplicates."""
        slots = np.unique(self.index.slots(rows))
        return slots[np.searchsorted(slots, 0) :]

    def _reserve(self, length: int) -> None:
        if length <= len(self.position):
            return
        length = max(length, len(self.position) * 3 // 2)
        for name, fill in (("source", 0), ("degree", 0), ("position", -1), ("inverse_norm", 0)):
            old = getattr(self, name)
            grown = np.full((length, *old.shape[1:]), fill, old.dtype)
            grown[: len(old)] = old
            setattr(self, name, grown)

    def _forget_positions(self, rows: Int64) -> None:
        """Detach rows from the id table. A row with a position is always the one its position points to."""
        positions = self.position[rows]
        self.row_of[positions[positions >= 0]] = -1
        self.position[rows] = -1
