r"""Two-stage ranking: encoder vectors retrieve, the sparse item-item matrix re-scores and gives the reasons.

For a user with vector v who has seen items j with weights a_j (0: seen, not liked), d = sum of a:

    score(i)           = v . y_i + bias_i + w * sum over j with a_j > 0 of B[j, i]
    contribution(j, i) = (a_j / d) z_j . y_i + w * B[j, i]

y is an item's target vector, z its source vector, B the item-item matrix, w its weight. With
v = sum of a_j z_j / d + (part of the user's attributes), the contributions, the bias and the attributes'
part add up to the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from graph.errors import UnknownItem
from models.ranking_settings import RankingSettings
from models.vector_index import ReadWriteLock, VectorIndex, VectorSearch

if TYPE_CHECKING:
    from models.item_similarity import ItemSimilarity

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Reasons: TypeAlias = tuple[tuple[int, float], ...]
"""(item row, contribution) of the one to three seen items that contributed most, greatest first."""

MAX_REASONS = 3

_EXHAUSTIVE_ITEMS = 20_000
"""Catalogues up to this are scored whole: one matrix product costs less than a search for 500 candidates."""

_EXHAUSTIVE_ADDENDS = 400_000
"""Item-item addends per user above which candidates are cheaper than the whole catalogue."""


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

    Never answers fewer than n items while that many are eligible. Catalogues of up to 20,000 items, and
    filters that pass few, are scored whole and exactly; beyond that, candidates are the
    `settings.num_candidates` best by vector united with the neighbours of recently liked items, and exclusions
    and filters hold again after the union.

    Threads: `recommend`, `similar` and `vectors` run concurrently; `upsert` and `remove` wait for them and keep
    new ones out, so one answer never mixes two states.

    Item rows are never reused; like the graph's view, tables indexed by row keep the places of deleted items.
    """

    def __init__(
        self,
        dim: int,
        similarity: ItemSimilarity | None,
        settings: RankingSettings,
        index: VectorSearch | None = None,
    ) -> None:
        self.dim = dim
        self.settings = settings
        self._similarity = similarity if settings.similarity_weight > 0 else None
        # One more dimension for the bias, where queries have 1.
        self._index: VectorSearch = VectorIndex(dim + 1) if index is None else index
        self._lock = ReadWriteLock()
        # By item row.
        self._source = np.zeros((0, dim), np.float32)
        self._degree = np.zeros(0, np.float32)
        self._position = np.full(0, -1, np.int64)
        self._inverse_norm = np.zeros(0, np.float32)  # of the target without bias
        # By position in the encoder's id table: the live row, -1 for none.
        self._row_of = np.full(0 if similarity is None else similarity.size, -1, np.int64)

    def __len__(self) -> int:
        return len(self._index)

    # ------------------------------------------------------------------------------------------- mutation

    def upsert(
        self,
        rows: Int64,
        source: Float32,
        target: Float32,
        bias: Float32,
        degree: npt.ArrayLike,
        positions: Int64,
    ) -> None:
        """Add or replace items.

        rows int64 [m], unique; source and target float32 [m, D]; bias float32 [m]; degree [m] orders popular
        items; positions int64 [m] are places in the encoder's id table, -1 for items made after training.
        """
        rows = np.asarray(rows, np.int64)
        if len(rows) == 0:
            return
        target = np.asarray(target, np.float32)
        with self._lock.write():
            self._index.upsert(rows, np.column_stack([target, np.asarray(bias, np.float32)]))
            self._reserve(int(rows.max()) + 1)
            self._forget_positions(rows)
            norm = np.linalg.norm(target, axis=1)
            self._source[rows] = source
            self._degree[rows] = degree
            self._position[rows] = positions
            self._inverse_norm[rows] = np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0)
            if self._similarity is not None:
                known = positions >= 0
                self._row_of[positions[known]] = rows[known]

    def remove(self, rows: Int64) -> int:
        """Forget items; unknown rows are ignored. Returns how many there were."""
        with self._lock.write():
            rows = np.asarray(rows, np.int64)
            rows = rows[(rows >= 0) & (rows < len(self._position))]
            self._forget_positions(rows)
            return self._index.remove(rows)

    # --------------------------------------------------------------------------------------------- reading

    def recommend(self, queries: Sequence[RankQuery]) -> list[RankResult]:
        """Rank for each query, in order. Vectors of all queries meet the catalogue in one matrix product."""
        for query in queries:
            if query.vector is not None and query.vector.shape != (self.dim,):
                raise ValueError(f"a query's vector has shape {query.vector.shape}, expected ({self.dim},)")
        with self._lock.read():
            ranked: list[tuple[Int64, Float32] | None] = [None] * len(queries)
            whole: list[int] = []
            searched: list[int] = []
            for place, query in enumerate(queries):
                if query.vector is None:
                    ranked[place] = self._popular(query)
                elif query.allowed is not None and len(query.allowed) <= _EXHAUSTIVE_ITEMS:
                    slots = self._slots(query.allowed)
                    _, dense = self._index.dense()
                    ranked[place] = self._rank_slots(query, slots, _scores_of(dense[slots], query.vector))
                else:
                    (whole if self._affordable(query) else searched).append(place)
            if whole:
                _, dense = self._index.dense()
                vectors = self._with_one([queries[place] for place in whole])
                products = vectors @ dense.T  # [queries, items]
                for place, product in zip(whole, products, strict=True):
                    ranked[place] = self._rank_whole(queries[place], product)
            for place, slots in zip(searched, self._candidates([queries[p] for p in searched]), strict=True):
                ranked[place] = self._rank_candidates(queries[place], slots)
            return [
                self._explained(query, *result)
                for query, result in zip(queries, ranked, strict=True)
                if result is not None
            ]

    def similar(
        self, row: int, n: int = 10, allowed: Int64 | None = None, exclude: Int64 | None = None
    ) -> RankResult:
        """The n items whose target vectors have the greatest cosine with that of `row`, itself left out.

        Raises UnknownItem. O(items * D).
        """
        with self._lock.read():
            own = int(self._index.slots(np.array([row], np.int64))[0])
            if own < 0:
                raise UnknownItem(f"item row {row} has no vector here")
            ids, dense = self._index.dense()
            slots = np.arange(len(ids)) if allowed is None else self._slots(allowed)
            banned = np.append(_no_rows() if exclude is None else exclude, row)
            slots = slots[~np.isin(ids[slots], banned)]
            # The bias takes no part: 0 in the query's last dimension.
            query = dense[own].copy()
            query[-1] = 0
            cosines = dense[slots] @ query if allowed is not None else (dense @ query)[slots]
            cosines *= self._inverse_norm[ids[slots]] * self._inverse_norm[row]
            rows, scores = _top(ids[slots], cosines, n)
            return RankResult(rows, scores, [()] * len(rows))

    def vectors(self, rows: Int64) -> tuple[Float32, Float32, Float32]:
        """Copies of source [m, D], target [m, D] and bias [m]; raises UnknownItem."""
        with self._lock.read():
            slots = self._index.slots(rows)
            if (slots < 0).any():
                raise UnknownItem(f"item row {int(np.asarray(rows)[slots < 0][0])} has no vector here")
            found = self._index.dense()[1][slots]
            return self._source[rows], found[:, :-1].copy(), found[:, -1].copy()

    # ------------------------------------------------------------------------------------------ first stage

    def _affordable(self, query: RankQuery) -> bool:
        """Whether scoring the whole catalogue costs less than candidates (measured: benchmarks/ranking.py)."""
        if len(self) <= 2 * max(self.settings.num_candidates, query.n):
            return True
        if len(self) > _EXHAUSTIVE_ITEMS:
            return False
        if self._similarity is None:
            return True
        per_item = self._similarity.nnz / max(1, self._similarity.size)
        return len(query.seen_rows) * per_item <= _EXHAUSTIVE_ADDENDS

    def _candidates(self, queries: Sequence[RankQuery]) -> list[Int64]:
        """Slots of each query's candidates, exclusions and filters applied; ascending and unique."""
        if not queries:
            return []
        banned = [self._banned(query) for query in queries]
        found: list[Int64] = [_no_rows()] * len(queries)
        filtered = [place for place, query in enumerate(queries) if query.allowed is not None]
        together = [place for place, query in enumerate(queries) if query.allowed is None]
        for group in ([together] if together else []) + [[place] for place in filtered]:
            ids, _ = self._index.search(
                self._with_one([queries[place] for place in group]),
                max(self.settings.num_candidates, *(queries[place].n for place in group)),
                [banned[place] for place in group],
                queries[group[0]].allowed,
            )
            for place, row_ids in zip(group, ids, strict=True):
                found[place] = row_ids
        return [
            self._eligible(query, np.concatenate([rows, self._neighbours(query)]), ban)
            for query, rows, ban in zip(queries, found, banned, strict=True)
        ]

    def _neighbours(self, query: RankQuery) -> Int64:
        """Rows of the item-item neighbours of the items liked last; deleted ones are -1."""
        limit, recent = self.settings.neighbours_per_recent, self.settings.num_recent
        if self._similarity is None or limit == 0 or recent == 0:
            return _no_rows()
        liked, _ = self._liked(query)
        positions = self._position[liked[-recent:]]
        return self._row_of[self._similarity.neighbours(positions[positions >= 0], limit)]

    def _eligible(self, query: RankQuery, rows: Int64, banned: Int64) -> Int64:
        rows = np.unique(rows)
        rows = rows[~np.isin(rows, banned)]
        if query.allowed is not None:
            rows = rows[np.isin(rows, query.allowed)]
        return self._slots(rows)

    # ----------------------------------------------------------------------------------------- second stage

    def _rank_candidates(self, query: RankQuery, slots: Int64) -> tuple[Int64, Float32]:
        ids, dense = self._index.dense()
        vector = query.vector
        assert vector is not None
        if len(slots) < query.n:
            # An index that is not exact may find less than there is: nobody gets a short list for that.
            slots = np.arange(len(ids)) if query.allowed is None else self._slots(query.allowed)
            return self._rank_slots(query, slots, _scores_of(dense[slots], vector))
        scores = _scores_of(dense[slots], vector)
        self._add_similarity(query, ids[slots], scores)
        return _top(ids[slots], scores, query.n)

    def _rank_slots(self, query: RankQuery, slots: Int64, scores: Float32) -> tuple[Int64, Float32]:
        """Rank the slots that are not banned, given their vector scores."""
        rows = self._index.dense()[0][slots]
        keep = ~np.isin(rows, self._banned(query))
        rows, scores = rows[keep], scores[keep]
        self._add_similarity(query, rows, scores)
        return _top(rows, scores, query.n)

    def _rank_whole(self, query: RankQuery, scores: Float32) -> tuple[Int64, Float32]:
        """Rank the catalogue, given all vector scores by slot (overwritten)."""
        rows, _ = self._index.dense()
        self._add_similarity(query, rows, scores)
        banned = self._banned(query)
        scores[self._slots(banned)] = -np.inf
        if query.allowed is not None:
            passes = np.zeros(len(rows), np.bool_)
            passes[self._slots(query.allowed)] = True
            scores[~passes] = -np.inf
        return _top(rows, scores, query.n)

    def _popular(self, query: RankQuery) -> tuple[Int64, Float32]:
        """Items by degree."""
        rows, _ = self._index.dense()
        if query.allowed is not None:
            rows = rows[self._slots(query.allowed)]
        rows = rows[~np.isin(rows, self._banned(query))]
        return _top(rows, self._degree[rows], query.n)

    def _add_similarity(self, query: RankQuery, rows: Int64, scores: Float32) -> None:
        """Add w * sum of B over the liked items to scores [m] of rows [m], in place."""
        if self._similarity is None or len(rows) == 0:
            return
        liked, _ = self._liked(query)
        seen = self._position[liked]
        seen = seen[seen >= 0]
        if len(seen) == 0:
            return
        targets = self._position[rows]
        weight = np.float32(self.settings.similarity_weight)
        if targets.min() >= 0:
            scores += weight * self._similarity.scores(seen, targets)
        else:
            known = targets >= 0  # items made after training are in no pair
            scores[known] += weight * self._similarity.scores(seen, targets[known])

    # ---------------------------------------------------------------------------------------------- reasons

    def _explained(self, query: RankQuery, rows: Int64, scores: Float32) -> RankResult:
        if not query.explain or query.vector is None or len(rows) == 0:
            return RankResult(rows, scores, [()] * len(rows))
        liked, addends = self._contributions(query, rows)
        if len(liked) == 0:
            return RankResult(rows, scores, [()] * len(rows))
        count = min(MAX_REASONS, len(liked))
        best = np.argpartition(addends, len(liked) - count, axis=0)[-count:]  # [count, n]
        values = np.take_along_axis(addends, best, axis=0)
        order = np.lexsort((best, -values), axis=0)
        values = np.take_along_axis(values, order, axis=0).T.tolist()
        because = liked[np.take_along_axis(best, order, axis=0)].T.tolist()
        # The greatest is a reason whatever its sign; further ones only if they spoke for the item.
        reasons: list[Reasons] = [
            tuple((row, value) for k, (row, value) in enumerate(zip(*pair, strict=True)) if k == 0 or value > 0)
            for pair in zip(because, values, strict=True)
        ]
        return RankResult(rows, scores, reasons)

    def _contributions(self, query: RankQuery, rows: Int64) -> tuple[Int64, Float32]:
        """What each liked item adds to the score of each of rows [n]: liked rows [s], float32 [s, n]."""
        liked, weights = self._liked(query)
        targets = self._index.dense()[1][self._index.slots(rows), :-1]
        # d counts every seen item, also those whose vectors are gone.
        total = np.float32(query.seen_weights.sum())
        addends: Float32 = (self._source[liked] * (weights / total)[:, None]) @ targets.T  # [s, n]
        if self._similarity is not None and len(liked):
            seen, positions = self._position[liked], self._position[rows]
            known_seen, known = np.flatnonzero(seen >= 0), np.flatnonzero(positions >= 0)
            pairs = self._similarity.addends(seen[known_seen], positions[known])
            addends[np.ix_(known_seen, known)] += np.float32(self.settings.similarity_weight) * pairs
        return liked, addends

    # ------------------------------------------------------------------------------------------- small parts

    def _liked(self, query: RankQuery) -> tuple[Int64, Float32]:
        """Rows and weights of the seen items that were liked and are still here, oldest first."""
        keep = (query.seen_weights > 0) & (self._index.slots(query.seen_rows) >= 0)
        return query.seen_rows[keep], query.seen_weights[keep]

    def _banned(self, query: RankQuery) -> Int64:
        if not query.exclude_seen:
            return query.exclude
        return np.concatenate([query.seen_rows, query.exclude]) if len(query.exclude) else query.seen_rows

    def _slots(self, rows: Int64) -> Int64:
        """Slots of the rows that are here, without duplicates."""
        slots = np.unique(self._index.slots(rows))
        return slots[np.searchsorted(slots, 0) :]

    def _with_one(self, queries: Sequence[RankQuery]) -> Float32:
        vectors = np.ones((len(queries), self.dim + 1), np.float32)
        for place, query in enumerate(queries):
            vectors[place, :-1] = query.vector
        return vectors

    def _reserve(self, length: int) -> None:
        if length <= len(self._position):
            return
        length = max(length, len(self._position) * 3 // 2)
        for name, fill in (("_source", 0), ("_degree", 0), ("_position", -1), ("_inverse_norm", 0)):
            old = getattr(self, name)
            grown = np.full((length, *old.shape[1:]), fill, old.dtype)
            grown[: len(old)] = old
            setattr(self, name, grown)

    def _forget_positions(self, rows: Int64) -> None:
        """Detach rows from the id table; a place that another row has taken over since stays with that."""
        positions = self._position[rows]
        mine = positions >= 0
        if self._similarity is not None and mine.any():
            mine[mine] = self._row_of[positions[mine]] == rows[mine]
            self._row_of[positions[mine]] = -1
        self._position[rows] = -1


def _scores_of(targets: Float32, vector: Float32) -> Float32:
    """Vector plus bias scores [m] of targets [m, D + 1]."""
    scores: Float32 = targets[:, :-1] @ vector + targets[:, -1]
    return scores


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
