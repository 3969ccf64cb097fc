r"""Two-stage ranking: encoder vectors retrieve, the sparse item-item matrix re-scores and gives the reasons.

For a user with vector v who has seen items j with weights a_j (0: seen, not liked), d = sum of a:

    score(i)           = v . y_i + bias_i + w * sum over j with a_j > 0 of B[j, i]
    contribution(j, i) = (a_j / d) z_j . y_i + w * B[j, i]

y is an item's target vector, z its source vector, B the item-item matrix, w its weight. With
v = sum of a_j z_j / d + (part of the user's attributes), the contributions, the bias and the attributes'
part add up to the score.

Items outside the matrix, made since training or without ratings then, get in place of the last sum what
is expected of it given their encoder score (`expected_addend.py`). No liked item speaks for that amount, so
it is in no contribution: their reasons are the encoder's alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from graph.errors import UnknownItem
from models.item_table import ItemTable
from models.ranking_settings import RankingSettings
from models.read_write_lock import ReadWriteLock
from models.vector_index import VectorSearch

if TYPE_CHECKING:
    from models.item_similarity import ItemSimilarity

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Reasons: TypeAlias = tuple[tuple[int, float], ...]
"""(item row, contribution) of the one to three seen items that contributed most, greatest first."""

MAX_REASONS = 3

EXHAUSTIVE_ITEMS = 100_000
"""Up to here one matrix product over everything is exact and no slower (benchmarks/ranking.py)."""

_PRODUCT_SIZE = 4_000_000
"""Scores held at a time (16 MB): a long batch over a large catalogue goes in parts."""


def _no_rows() -> Int64:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class RankQuery:
    """One user's request, in item rows. `vector` is None when nothing the user liked is known.

    `seen_rows` are oldest first, so that the last ones are the most recent.
    """

    vector: Float32 | None  # [D]
    seen_rows: Int64 = field(default_factory=_no_rows)  # [s], unique
    seen_weights: Float32 = field(default_factory=lambda: np.empty(0, np.float32))  # [s], a(value) of each
    exclude: Int64 = field(default_factory=_no_rows)  # never to be returned
    allowed: Int64 | None = None  # the only rows that may be returned; None: all
    n: int = 10
    exclude_seen: bool = True
    explain: bool = True

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n is {self.n}, must be positive")
        if len(self.seen_rows) != len(self.seen_weights):
            raise ValueError(f"{len(self.seen_rows)} seen rows and {len(self.seen_weights)} weights")


@dataclass(frozen=True, slots=True, eq=False)
class RankResult:
    """Best first; equal scores by row. `reasons` has an entry per row, empty where none apply."""

    rows: Int64  # [<= n]
    scores: Float32  # [<= n]; of popular items the degree, of similar items the cosine
    reasons: list[Reasons]

    def __len__(self) -> int:
        return len(self.rows)


class Ranker:
    """Items of one encoder generation, ready to be ranked.

    Never answers fewer than n items while that many are eligible. Catalogues and filters of up to
    `exhaustive_items` are scored whole: candidate recall is 1. Beyond that, candidates are the
    `settings.num_candidates` best by vector united with the neighbours of recently liked items, and
    exclusions and filters hold again after the union. 0 sends every query through the candidates.

    Threads: `recommend`, `similar` and `vectors` run concurrently; `upsert` and `remove` wait for those
    running and keep new ones out, so one answer never mixes two states.

    `similarity` and `settings` belong to the same generation as the vectors; without `similarity` the second
    stage adds nothing.
    """

    def __init__(
        self,
        dim: int,
        similarity: ItemSimilarity | None,
        settings: RankingSettings,
        index: VectorSearch | None = None,
        exhaustive_items: int = EXHAUSTIVE_ITEMS,
    ) -> None:
        self.dim = dim
        self.settings = settings
        self._exhaustive_items = exhaustive_items
        self._similarity = similarity if settings.similarity_weight > 0 else None
        self._weight = np.float32(settings.similarity_weight)
        self._expected = settings.expected_addend()
        self._items = ItemTable(dim, None if similarity is None else similarity.size, index)
        self._lock = ReadWriteLock()

    def __len__(self) -> int:
        return len(self._items)

    def upsert(
        self,
        rows: Int64,
        source: Float32,
        target: Float32,
        bias: Float32,
        degree: npt.ArrayLike,
        positions: Int64,
    ) -> None:
        """Add or replace items; raises ValueError, with nothing changed, for arrays that do not fit.

        rows int64 [m], unique; source and target float32 [m, D]; bias float32 [m]; degree [m] orders popular
        items; positions int64 [m] are places in the encoder's id table, -1 for items made after training.
        """
        with self._lock.write():
            self._items.upsert(rows, source, target, bias, degree, positions)

    def remove(self, rows: Int64) -> int:
        """Forget items; unknown rows are ignored. Returns how many there were."""
        with self._lock.write():
            return self._items.remove(rows)

    def rows(self) -> Int64:
        """Rows of all items held, int64 [len(self)], in no particular order; a copy."""
        with self._lock.read():
            return self._items.index.dense()[0].copy()

    def vectors(self, rows: Int64) -> tuple[Float32, Float32, Float32]:
        """Copies of source [m, D], target [m, D] and bias [m]; raises UnknownItem."""
        with self._lock.read():
            return self._items.vectors(rows)

    def recommend(self, queries: Sequence[RankQuery]) -> list[RankResult]:
        """Rank for each query, in order. Vectors of all queries meet the catalogue in one matrix product."""
        for query in queries:
            if query.vector is not None and query.vector.shape != (self.dim,):
                raise ValueError(f"a query's vector has shape {query.vector.shape}, expected ({self.dim},)")
        with self._lock.read():
            count = len(self)
            results: list[RankResult] = [_NOTHING] * len(queries)
            whole: list[tuple[int, _Prepared]] = []
            searched: list[tuple[int, _Prepared]] = []
            for place, query in enumerate(queries):
                prepared = self._prepare(query)
                if query.vector is None:
                    results[place] = self._popular(prepared)
                elif query.allowed is not None and min(len(query.allowed), count) <= self._exhaustive_items:
                    results[place] = self._rank(prepared, self._items.known_slots(query.allowed))
                elif count <= self._exhaustive_items:
                    whole.append((place, prepared))
                else:
                    searched.append((place, prepared))
            if whole:
                ids, dense = self._items.index.dense()
                targets = self._items.position[ids]
                step = max(1, _PRODUCT_SIZE // max(1, len(ids)))
                for part in (whole[first : first + step] for first in range(0, len(whole), step)):
                    vectors = _with_one([prepared.query for _, prepared in part])
                    products = vectors @ dense.T  # [queries, items]
                    for (place, prepared), product in zip(part, products, strict=True):
                        results[place] = self._rank_whole(prepared, ids, targets, product)
            if searched:
                found = self._search([prepared for _, prepared in searched])
                for (place, prepared), rows in zip(searched, found, strict=True):
                    results[place] = self._rank_candidates(prepared, rows)
            return results

    def similar(
        self, row: int, n: int = 10, allowed: Int64 | None = None, exclude: Int64 | None = None
    ) -> RankResult:
        """The n items whose target vectors have the greatest cosine with that of `row`, itself left out.

        Raises UnknownItem. O(items * D).
        """
        if n < 1:
            raise ValueError(f"n is {n}, must be positive")
        items = self._items
        with self._lock.read():
            own = int(items.index.slots(np.array([row], np.int64))[0])
            if own < 0:
                raise UnknownItem(f"item row {row} has no vector here")
            ids, dense = items.index.dense()
            # The bias takes no part: 0 in the query's last dimension.
            query = dense[own].copy()
            query[-1] = 0
            if allowed is not None:
                slots = items.known_slots(allowed)
                ids, dense = ids[slots], dense[slots]
            cosines = (dense @ query) * (items.inverse_norm[ids] * items.inverse_norm[row])
            banned = np.append(_no_rows() if exclude is None else exclude, row)
            cosines[np.isin(ids, banned)] = -np.inf
            rows, scores = _top(ids, cosines, n)
            return RankResult(rows, scores, [()] * len(rows))

    # ------------------------------------------------------------------------------------------ first stage

    def _prepare(self, query: RankQuery) -> _Prepared:
        banned = np.append(query.seen_rows, query.exclude) if query.exclude_seen else query.exclude
        liked = (query.seen_weights > 0) & (self._items.index.slots(query.seen_rows) >= 0)
        rows = query.seen_rows[liked]
        return _Prepared(query, banned, rows, query.seen_weights[liked], self._items.position[rows])

    def _search(self, batch: Sequence[_Prepared]) -> list[Int64]:
        """Rows of each query's nearest items."""
        found: list[Int64] = [_no_rows()] * len(batch)
        # A filter belongs to one query; queries without one share a search.
        groups = [[place] for place, prepared in enumerate(batch) if prepared.query.allowed is not None]
        groups.append([place for place, prepared in enumerate(batch) if prepared.query.allowed is None])
        for group in groups:
            if not group:
                continue
            queries = [batch[place].query for place in group]
            ids, _ = self._items.index.search(
                _with_one(queries),
                max(self.settings.num_candidates, *(query.n for query in queries)),
                [batch[place].banned for place in group],
                queries[0].allowed,
            )
            for place, rows in zip(group, ids, strict=True):
                found[place] = rows
        return found

    def _rank_candidates(self, prepared: _Prepared, found: Int64) -> RankResult:
        """Unite what the search found with neighbours, apply exclusions and filter again, rank."""
        query, settings = prepared.query, self.settings
        if self._similarity is not None and settings.num_recent and settings.neighbours_per_recent:
            recent = prepared.positions[-settings.num_recent :]
            near = self._similarity.neighbours(recent[recent >= 0], settings.neighbours_per_recent)
            found = np.concatenate([found, self._items.row_of[near]])
        slots = self._items.known_slots(found)
        ids, _ = self._items.index.dense()
        keep = ~np.isin(ids[slots], prepared.banned)
        if query.allowed is not None:
            keep &= np.isin(ids[slots], query.allowed)
        if np.count_nonzero(keep) >= query.n:
            return self._rank(prepared, slots[keep])
        # An index that is not exact may find less than there is: nobody gets a short list for that.
        return self._rank(
            prepared, np.arange(len(ids)) if query.allowed is None else self._items.known_slots(query.allowed)
        )

    # ----------------------------------------------------------------------------------------- second stage

    def _rank(self, prepared: _Prepared, slots: Int64) -> RankResult:
        """Score the items in `slots` and rank those not banned."""
        ids, dense = self._items.index.dense()
        rows, vector = ids[slots], prepared.query.vector
        keep = ~np.isin(rows, prepared.banned)
        rows, slots = rows[keep], slots[keep]
        targets = dense[slots]
        assert vector is not None
        scores = targets[:, :-1] @ vector + targets[:, -1]
        self._add_similarity(prepared, self._items.position[rows], scores)
        return self._explained(prepared, *_top(rows, scores, prepared.query.n))

    def _rank_whole(self, prepared: _Prepared, ids: Int64, targets: Int64, scores: Float32) -> RankResult:
        """Rank the catalogue unfiltered, given ids, positions and vector scores (overwritten) by slot."""
        self._add_similarity(prepared, targets, scores)
        slots = self._items.index.slots(prepared.banned)
        scores[slots[slots >= 0]] = -np.inf
        return self._explained(prepared, *_top(ids, scores, prepared.query.n))

    def _popular(self, prepared: _Prepared) -> RankResult:
        """Items by degree, for those of whom nothing liked is known."""
        query = prepared.query
        rows, _ = self._items.index.dense()
        if query.allowed is not None:
            rows = rows[self._items.known_slots(query.allowed)]
        rows = rows[~np.isin(rows, prepared.banned)]
        rows, scores = _top(rows, self._items.degree[rows], query.n)
        return RankResult(rows, scores, [()] * len(rows))

    def _add_similarity(self, prepared: _Prepared, targets: Int64, scores: Float32) -> None:
        """Add w * sum of B over the liked items, or what is expected of it, to scores [m] of positions [m].

        In place; what comes in are the encoder's scores.
        """
        seen = prepared.positions[prepared.positions >= 0]
        if self._similarity is None or len(seen) == 0 or len(targets) == 0:
            return
        outside = np.flatnonzero(targets < 0)  # these are in no pair
        if len(outside) == 0:
            scores += self._weight * self._similarity.scores(seen, targets)
            return
        # Sums for position 0 in their places are cheaper than gathering and scattering all others.
        sums = self._weight * self._similarity.scores(seen, np.maximum(targets, 0))
        sums[outside] = 0
        if self._expected is not None:
            sums[outside] = np.float32(len(seen)) * self._expected(scores[outside])
        scores += sums

    # ---------------------------------------------------------------------------------------------- reasons

    def _explained(self, prepared: _Prepared, rows: Int64, scores: Float32) -> RankResult:
        liked = prepared.liked
        if not prepared.query.explain or len(rows) == 0 or len(liked) == 0:
            return RankResult(rows, scores, [()] * len(rows))
        addends = self._contributions(prepared, rows)
        count = min(MAX_REASONS, len(liked))
        best = np.argpartition(addends, len(liked) - count, axis=1)[:, -count:]  # [n, count]
        own = np.arange(len(rows))[:, None]
        values = addends[own, best]
        order = np.argsort(-values, axis=1)
        values = values[own, order].tolist()
        because = liked[best[own, order]].tolist()
        # The greatest is a reason whatever its sign; further ones only if they spoke for the item.
        reasons: list[Reasons] = [
            tuple(pair for k, pair in enumerate(zip(*both, strict=True)) if k == 0 or pair[1] > 0)
            for both in zip(because, values, strict=True)
        ]
        return RankResult(rows, scores, reasons)

    def _contributions(self, prepared: _Prepared, rows: Int64) -> Float32:
        """What each of s liked items adds to the score of each of rows [n]: float32 [n, s]."""
        targets = self._items.index.dense()[1][self._items.index.slots(rows), :-1]
        # d counts every seen item, also one that is gone here.
        shares = prepared.weights / prepared.query.seen_weights.sum()
        addends: Float32 = targets @ self._items.source[prepared.liked].T
        addends *= shares
        if self._similarity is not None:
            positions = self._items.position[rows]
            if prepared.positions.min() >= 0 and positions.min() >= 0:
                addends += self._weight * self._similarity.addends(prepared.positions, positions).T
            else:
                seen, known = np.flatnonzero(prepared.positions >= 0), np.flatnonzero(positions >= 0)
                pairs = self._similarity.addends(prepared.positions[seen], positions[known])
                addends[np.ix_(known, seen)] += self._weight * pairs.T
        return addends


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """A query with what several steps need of it."""

    query: RankQuery
    banned: Int64  # rows
    liked: Int64  # [s] rows of the seen items that were liked and are here, oldest first
    weights: Float32  # [s]
    positions: Int64  # [s]


_NOTHING = RankResult(_no_rows(), np.empty(0, np.float32), [])


def _with_one(queries: Sequence[RankQuery]) -> Float32:
    """The queries' vectors [q, D + 1], with 1 where items have their bias."""
    first = queries[0].vector
    assert first is not None
    vectors = np.ones((len(queries), len(first) + 1), np.float32)
    for place, query in enumerate(queries):
        vectors[place, :-1] = query.vector
    return vectors


def _top(rows: Int64, scores: Float32, n: int) -> tuple[Int64, Float32]:
    """The n greatest scores above -inf, best first, equal ones by row."""
    if n < len(scores):
        least = np.partition(scores, len(scores) - n)[len(scores) - n]
        # All that tie with the last place, so that the row decides among them.
        picked = np.flatnonzero(scores >= least)
    else:
        picked = np.arange(len(scores))
    rows, scores = rows[picked], scores[picked]
    order = np.lexsort((rows, -scores))[:n]
    order = order[scores[order] > -np.inf]
    return rows[order], scores[order]
