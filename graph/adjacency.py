"""Growable adjacency: for every row, a segment of neighbour keys and values in one pool.

A segment keeps a little room. When it is full it moves to a free segment of the next size class, so one more
edge costs O(degree) at most and nothing is ever rebuilt. Sizes come from one geometric series, so the
segment that one row leaves is what another row of that degree grows into.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

_Scalar = TypeVar("_Scalar", bound=np.generic)

_GROWTH = 1.125


def _size_classes() -> Int64:
    sizes = [1, 2, 3, 4, 6, 8]
    while sizes[-1] < 2**31 - 1:
        sizes.append(min(max(sizes[-1] + 2, int(sizes[-1] * _GROWTH)), 2**31 - 1))
    return np.array(sizes, np.int64)


_CLASSES = _size_classes()


def _capacity_for(length: npt.NDArray[np.int64] | int) -> Int64:
    """Smallest size class that holds `length`; zero stays zero."""
    wanted = np.asarray(length, np.int64)
    return np.where(wanted == 0, 0, _CLASSES[np.searchsorted(_CLASSES, np.maximum(wanted, 1))])


class Adjacency:
    """Neighbours of rows, in insertion order, with one int32 key and any number of value columns per edge.

    Slices returned are views into the pool: valid until the next mutation, never to be written to.
    """

    def __init__(self, columns: Mapping[str, npt.DTypeLike]) -> None:
        self._keys: Int32 = np.empty(0, np.int32)
        self._columns = {name: np.empty(0, dtype) for name, dtype in columns.items()}
        self._used = 0
        self._free: dict[int, list[int]] = defaultdict(list)
        self._start: Int64 = np.zeros(0, np.int64)
        self._length: Int32 = np.zeros(0, np.int32)
        self._capacity: Int32 = np.zeros(0, np.int32)
        self._rows = 0
        self.num_edges = 0

    @classmethod
    def from_csr(
        cls, indptr: Int64, keys: Int32, columns: Mapping[str, npt.NDArray[np.generic]]
    ) -> Adjacency:
        """Adopt a CSR layout as it stands (arrays may be memory maps opened copy-on-write)."""
        self = cls({name: column.dtype for name, column in columns.items()})
        self._keys, self._columns = keys, dict(columns)
        self._used = self.num_edges = len(keys)
        self._rows = len(indptr) - 1
        self._start = np.array(indptr[:-1], np.int64)
        self._length = np.diff(indptr).astype(np.int32)
        self._capacity = self._length.copy()
        return self

    # ------------------------------------------------------------------------------------------- reading

    @property
    def num_rows(self) -> int:
        return self._rows

    @property
    def degrees(self) -> Int32:
        """Number of neighbours of every row, int32 [num_rows]; a view."""
        return self._length[: self._rows]

    def degree(self, row: int) -> int:
        return int(self._length[row])

    def keys(self, row: int) -> Int32:
        start = self._start[row]
        return self._keys[start : start + self._length[row]]

    def column(self, name: str, row: int) -> npt.NDArray[np.generic]:
        start = self._start[row]
        return self._columns[name][start : start + self._length[row]]

    def position(self, row: int, key: int) -> int | None:
        """Place of `key` among the neighbours of `row`, or None. O(degree)."""
        keys = self.keys(row)
        if len(keys) == 0:
            return None
        match = keys == key
        place = int(match.argmax())
        return place if match[place] else None

    def gather(self, rows: Int64) -> tuple[Int64, Int32, dict[str, npt.NDArray[np.generic]]]:
        """The neighbours of several rows as compact copies: indptr [len(rows)+1], keys [edges], columns.

        O(len(rows) + edges).
        """
        lengths = self._length[rows]
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=indptr[1:])
        places = np.repeat(self._start[rows] - indptr[:-1], lengths)
        places += np.arange(len(places))
        return indptr, self._keys[places], {name: c[places] for name, c in self._columns.items()}

    def csr(self) -> tuple[Int64, Int32, dict[str, npt.NDArray[np.generic]]]:
        """Everything as compact copies: indptr [rows+1], keys [edges], columns. O(edges)."""
        return self.gather(np.arange(self._rows))

    @property
    def nbytes(self) -> int:
        """Bytes held: the pool with its slack, and the row headers."""
        pool = self._keys.nbytes + sum(c.nbytes for c in self._columns.values())
        return pool + self._start.nbytes + self._length.nbytes + self._capacity.nbytes

    # ------------------------------------------------------------------------------------------- writing

    def ensure_rows(self, count: int) -> None:
        """Make rows `0..count-1` addressable."""
        if count > len(self._start):
            size = max(count, int(len(self._start) * _GROWTH) + 16)
            self._start = _grown(self._start, self._rows, size)
            self._length = _grown(self._length, self._rows, size)
            self._capacity = _grown(self._capacity, self._rows, size)
        self._rows = max(self._rows, count)

    def upsert(
        self, row: int, keys: Int32, values: Mapping[str, npt.NDArray[np.generic]]
    ) -> npt.NDArray[np.int64]:
        """Set the values of distinct `keys` under `row`, appending keys not there yet.

        Returns the place of each key before the call, -1 where it was new. O(degree + len(keys)).
        """
        places = _places(self.keys(row), keys)
        new = places < 0
        added = int(new.sum())
        length = int(self._length[row])
        if length + added > self._capacity[row]:
            self._move(row, length + added)
        start = int(self._start[row])
        target = np.where(new, length + np.cumsum(new) - 1, places) + start
        self._keys[target] = keys
        for name, column in self._columns.items():
            column[target] = values[name]
        self._length[row] = length + added
        self.num_edges += added
        return places

    def put(self, row: int, key: int, values: Mapping[str, float]) -> dict[str, float] | None:
        """Set the values of one key; what `upsert` does, an order of magnitude faster.

        Returns the values before, None where the key was new. O(degree).
        """
        place = self.position(row, key)
        if place is not None:
            at = int(self._start[row]) + place
            before = {name: column.item(at) for name, column in self._columns.items()}
        else:
            before, length = None, int(self._length[row])
            if length == self._capacity[row]:
                self._move(row, length + 1)
            at = int(self._start[row]) + length
            self._keys[at] = key
            self._length[row] = length + 1
            self.num_edges += 1
        for name, column in self._columns.items():
            column[at] = values[name]
        return before

    def drop(self, row: int, key: int) -> dict[str, float] | None:
        """Drop one key, keeping the order of the rest.

        Returns the values before, None where the key was not there. O(degree).
        """
        place = self.position(row, key)
        if place is None:
            return None
        start, length = int(self._start[row]), int(self._length[row])
        at, end = start + place, start + length
        before = {name: column.item(at) for name, column in self._columns.items()}
        for pool in (self._keys, *self._columns.values()):
            pool[at : end - 1] = pool[at + 1 : end]
        self._length[row] = length - 1
        self.num_edges -= 1
        if length == 1:
            self._release(row)
        return before

    def discard(self, row: int, keys: Int32) -> npt.NDArray[np.int64]:
        """Drop `keys` from `row`, keeping the order of the rest.

        Returns the place of each key before the call, -1 where it was not there. O(degree + len(keys)).
        """
        places = _places(self.keys(row), keys)
        gone = places[places >= 0]
        if len(gone):
            start, length = int(self._start[row]), int(self._length[row])
            keep = np.ones(length, bool)
            keep[gone] = False
            left = length - len(gone)
            for pool in (self._keys, *self._columns.values()):
                pool[start : start + left] = pool[start : start + length][keep]
            self._length[row] = left
            self.num_edges -= len(gone)
            if left == 0:
                self._release(row)
        return places

    # ------------------------------------------------------------------------------------------ the pool

    def _move(self, row: int, length: int) -> None:
        capacity = int(_capacity_for(length))
        spare = self._free.get(capacity)
        target = spare.pop() if spare else self._extend(capacity)
        start, used = int(self._start[row]), int(self._length[row])
        for pool in (self._keys, *self._columns.values()):
            pool[target : target + used] = pool[start : start + used]
        self._release(row)
        self._start[row], self._capacity[row] = target, capacity

    def _release(self, row: int) -> None:
        capacity, start = int(self._capacity[row]), int(self._start[row])
        # Segments adopted from a CSR layout may lie between classes: file them under the one they can serve.
        place = int(np.searchsorted(_CLASSES, capacity, side="right")) - 1
        if place >= 0:
            self._free[int(_CLASSES[place])].append(start)
        self._start[row] = self._capacity[row] = 0

    def _extend(self, capacity: int) -> int:
        start, needed = self._used, self._used + capacity
        if needed > len(self._keys):
            size = max(needed, int(len(self._keys) * _GROWTH) + 64)
            self._keys = _grown(self._keys, self._used, size)
            self._columns = {n: _grown(c, self._used, size) for n, c in self._columns.items()}
        self._used = needed
        return start


def _grown(array: npt.NDArray[_Scalar], used: int, size: int) -> npt.NDArray[_Scalar]:
    larger = np.zeros(size, array.dtype)
    larger[:used] = array[:used]
    return larger


def _places(present: Int32, keys: Int32) -> Int64:
    """Place of each key in `present`, -1 where absent."""
    if len(keys) == 1:
        found = np.flatnonzero(present == keys[0])
        return found[:1] if len(found) else np.array([-1])
    if len(present) == 0:
        return np.full(len(keys), -1, np.int64)
    order = np.argsort(present, kind="stable")
    nearest = np.minimum(np.searchsorted(present, keys, sorter=order), len(present) - 1)
    candidates = order[nearest]
    return np.where(present[candidates] == keys, candidates, -1)
