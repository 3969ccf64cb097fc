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

_BATCH_QUERIES = 16
"""Queries that share one product with all vectors: more hardly gain, and a writer waits for all of them."""


@dataclass(frozen=True, slots=True, eq=False)
class TextQuery:
    """`allowed` are the only rows that may be returned, `exclude` those that may not.

    Both may hold unknown rows and duplicates, and neither changes a score. Without a vector, by title alone.
    Raises ValueError unless n is positive.
    """

    text: str
    n: int
    allowed: Int64 | None = None
    exclude: Int64 | None = None
    vector: Float32 | None = None  # [dim]

    def __post_init__(self) -> None:
        _check_positive(self.n)


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """Best first; equal scores by row."""

    rows: Int64  # [<= n]
    scores: Float32  # [<= n]

    def __len__(self) -> int:
        return len(self.rows)


class TitleSearch:
    """Titles of items, to be searched by themselves and shared by the `TextSearch` of every text model.

    Threads: searches run concurrently; a change waits for those running and keeps new ones out.
    """

    def __init__(self) -> None:
        self._index = TrigramIndex()
        self._lock = ReadWriteLock()

    def __len__(self) -> int:
        """How many items have a title."""
        return len(self._index)

    def upsert(self, rows: Int64, titles: Sequence[str]) -> None:
        """Set the titles of rows [m]; the last wins where a row comes twice."""
        with self._lock.write():
            self._index.upsert(rows, titles)

    def remove(self, rows: Int64) -> int:
        """Forget the titles of rows [m], unknown ones ignored; returns how many there were."""
        with self._lock.write():
            return self._index.remove(rows)

    def scores(self, text: str) -> tuple[Int64, Float32]:
        """`TrigramIndex.scores`: rows [m] that share a trigram with `text`, and their scores [m]."""
        with self._lock.read():
            return self._index.scores(text)

    def search(self, query: TextQuery) -> SearchResult:
        """The best items by title alone; scores are `lexical`, from MIN_LEXICAL_ALONE to 1."""
        return _by_title(query, *self.scores(query.text))


class TextSearch:
    """Text vectors of items under one model, fused with titles; either may come, change and go by itself.

    Catalogues and filters of up to `exhaustive_items` are scored whole. Beyond that, candidates are the
    best by vector united with the best by title, each re-scored by both.

    Threads: `search`, `search_batch` and `similar` run concurrently; what changes the vectors, or the titles,
    waits for those that are reading them and keeps new ones out.
    """

    def __init__(
        self, dim: int, exhaustive_items: int = EXHAUSTIVE_ITEMS, titles: TitleSearch | None = None
    ) -> None:
        self.dim = dim
        self.titles = TitleSearch() if titles is None else titles
        self._exhaustive_items = exhaustive_items
        self._vectors = VectorIndex(dim)
        # Not the lock of the titles: filling one model's vectors must not hold up searches of another's.
        self._lock = ReadWriteLock()

    def __len__(self) -> int:
        """How many items have a vector."""
        return len(self._vectors)

    def upsert_texts(self, rows: Int64, titles: Sequence[str]) -> None:
        """Set the titles of rows [m], for all that share them."""
        self.titles.upsert(rows, titles)

    def upsert_vectors(self, rows: Int64, vectors: Float32) -> None:
        """Set the vectors [m, dim] of rows [m], of any length; the last wins where a row comes twice.

        A vector of zeros has cosine 0 with everything. Raises ValueError for shapes that do not fit and for
        values that are not finite, with nothing changed.
        """
        vectors = _normalised(self._as_vectors(vectors))
        with self._lock.write():
            self._vectors.upsert(rows, vectors)

    def remove_vectors(self, rows: Int64) -> int:
        """Forget the vectors of rows [m], unknown ones ignored; returns how many there were."""
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
        """`search_batch` of one query."""
        return self.search_batch([TextQuery(text, n, allowed, exclude, vector)])[0]

    def search_batch(self, queries: Sequence[TextQuery]) -> list[SearchResult]:
        """The n best items of each query, by its vector and title; of one without a vector by title alone.

        Fewer than n come back where fewer have a vector or a title that counts. Scores lie in
        [-1, 1 + LEXICAL_WEIGHT]; without a vector they are `lexical`, from MIN_LEXICAL_ALONE to 1. Raises
        ValueError for vectors of another length than `dim` and for values that are not finite.
        """
        results: list[SearchResult] = []
        for first in range(0, len(queries), _BATCH_QUERIES):
            results += self._search_some(queries[first : first + _BATCH_QUERIES])
        return results

    def similar(
        self, row: int, n: int, allowed: Int64 | None = None, exclude: Int64 | None = None
    ) -> SearchResult | None:
        """The n items of greatest cosine to a row, itself not among them; None if it has no vector."""
        _check_positive(n)
        with self._lock.read():
            if not self._vectors.contains(np.array([row]))[0]:
                return None
            query = self._vectors.vectors(np.array([row]))[0]
            banned = np.append(np.empty(0, np.int64) if exclude is None else exclude, row)
            return self._nearest(query, n, allowed, banned)

    def _search_some(self, queries: Sequence[TextQuery]) -> list[SearchResult]:
        given = [query.vector for query in queries if query.vector is not None]
        vectors = iter(_normalised(self._as_vectors(np.stack(given)))) if given else iter(())
        lexical = [self.titles.scores(query.text) for query in queries]
        asked = [None if query.vector is None else next(vectors) for query in queries]
        with self._lock.read():
            whole = [n for n, query in enumerate(queries) if asked[n] is not None and self._scores_all(query)]
            products = self._products([vector for n in whole if (vector := asked[n]) is not None])
            product_of = dict(zip(whole, products, strict=True))
            return [
                _by_title(query, *found)
                if vector is None
                else self._fused(query, vector, *found, product_of.get(n))
                for n, (query, vector, found) in enumerate(zip(queries, asked, lexical, strict=True))
            ]

    # ------------------------------------- under the lock; `rows` [m] are those with a `bonus`, ascending

    def _scores_all(self, query: TextQuery) -> bool:
        """Whether the vectors are few enough, and the filter does not leave fewer."""
        return not self._filters_to_few(query.allowed) and len(self._vectors) <= self._exhaustive_items

    def _filters_to_few(self, allowed: Int64 | None) -> bool:
        return allowed is not None and len(allowed) <= self._exhaustive_items

    def _products(self, vectors: Sequence[Float32]) -> Float32:
        """With everything that is held, float32 [queries, len]."""
        dense = self._vectors.dense()[1]
        if not vectors:
            return np.empty((0, len(dense)), np.float32)
        # Transposed and copied: with the catalogue on the left, BLAS takes two thirds of the time.
        return np.ascontiguousarray((dense @ np.stack(vectors).T).T)

    def _fused(
        self, query: TextQuery, vector: Float32, rows: Int64, lexical: Float32, product: Float32 | None
    ) -> SearchResult:
        bonus = _bonus(lexical)
        order = np.argsort(rows[bonus > 0])
        rows, bonus = rows[bonus > 0][order], bonus[bonus > 0][order]
        if product is not None:
            found, scores = self._scored_whole(product, rows, bonus)
            return _best_passing(query, found, scores)
        candidates = self._candidates(vector, rows, bonus, query.n, query.allowed, query.exclude)
        return _top(candidates, self._scored(vector, candidates, rows, bonus), query.n)

    def _scored_whole(self, scores: Float32, rows: Int64, bonus: Float32) -> tuple[Int64, Float32]:
        """All items that have a vector or a bonus; `scores` [len] are the products, and are written to."""
        slots = self._vectors.slots(rows)
        here = slots >= 0
        scores[slots[here]] += bonus[here]
        return (
            np.concatenate([self._vectors.dense()[0], rows[~here]]),
            np.concatenate([scores, bonus[~here]]),
        )

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
        if allowed is not None and self._filters_to_few(allowed):
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


def _check_positive(n: int) -> None:
    if n < 1:
        raise ValueError(f"n is {n}, must be positive")


def _by_title(query: TextQuery, rows: Int64, lexical: Float32) -> SearchResult:
    counts = lexical >= MIN_LEXICAL_ALONE
    return _best_passing(query, rows[counts], lexical[counts])


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


def _best_passing(query: TextQuery, rows: Int64, scores: Float32) -> SearchResult:
    if query.allowed is not None or (query.exclude is not None and len(query.exclude)):
        passing = _passing(rows, query.allowed, query.exclude)
        rows, scores = rows[passing], scores[passing]
    return _top(rows, scores, query.n)


def _top(rows: Int64, scores: Float32, n: int) -> SearchResult:
    if n < len(scores):
        # All that tie with the last place, so that the row decides among them.
        picked = np.flatnonzero(scores >= np.partition(scores, len(scores) - n)[len(scores) - n])
        rows, scores = rows[picked], scores[picked]
    order = np.lexsort((rows, -scores))[:n]
    return SearchResult(rows[order], scores[order])
