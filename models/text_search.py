r"""Search by meaning and by spelling: cosine of text vectors, and trigrams shared with the title.

    score(q, i)    = cosine(q, i) + LEXICAL_WEIGHT * ramp(lexical(q, i)) * (lexical(q, i) / best(q)) ** 8
    ramp(lexical)  = 0 up to MIN_LEXICAL, 1 from FULL_LEXICAL, a straight line between them
    best(q)        = the greatest lexical(q, j) over all titles j

`lexical` is `TrigramIndex`'s score of the title. A phrase shares a word with many titles and means none of
them: the ramp leaves those out. A title with typos is closer to one title than to all others: the power lets
that one rise. An item without a vector has cosine 0. Constants were chosen on queries for goodbooks-10k;
benchmarks/search.py measures them on MovieLens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graph.errors import UnknownItem
from models.read_write_lock import ReadWriteLock
from models.trigram_index import TrigramIndex
from models.vector_index import VectorIndex

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

LEXICAL_WEIGHT = 0.6
MIN_LEXICAL, FULL_LEXICAL = 0.55, 0.75
_BEST_EXPONENT = 8

MIN_LEXICAL_ALONE = 0.3
"""Least lexical score of an answer while the query has no vector: a weak match is better than none."""

EXHAUSTIVE_ITEMS = 100_000
"""Up to here every item is scored; beyond, and where a filter passes more, candidates are."""

NUM_CANDIDATES = 1_000
"""Candidates of either side, at least."""


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """Best first; equal scores by row."""

    rows: Int64  # [<= n]
    scores: Float32  # [<= n]

    def __len__(self) -> int:
        return len(self.rows)


class TextSearch:
    """Titles and text vectors of items, each of which may come, change and go by itself.

    Catalogues and filters of up to `exhaustive_items` are scored whole. Beyond that, candidates are the
    best by vector united with the best by title, each re-scored by both.

    Threads: `search` and `similar` run concurrently; what changes the items waits for those running and keeps
    new ones out, so one answer never mixes two states.
    """

    def __init__(self, dim: int, exhaustive_items: int = EXHAUSTIVE_ITEMS) -> None:
        self.dim = dim
        self._exhaustive_items = exhaustive_items
        self._vectors = VectorIndex(dim)
        self._titles = TrigramIndex()
        self._lock = ReadWriteLock()

    def __len__(self) -> int:
        """How many items have a vector."""
        return len(self._vectors)

    @property
    def num_texts(self) -> int:
        """How many items have a title."""
        return len(self._titles)

    def upsert_texts(self, rows: Int64, titles: Sequence[str]) -> None:
        """Set the titles of rows [m]; the last wins where a row comes twice."""
        with self._lock.write():
            self._titles.upsert(rows, titles)

    def upsert_vectors(self, rows: Int64, vectors: Float32) -> None:
        """Set the vectors [m, dim] of rows [m], of any length; the last wins where a row comes twice.

        A vector of zeros has cosine 0 with everything. Raises ValueError for shapes that do not fit and for
        values that are not finite, with nothing changed.
        """
        vectors = _normalised(self._as_vectors(vectors))
        with self._lock.write():
            self._vectors.upsert(rows, vectors)

    def remove(self, rows: Int64) -> int:
        """Forget titles and vectors of rows [m], unknown ones ignored; returns how many rows had either."""
        with self._lock.write():
            rows = np.unique(np.asarray(rows, np.int64))
            vector_less = rows[~self._vectors.contains(rows)]
            known = len(rows) - sum(row not in self._titles for row in vector_less.tolist())
            self._vectors.remove(rows)
            self._titles.remove(rows)
            return known

    def remove_vectors(self, rows: Int64) -> int:
        """Forget the vectors of rows [m] and keep their titles; returns how many vectors there were."""
        with self._lock.write():
            return self._vectors.remove(rows)

    def search(
        self,
        text: str,
        vector: Float32 | None,
        n: int,
        allowed: Int64 | None = None,
        exclude: Int64 | None = None,
    ) -> SearchResult:
        """The n best items for a text and its vector [dim]; without a vector, by title alone.

        `allowed` are the only rows that may be returned, `exclude` those that may not; both may hold unknown
        rows and duplicates, and neither changes a score. Fewer than n come back where fewer have a vector or
        a title that counts. Scores lie in [-1, 1 + LEXICAL_WEIGHT]; without a vector they are `lexical`, from
        MIN_LEXICAL_ALONE to 1.
        """
        if n < 1:
            raise ValueError(f"n is {n}, must be positive")
        query = None if vector is None else _normalised(self._as_vectors(np.asarray(vector)[None]))[0]
        with self._lock.read():
            rows, lexical = self._titles.scores(text)
            if query is None:
                passing = (lexical >= MIN_LEXICAL_ALONE) & _passing(rows, allowed, exclude)
                return _top(rows[passing], lexical[passing], n)
            bonus = _bonus(lexical)
            order = np.argsort(rows[bonus > 0])
            rows, bonus = rows[bonus > 0][order], bonus[bonus > 0][order]
            few = allowed is not None and len(allowed) <= self._exhaustive_items
            if not few and len(self._vectors) <= self._exhaustive_items:
                found, scores = self._scored_whole(query, rows, bonus)
                passing = _passing(found, allowed, exclude)
                return _top(found[passing], scores[passing], n)
            candidates = self._candidates(query, rows, bonus, n, allowed, exclude)
            return _top(candidates, self._scored(query, candidates, rows, bonus), n)

    def similar(
        self, row: int, n: int, allowed: Int64 | None = None, exclude: Int64 | None = None
    ) -> SearchResult:
        """The n items of greatest cosine to a row, itself not among them; raises UnknownItem."""
        if n < 1:
            raise ValueError(f"n is {n}, must be positive")
        with self._lock.read():
            if not self._vectors.contains(np.array([row]))[0]:
                raise UnknownItem(
                    f"item row {row} has no text vector yet; ask again when its text is embedded"
                )
            query = self._vectors.vectors(np.array([row]))[0]
            banned = np.append(np.empty(0, np.int64) if exclude is None else exclude, row)
            return self._nearest(query, n, allowed, banned)

    # ------------------------------------- under the lock; `rows` [m] are those with a `bonus`, ascending

    def _scored_whole(self, query: Float32, rows: Int64, bonus: Float32) -> tuple[Int64, Float32]:
        """All items that have a vector or a bonus."""
        ids, vectors = self._vectors.dense()
        scores: Float32 = vectors @ query
        slots = self._vectors.slots(rows)
        here = slots >= 0
        scores[slots[here]] += bonus[here]
        return np.concatenate([ids, rows[~here]]), np.concatenate([scores, bonus[~here]])

    def _candidates(
        self,
        query: Float32,
        rows: Int64,
        bonus: Float32,
        n: int,
        allowed: Int64 | None,
        exclude: Int64 | None,
    ) -> Int64:
        """Rows to score one by one, ascending; all pass the filters."""
        if allowed is not None and len(allowed) <= self._exhaustive_items:
            every = np.unique(allowed)
            every = every[self._vectors.contains(every) | np.isin(every, rows)]
            return every[_passing(every, None, exclude)]
        count = max(n, NUM_CANDIDATES)
        nearest = self._nearest(query, count, allowed, exclude).rows
        passing = _passing(rows, allowed, exclude)
        return np.union1d(nearest, _top(rows[passing], bonus[passing], count).rows)

    def _scored(self, query: Float32, candidates: Int64, rows: Int64, bonus: Float32) -> Float32:
        scores = np.zeros(len(candidates), np.float32)
        slots = self._vectors.slots(candidates)
        here = slots >= 0
        scores[here] = self._vectors.dense()[1][slots[here]] @ query
        _, at, of = np.intersect1d(candidates, rows, assume_unique=True, return_indices=True)
        scores[at] += bonus[of]
        return scores

    def _nearest(self, query: Float32, n: int, allowed: Int64 | None, exclude: Int64 | None) -> SearchResult:
        rows, scores = self._vectors.search(query[None], n, None if exclude is None else [exclude], allowed)
        found = rows[0] >= 0
        return _top(rows[0][found], scores[0][found], n)

    def _as_vectors(self, vectors: Float32) -> Float32:
        vectors = np.asarray(vectors, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"vectors have shape {vectors.shape}, expected [n, {self.dim}]")
        if not np.isfinite(vectors).all():
            raise ValueError("vectors must be finite")
        return vectors


def _bonus(lexical: Float32) -> Float32:
    if len(lexical) == 0:
        return lexical
    ramp = np.clip((lexical - MIN_LEXICAL) / (FULL_LEXICAL - MIN_LEXICAL), 0, 1)
    bonus: Float32 = np.float32(LEXICAL_WEIGHT) * ramp * (lexical / lexical.max()) ** _BEST_EXPONENT
    return bonus


def _normalised(vectors: Float32) -> Float32:
    """Rows of length 1; rows of zeros stay so."""
    # In float64, where the squares of float32 neither overflow nor vanish.
    lengths = np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1, keepdims=True))
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _passing(rows: Int64, allowed: Int64 | None, exclude: Int64 | None) -> npt.NDArray[np.bool_]:
    passing = np.ones(len(rows), np.bool_)
    if allowed is not None:
        passing &= np.isin(rows, allowed)
    if exclude is not None:
        passing &= ~np.isin(rows, exclude)
    return passing


def _top(rows: Int64, scores: Float32, n: int) -> SearchResult:
    if n < len(scores):
        # All that tie with the last place, so that the row decides among them.
        picked = np.flatnonzero(scores >= np.partition(scores, len(scores) - n)[len(scores) - n])
        rows, scores = rows[picked], scores[picked]
    order = np.lexsort((rows, -scores))[:n]
    return SearchResult(rows[order], scores[order])
