"""Exact inner-product search over vectors that change all the time."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from models.read_write_lock import ReadWriteLock

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

_EXHAUSTIVE_ALLOWED = 4096
"""Filters that pass fewer vectors are scored one by one: gathering beats scanning the catalogue."""

_SELECTOR_EXCLUDES = 512
"""A query in a batch that excludes more than this gets a selector: its over-fetch would slow all others."""


class VectorSearch(Protocol):
    """What a ranker needs of an index; a main index with an overlay of moved rows would fit it as well.

    `search` may be approximate; `dense` is always the newest vectors, so that candidates can be re-scored.
    """

    def __len__(self) -> int: ...
    def upsert(self, ids: Int64, vectors: Float32) -> None: ...
    def remove(self, ids: Int64) -> int: ...
    def contains(self, ids: Int64) -> npt.NDArray[np.bool_]: ...
    def slots(self, ids: Int64) -> Int64: ...
    def dense(self) -> tuple[Int64, Float32]: ...
    def search(
        self,
        queries: Float32,
        k: int,
        exclude: Sequence[Int64] | None = None,
        allowed: Int64 | None = None,
    ) -> tuple[Int64, Float32]: ...


class VectorIndex:
    """Ids, their float32 vectors and a flat FAISS index, one vector per id.

    Ids are graph rows: non-negative int64, dense enough for a table indexed by id (8 bytes per row ever given
    out). Vectors lie packed in *slots* 0..len-1 inside the FAISS index; nothing else holds them. An id's slot
    is stable until a `remove`, which moves the last vectors into the holes.

    Results are exactly those of brute force over the ids that pass, up to float32 rounding; among equal
    scores at the cut, which ids are returned is not specified. Non-finite vectors are refused: one NaN would
    make every comparison meaningless.

    Threads: `search`, `vectors` and `contains` share a lock and run concurrently (FAISS releases the GIL);
    `upsert` and `remove` wait for those running and keep new ones out. `slots` and `dense` hand out inner
    state without locking: whoever uses them keeps mutation out for that long, as the ranker does under a lock
    of its own.

    Nothing is persisted: raw vectors come from the encoder, and FAISS files are not safe to read from others.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"dim is {dim}, must be positive")
        faiss = _faiss()
        self.dim = dim
        self._faiss = faiss
        self._index = faiss.IndexFlatIP(dim)
        self._ids = np.empty(0, np.int64)  # [capacity]: slot -> id
        self._slots = np.empty(0, np.int64)  # [greatest id + 1, with room]: id -> slot, -1 for none
        self._lock = ReadWriteLock()

    def __len__(self) -> int:
        return int(self._index.ntotal)

    # ------------------------------------------------------------------------------------------- mutation

    def upsert(self, ids: Int64, vectors: Float32) -> None:
        """Set the vectors [m, dim] of ids [m]; the last wins where an id comes twice.

        Known ids are overwritten in place; new ones are appended, with amortised growth. O(m * dim).
        """
        ids = _as_ids(ids)
        vectors = self._as_vectors(vectors)
        if len(ids) != len(vectors):
            raise ValueError(f"{len(ids)} ids and {len(vectors)} vectors")
        if len(ids) == 0:
            return
        if ids.min() < 0:
            raise ValueError(f"id {ids.min()} is negative; ids are graph rows")
        with self._lock.write():
            # From the back, so that `unique` keeps the last of each.
            unique, last = np.unique(ids[::-1], return_index=True)
            vectors = vectors[::-1][last]
            self._slots = _grown(self._slots, int(unique[-1]) + 1, -1)
            slots = self._slots[unique]
            new = slots < 0
            if not new.all():
                self._dense()[slots[~new]] = vectors[~new]
            if new.any():
                first, added = len(self), unique[new]
                self._index.add(np.ascontiguousarray(vectors[new]))
                self._ids = _grown(self._ids, first + len(added), -1)
                self._ids[first : first + len(added)] = added
                self._slots[added] = np.arange(first, first + len(added))

    def remove(self, ids: Int64) -> int:
        """Forget ids [m], unknown ones ignored; returns how many there were. O(m * dim + len / 8)."""
        with self._lock.write():
            holes = self._known_slots(ids)
            if len(holes) == 0:
                return 0
            before, after = len(self), len(self) - len(holes)
            self._slots[self._ids[holes]] = -1
            # The survivors of the tail move into the holes before it; then the tail goes.
            holes = holes[holes < after]
            tail = np.arange(after, before)
            tail = tail[self._slots[self._ids[tail]] >= 0]
            dense = self._dense()
            dense[holes] = dense[tail]
            self._ids[holes] = self._ids[tail]
            self._slots[self._ids[holes]] = holes
            self._index.remove_ids(self._faiss.IDSelectorRange(after, before))
            return before - after

    # --------------------------------------------------------------------------------------------- reading

    def contains(self, ids: Int64) -> npt.NDArray[np.bool_]:
        """Which of ids [m] are in the index, bool [m]."""
        with self._lock.read():
            return self.slots(ids) >= 0

    def slots(self, ids: Int64) -> Int64:
        """Where the vectors of ids [m] lie in `dense`, -1 for unknown ids; int64 [m]."""
        ids = _as_ids(ids)
        inside = (ids >= 0) & (ids < len(self._slots))
        if inside.all():
            return self._slots[ids]
        return np.where(inside, self._slots[np.where(inside, ids, 0)] if len(self._slots) else -1, -1)

    def vectors(self, ids: Int64) -> Float32:
        """Copies of the vectors of ids [m], float32 [m, dim]; raises KeyError for an unknown id."""
        with self._lock.read():
            slots = self.slots(ids)
            if (slots < 0).any():
                raise KeyError(f"id {_as_ids(ids)[slots < 0][0]} is not in the index")
            return np.array(self._dense()[slots])

    def dense(self) -> tuple[Int64, Float32]:
        """Ids [n] and vectors [n, dim] by slot, as views that the next mutation invalidates; do not write."""
        return self._ids[: len(self)], self._dense()

    def search(
        self,
        queries: Float32,
        k: int,
        exclude: Sequence[Int64] | None = None,
        allowed: Int64 | None = None,
    ) -> tuple[Int64, Float32]:
        """The k ids of greatest inner product per query, best first.

        Queries are float32 [q, dim]; `exclude` holds one array of ids per query, `allowed` the only ids any
        query may get; both may hold unknown ids and duplicates. Returns ids int64 [q, k] and scores float32
        [q, k], padded with -1 and -inf where fewer than k ids pass.
        """
        queries = self._as_vectors(queries)
        if k < 1:
            raise ValueError(f"k is {k}, must be positive")
        if exclude is not None and len(exclude) != len(queries):
            raise ValueError(f"{len(exclude)} exclusions for {len(queries)} queries")
        with self._lock.read():
            banned = [self._known_slots(ids) for ids in exclude] if exclude else None
            passing = None if allowed is None else self._known_slots(allowed)
            slots = np.full((len(queries), k), -1, np.int64)
            scores = np.full((len(queries), k), -np.inf, np.float32)
            if len(self) == 0 or len(queries) == 0 or (passing is not None and len(passing) == 0):
                return slots, scores
            if passing is not None and len(passing) <= _EXHAUSTIVE_ALLOWED:
                self._search_few(queries, banned, passing, slots, scores)
            elif len(queries) == 1:
                self._search_selected(queries, None if banned is None else banned[0], passing, slots, scores)
            else:
                self._search_batch(queries, banned, passing, slots, scores)
            return np.where(slots >= 0, self._ids[slots], -1), scores

    # ------------------------------------------------------------------------------- ways to search, by slot

    def _search_few(
        self, queries: Float32, banned: list[Int64] | None, passing: Int64, slots: Int64, scores: Float32
    ) -> None:
        """Score every passing slot (ascending, unique)."""
        products = queries @ self._dense()[passing].T  # [q, passing]
        if banned is not None:
            for product, ban in zip(products, banned, strict=True):
                product[np.isin(passing, ban, assume_unique=True)] = -np.inf
        count = min(slots.shape[1], len(passing))
        best = np.argsort(-products, axis=1, kind="stable")[:, :count]
        scores[:, :count] = np.take_along_axis(products, best, axis=1)
        slots[:, :count] = np.where(scores[:, :count] > -np.inf, passing[best], -1)

    def _search_selected(
        self, query: Float32, ban: Int64 | None, passing: Int64 | None, slots: Int64, scores: Float32
    ) -> None:
        """One query; FAISS skips what does not pass."""
        self._faiss_search(query, self._selection(ban, passing), slots, scores)

    def _search_batch(
        self,
        queries: Float32,
        banned: list[Int64] | None,
        passing: Int64 | None,
        slots: Int64,
        scores: Float32,
    ) -> None:
        """Over-fetch and drop the banned: a selector would hold for all queries and rule out BLAS."""
        light = np.arange(len(queries))
        if banned is not None:
            sizes = np.array([len(ban) for ban in banned])
            for q in np.flatnonzero(sizes > _SELECTOR_EXCLUDES):
                one = slice(q, q + 1)
                self._search_selected(queries[one], banned[q], passing, slots[one], scores[one])
            light = np.flatnonzero(sizes <= _SELECTOR_EXCLUDES)
            if len(light) == 0:
                return
        k = slots.shape[1]
        extra = 0 if banned is None else int(sizes[light].max())
        found = np.full((len(light), k + extra), -1, np.int64)
        values = np.full((len(light), k + extra), -np.inf, np.float32)
        self._faiss_search(queries[light], self._selection(None, passing), found, values)
        if extra and banned is not None:
            for row, q in enumerate(light):
                values[row, np.isin(found[row], banned[q])] = -np.inf
            order = np.argsort(-values, axis=1, kind="stable")[:, :k]
            found, values = np.take_along_axis(found, order, 1), np.take_along_axis(values, order, 1)
        slots[light] = np.where(values > -np.inf, found, -1)[:, :k]
        scores[light] = values[:, :k]

    def _faiss_search(self, queries: Float32, selector: Any, slots: Int64, scores: Float32) -> None:
        # Asking FAISS for more than there is costs time in proportion to k.
        count = min(slots.shape[1], len(self))
        params = None if selector is None else self._faiss.SearchParameters(sel=selector)
        values, found = self._index.search(queries, count, params=params)
        slots[:, :count] = found
        scores[:, :count] = np.where(found >= 0, values, -np.inf)

    def _selection(self, ban: Int64 | None, passing: Int64 | None) -> Any:
        """A FAISS selector of `passing` (default: all) without `ban`; None when everything passes."""
        if passing is None and (ban is None or len(ban) == 0):
            return None
        passes = np.full(len(self), passing is None)
        if passing is not None:
            passes[passing] = True
        if ban is not None:
            passes[ban] = False
        return self._faiss.IDSelectorBitmap(np.packbits(passes, bitorder="little"))

    # ------------------------------------------------------------------------------------------- small parts

    def _dense(self) -> Float32:
        # Looked up each time: adding may move the storage.
        count = len(self)
        if count == 0:
            return np.empty((0, self.dim), np.float32)
        flat: Float32 = self._faiss.rev_swig_ptr(self._index.get_xb(), count * self.dim)
        return flat.reshape(count, self.dim)

    def _known_slots(self, ids: Int64) -> Int64:
        """Slots of the ids that are known, ascending, without duplicates."""
        if len(ids) == 0:
            return np.empty(0, np.int64)
        slots = np.unique(self.slots(ids))
        return slots[1:] if slots[0] < 0 else slots

    def _as_vectors(self, vectors: Float32) -> Float32:
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"vectors have shape {vectors.shape}, expected [n, {self.dim}]")
        if not np.isfinite(vectors).all():
            raise ValueError("vectors must be finite")
        return vectors


def _faiss() -> ModuleType:
    """FAISS, loaded on first use: machines that only train or generate do not have it."""
    import faiss

    # By default BLAS starts at nq * d = 128,000; it is several times faster from here on, and slower below
    # (measured; faiss 1.15).
    faiss.cvar.distance_compute_blas_threshold = 640
    return faiss


def _as_ids(ids: Int64) -> Int64:
    ids = np.asarray(ids, np.int64)
    if ids.ndim != 1:
        raise ValueError(f"ids have shape {ids.shape}, expected [n]")
    return ids


def _grown(array: Int64, length: int, fill: int) -> Int64:
    """The array with room for `length`, at least half as large again when it has to grow."""
    if length <= len(array):
        return array
    grown = np.full(max(length, len(array) * 3 // 2), fill, np.int64)
    grown[: len(array)] = array
    return grown
