"""Text vectors of a view: one dense table per kind of node and text model, indexed by row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from graph.adjacency import Int64
from graph.errors import InvalidInput
from graph.node_text import DIGEST_BYTES
from graph.schema import TextKind, TextVector

Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
UInt8 = npt.NDArray[np.uint8]

_Scalar = TypeVar("_Scalar", bound=np.generic)

_GROWTH = 1.25
"""Room kept beyond the highest row, as a factor: nodes get their vectors roughly in the order of rows."""


def packed(vector: Float32) -> bytes:
    """A vector [d] as rows hold it: float16, little-endian. Raises InvalidInput for what does not fit."""
    with np.errstate(over="ignore"):
        small = vector.astype("<f2")
    if not np.isfinite(small).all():
        raise InvalidInput("the text model gave a vector that is not finite as float16")
    return small.tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class TextVectorArrays:
    """The vectors of one table as plain data, in ascending order of rows."""

    kind: TextKind
    model: str
    rows: Int64  # [n]
    vectors: Float16  # [n, d]
    digests: UInt8  # [n, 16], of the texts


class TextVectorTable:
    """Vectors of nodes of one kind under one model.

    A table that loses its last vector is forgotten by its view, so ask the view anew after each apply.
    """

    def __init__(self) -> None:
        self._clear(0)

    def __len__(self) -> int:
        """Rows that have a vector."""
        return self._count

    @property
    def dim(self) -> int:
        """Length of a vector; 0 in a table that never held one."""
        return int(self._vectors.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes held, room for further rows included."""
        return self._vectors.nbytes + self._digests.nbytes + self._present.nbytes

    def rows(self) -> Int64:
        """Rows that have a vector, ascending; a copy. O(rows)."""
        return np.flatnonzero(self._present).astype(np.int64, copy=False)

    def get(self, rows: Int64) -> tuple[Float32, BoolArray]:
        """Vectors of `rows`, float32 [n, d], and which rows have one, bool [n]; the others are zero.

        Any row may be asked for, also one that no node ever had. Copies.
        """
        rows = np.asarray(rows, np.int64)
        found = self._has(rows)
        if found.all():
            return self._vectors[rows].astype(np.float32), found
        vectors = np.zeros((len(rows), self.dim), np.float32)
        vectors[found] = self._vectors[rows[found]]
        return vectors, found

    def vector(self, row: int) -> Float32 | None:
        """The vector of one row, float32 [d], a copy; None when it has none."""
        return self._vectors[row].astype(np.float32) if row in self else None

    def digest(self, row: int) -> str | None:
        """Digest of the text that the row's vector was made from; None when it has none."""
        return self._digests[row].tobytes().hex() if row in self else None

    def raw(self, row: int) -> bytes | None:
        """The vector as it is stored, float16 little-endian; None when the row has none."""
        return self._vectors[row].astype("<f2", copy=False).tobytes() if row in self else None

    def outdated(self, rows: Int64, digests: UInt8) -> BoolArray:
        """Which of `rows` [n] have no vector or one of another text than `digests` [n, 16] say, bool [n]."""
        current = self._has(rows)
        current[current] = (self._digests[rows[current]] == digests[current]).all(axis=1)
        return ~current

    def __contains__(self, row: int) -> bool:
        return 0 <= row < len(self._present) and bool(self._present[row])

    def put(self, rows: Int64, vectors: Float16, digests: UInt8) -> None:
        """Set the vectors [n, d] of distinct `rows` [n], made from texts of `digests` [n, 16].

        Vectors of another length than the table's replace all of them: the writer refuses to mix lengths, so
        one of another length proves that those before are gone.
        """
        if vectors.shape[1] != self.dim:
            self._clear(int(vectors.shape[1]))
        if len(rows) == 0:
            return
        self._reserve(int(rows.max()) + 1)
        self._count += len(rows) - int(np.count_nonzero(self._present[rows]))
        self._vectors[rows] = vectors
        self._digests[rows] = digests
        self._present[rows] = True

    def discard(self, rows: Int64) -> None:
        """Remove the vectors of distinct `rows`, where there are any."""
        rows = rows[self._has(rows)]
        self._vectors[rows] = 0
        self._digests[rows] = 0
        self._present[rows] = False
        self._count -= len(rows)

    def _clear(self, dim: int) -> None:
        self._vectors: Float16 = np.zeros((0, dim), np.float16)
        self._digests: UInt8 = np.zeros((0, DIGEST_BYTES), np.uint8)
        self._present: BoolArray = np.zeros(0, np.bool_)
        self._count = 0

    def _has(self, rows: Int64) -> BoolArray:
        found = (rows >= 0) & (rows < len(self._present))
        found[found] = self._present[rows[found]]
        return found

    def _reserve(self, count: int) -> None:
        if count <= len(self._present):
            return
        room = max(count, int(_GROWTH * len(self._present)))
        self._vectors = _grown(self._vectors, room)
        self._digests = _grown(self._digests, room)
        self._present = _grown(self._present, room)


class TextVectors:
    """All tables of a view."""

    def __init__(self, contents: Iterable[TextVectorArrays] = ()) -> None:
        self._tables: dict[tuple[TextKind, str], TextVectorTable] = {}
        for arrays in contents:
            table = self._tables[arrays.kind, arrays.model] = TextVectorTable()
            table.put(arrays.rows, arrays.vectors, arrays.digests)

    def __len__(self) -> int:
        return sum(len(table) for table in self._tables.values())

    @property
    def nbytes(self) -> int:
        return sum(table.nbytes for table in self._tables.values())

    def table(self, kind: TextKind, model: str) -> TextVectorTable:
        """The table of that kind and model; an empty one of dimension 0 when nothing has a vector."""
        return self._tables.get((kind, model), TextVectorTable())

    def models(self, kind: TextKind) -> tuple[str, ...]:
        """Models under which at least one node of `kind` has a vector, sorted."""
        return tuple(sorted(model for found, model in self._tables if found == kind))

    def contents(self) -> list[TextVectorArrays]:
        """Everything, copied, in the order of kinds and models."""
        return [
            TextVectorArrays(kind, model, rows, table._vectors[rows], table._digests[rows])
            for (kind, model), table in sorted(self._tables.items())
            for rows in (table.rows(),)
        ]

    def apply(self, changes: Sequence[TextVector]) -> None:
        """Bring the tables to these final states, at most one per kind, row and model; tombstones too."""
        groups: dict[tuple[TextKind, str], list[TextVector]] = {}
        for change in changes:
            groups.setdefault((change.kind, change.model), []).append(change)
        for key, group in groups.items():
            table = self._tables.get(key, TextVectorTable())
            table.discard(np.array([v.row for v in group if v.deleted], np.int64))
            alive = [v for v in group if not v.deleted]
            if alive:
                dim = len(alive[0].vector) // 2
                table.put(
                    np.array([v.row for v in alive], np.int64),
                    np.frombuffer(b"".join(v.vector for v in alive), "<f2").reshape(len(alive), dim),
                    np.frombuffer(bytes.fromhex("".join(v.text_digest for v in alive)), np.uint8).reshape(
                        len(alive), DIGEST_BYTES
                    ),
                )
            if len(table):
                self._tables[key] = table
            else:
                self._tables.pop(key, None)


def _grown(array: npt.NDArray[_Scalar], count: int) -> npt.NDArray[_Scalar]:
    grown = np.zeros((count, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown
