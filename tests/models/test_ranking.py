"""The ranker against a plain loop over its own equation."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph.errors import UnknownItem
from models.item_similarity import ItemSimilarity
from models.ranking import Ranker, RankQuery
from models.ranking_settings import RankingSettings
from models.vector_index import VectorIndex

DIM = 6


@dataclass
class DenseSimilarity:
    """ItemSimilarity as a dense matrix."""

    matrix: np.ndarray  # [size, size], B[j, i]

    @property
    def size(self) -> int:
        return len(self.matrix)

    @property
    def nnz(self) -> int:
        return int(np.count_nonzero(self.matrix))

    def addends(self, seen: np.ndarray, targets: np.ndarray) -> np.ndarray:
        assert (seen >= 0).all() and (targets >= 0).all()
        return self.matrix[np.ix_(seen, targets)]

    def scores(self, seen: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return self.addends(seen, targets).sum(axis=0)

    def neighbours(self, seen: np.ndarray, limit: int) -> np.ndarray:
        if len(seen) == 0:
            return np.empty(0, np.int64)
        return np.unique(np.argsort(-self.matrix[seen], axis=1)[:, :limit])


class World:
    """A ranker and everything it was told, plus random users."""

    def __init__(self, seed: int, count: int, size: int, setting: RankingSettings, exhaustive: int) -> None:
        self.rng = np.random.default_rng(seed)
        rng = self.rng
        matrix = rng.standard_normal((size, size)).astype(np.float32) * (rng.random((size, size)) < 0.3)
        np.fill_diagonal(matrix, 0)
        self.similarity = DenseSimilarity(matrix.astype(np.float32))
        self.setting = setting
        self.ranker = Ranker(DIM, self.similarity, setting, exhaustive_items=exhaustive)  # type: ignore[arg-type]
        self.items: dict[int, tuple[np.ndarray, np.ndarray, float, float, int]] = {}
        rows = rng.permutation(2 * count)[:count]
        positions = np.full(count, -1)
        trained = min(size, count * 3 // 4)
        positions[:trained] = rng.permutation(size)[:trained]
        self.write(rows, positions)

    def write(self, rows: np.ndarray, positions: np.ndarray) -> None:
        rng, m = self.rng, len(rows)
        source, target = rng.standard_normal((2, m, DIM)).astype(np.float32)
        bias = rng.standard_normal(m).astype(np.float32)
        degree = rng.integers(0, 5, m)
        self.ranker.upsert(rows, source, target, bias, degree, positions)
        for k, row in enumerate(rows.tolist()):
            self.items[row] = (source[k], target[k], float(bias[k]), float(degree[k]), int(positions[k]))

    def remove(self, rows: np.ndarray) -> None:
        self.ranker.remove(rows)
        for row in rows.tolist():
            self.items.pop(row, None)

    def query(self, n: int = 10, unknown: bool = True) -> tuple[RankQuery, np.ndarray]:
        """A user with the vector the encoder would give, and the attributes' part of it."""
        rng = self.rng
        known = np.array(sorted(self.items), np.int64)
        seen = rng.choice(known, rng.integers(0, len(known) // 2 + 1), replace=False)
        if unknown:
            seen = np.append(seen, 10_000 + rng.integers(0, 5))
        weights = rng.choice([0, 0.5, 1], len(seen)).astype(np.float32)
        attributes = rng.standard_normal(DIM).astype(np.float32)
        vector = attributes.copy()
        total = weights.sum()
        for row, weight in zip(seen.tolist(), weights, strict=True):
            if row in self.items and weight > 0:
                vector += weight / total * self.items[row][0]
        allowed = None if rng.random() < 0.5 else rng.choice(known, rng.integers(0, len(known)))
        return (
            RankQuery(
                vector,
                seen,
                weights,
                exclude=rng.integers(0, 2 * len(known) + 5, rng.integers(0, 8)),
                allowed=allowed,
                n=n,
                exclude_seen=bool(rng.random() < 0.7),
            ),
            attributes,
        )

    def similarity_of(self, j: int, i: int) -> float:
        pj, pi = self.items[j][4], self.items[i][4]
        if pj < 0 or pi < 0:
            return 0.0
        return self.setting.similarity_weight * float(self.similarity.matrix[pj, pi])

    def expected(self, query: RankQuery, row: int) -> float:
        """In place of the similarities, for an item outside the matrix: straight lines between the knots."""
        setting = self.setting
        if self.items[row][4] >= 0 or setting.similarity_weight == 0 or not setting.outside_scores:
            return 0.0
        score = float(query.vector @ self.items[row][1]) + self.items[row][2]
        knots = list(zip(setting.outside_scores, setting.outside_addends, strict=True))
        value = knots[0][1]
        for (x, y), (further, greater) in pairwise(knots):
            if x <= score:
                value = y + (greater - y) * min(1.0, (score - x) / (further - x))
        return value * sum(self.items[j][4] >= 0 for j in self.liked(query))

    def liked(self, query: RankQuery) -> dict[int, float]:
        pairs = zip(query.seen_rows.tolist(), query.seen_weights.tolist(), strict=True)
        return {row: weight for row, weight in pairs if weight > 0 and row in self.items}

    def scores(self, query: RankQuery) -> dict[int, float]:
        """Every eligible row and its score."""
        banned = set(query.exclude.tolist()) | (
            set(query.seen_rows.tolist()) if query.exclude_seen else set()
        )
        allowed = None if query.allowed is None else set(query.allowed.tolist())
        liked = self.liked(query)
        result = {}
        for row, (_, target, bias, degree, _) in self.items.items():
            if row in banned or (allowed is not None and row not in allowed):
                continue
            if query.vector is None:
                result[row] = degree
            else:
                sums = sum(self.similarity_of(j, row) for j in liked) + self.expected(query, row)
                result[row] = float(query.vector @ target) + bias + sums
        return result

    def contribution(self, query: RankQuery, j: int, i: int) -> float:
        share = self.liked(query)[j] / float(query.seen_weights.sum())
        return share * float(self.items[j][0] @ self.items[i][1]) + self.similarity_of(j, i)


OUTSIDE = {"outside_scores": (-2.0, 0.5, 3.0), "outside_addends": (0.01, 0.02, 0.3)}

# Which way a query takes must not show in the answer, as long as the candidates cover everything.
PATHS = {
    "whole": (RankingSettings(0.7), 100_000),
    "small filters whole": (RankingSettings(0.7, num_candidates=60), 12),
    "searched": (RankingSettings(0.7, num_candidates=60, num_recent=3, neighbours_per_recent=4), 0),
    "by vector alone": (RankingSettings(0.0, num_candidates=60, **OUTSIDE), 0),
    "whole, with amounts outside": (RankingSettings(0.7, **OUTSIDE), 100_000),
    "searched, with amounts outside": (RankingSettings(0.7, num_candidates=60, **OUTSIDE), 0),
}
Path = tuple[RankingSettings, int]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Path:
    return PATHS[request.param]


def assert_best(world: World, query: RankQuery, rows: list[int], scores: list[float]) -> None:
    expected = world.scores(query)
    best = sorted(expected.values(), reverse=True)[: query.n]
    assert len(rows) == len(best) == len(set(rows))
    np.testing.assert_allclose(scores, best, atol=1e-4)
    assert [expected[row] for row in rows] == pytest.approx(scores, abs=1e-4)


@given(seed=st.integers(0, 2**32 - 1), n=st.sampled_from([1, 10, 300]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rank_equals_the_equation(path: Path, seed: int, n: int) -> None:
    """After writes, overwrites and removals; 60 candidates of 47 items make the candidate path exact too."""
    world = World(seed, 55, 30, *path)
    world.remove(world.rng.choice(np.array(list(world.items)), 10, replace=False))
    kept = world.rng.choice(np.array(list(world.items)), 8, replace=False)
    world.write(kept, np.array([world.items[row][4] for row in kept.tolist()]))
    world.write(np.array([200, 201]), np.array([-1, -1]))
    queries = [world.query(n)[0] for _ in range(7)]
    queries[2] = replace(queries[2], vector=None)
    queries[3] = replace(queries[3], explain=False)
    together = world.ranker.recommend(queries)
    assert len(together) == len(queries)
    for query, result in zip(queries, together, strict=True):
        assert_best(world, query, result.rows.tolist(), result.scores.tolist())
        assert len(result.reasons) == len(result)
        alone = world.ranker.recommend([query])[0]
        np.testing.assert_allclose(alone.scores, result.scores, atol=1e-5)
        if query.vector is None or not query.explain:
            assert all(reasons == () for reasons in result.reasons)
            continue
        liked = world.liked(query)
        for row, reasons in zip(result.rows.tolist(), result.reasons, strict=True):
            truth = {j: world.contribution(query, j, row) for j in liked}
            values = sorted(truth.values(), reverse=True)[:3]
            values = values[:1] + [value for value in values[1:] if value > 1e-5]
            assert [value for _, value in reasons][: len(values)] == pytest.approx(values, abs=1e-4)
            assert len(reasons) >= min(1, len(liked))
            for j, value in reasons:
                assert truth[j] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_contributions_bias_and_attributes_add_up_to_the_score(path: Path, seed: int) -> None:
    world = World(seed, 40, 30, *path)
    query, attributes = world.query(n=40, unknown=False)
    query = replace(query, exclude_seen=False, allowed=None)
    result = world.ranker.recommend([query])[0]
    prepared = world.ranker._prepare(query)
    contributions = world.ranker._contributions(prepared, result.rows)
    _, targets, bias = world.ranker.vectors(result.rows)
    # What is expected of items outside the matrix has no reason.
    amounts = np.array([world.expected(query, row) for row in result.rows.tolist()])
    np.testing.assert_allclose(
        contributions.sum(axis=1) + bias + targets @ attributes + amounts, result.scores, atol=1e-4
    )
    for place, reasons in enumerate(result.reasons):
        assert [value for _, value in reasons] == sorted(contributions[place].tolist(), reverse=True)[
            : len(reasons)
        ]


def test_candidates_bring_in_neighbours_of_recently_liked_items() -> None:
    world = World(3, 400, 300, RankingSettings(100.0, 20, num_recent=2, neighbours_per_recent=1), 0)
    by_position = {item[4]: row for row, item in world.items.items() if item[4] >= 0}
    liked = [by_position[p] for p in (5, 6, 7)]
    seen = np.array([*liked, by_position[8]])
    weights = np.array([1, 1, 1, 0], np.float32)
    world.similarity.matrix[:] = 0
    for seen_position, target in ((5, 20), (6, 21), (7, 22), (8, 23)):
        world.similarity.matrix[seen_position, target] = 1
        # Nothing brings it in by its vector.
        row = np.array([by_position[target]])
        world.ranker.upsert(
            row, np.zeros((1, DIM)), np.zeros((1, DIM)), np.array([-90]), np.zeros(1), np.array([target])
        )
    query = RankQuery(np.ones(DIM, np.float32), seen, weights, n=5)
    result = world.ranker.recommend([query])[0].rows.tolist()
    # 6 and 7 are the last two liked ones; 8 was seen, not liked; 5 lies too far back.
    assert {by_position[21], by_position[22]} <= set(result)
    assert not {by_position[20], by_position[23]} & set(result)
    banned = replace(query, exclude=np.array([by_position[21]]), allowed=np.array(sorted(world.items)))
    assert by_position[21] not in world.ranker.recommend([banned])[0].rows.tolist()
    # Created again under the same id while the row before is still here, which goes late.
    old, again, one = np.array([by_position[22]]), np.array([5000]), np.zeros(1)
    world.ranker.upsert(again, np.zeros((1, DIM)), np.zeros((1, DIM)), one, one, np.array([22]))
    world.ranker.remove(old)
    result = world.ranker.recommend([query])[0].rows.tolist()
    assert 5000 in result and by_position[22] not in result
    # A deleted neighbour is no candidate.
    world.ranker.remove(again)
    assert 5000 not in world.ranker.recommend([query])[0].rows.tolist()


def test_an_item_outside_the_matrix_can_come_first() -> None:
    """Made or first rated since training: it gets what such scores get; reasons are the encoder's."""
    matrix = np.zeros((3, 3), np.float32)
    matrix[0, 1] = 1
    knots = {"outside_scores": (0.0, 1.0), "outside_addends": (0.0, 4.0)}
    one, rows = np.ones((4, 1), np.float32), np.arange(4)
    target = np.array([[1], [0.5], [0.2], [0.9]], np.float32)
    query = RankQuery(np.ones(1, np.float32), np.array([0]), np.ones(1, np.float32))
    tops = []
    for settings_ in (RankingSettings(2.0), RankingSettings(2.0, **knots)):
        ranker = Ranker(1, DenseSimilarity(matrix), settings_)  # type: ignore[arg-type]
        ranker.upsert(rows, one, target, np.zeros(4), np.array([1, 1, 1, 5]), np.array([0, 1, 2, -1]))
        tops.append(ranker.recommend([query])[0])
    before, after = tops
    assert before.rows.tolist() == [1, 3, 2] and after.rows.tolist() == [3, 1, 2]
    assert after.scores.tolist() == pytest.approx([0.9 + 3.6, 0.5 + 2, 0.2])
    assert after.reasons[0] == ((0, pytest.approx(0.9)),)
    # Liked things that are outside themselves say nothing about the matrix.
    outside = replace(query, seen_rows=np.array([3]))
    assert ranker.recommend([outside])[0].scores.tolist() == pytest.approx([1, 0.5, 0.2])


class Forgetful:
    """An index whose search finds nearly nothing, as an approximate one may."""

    def __init__(self, inner: VectorIndex) -> None:
        self._inner = inner

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def search(self, queries: np.ndarray, k: int, *_: object) -> tuple[np.ndarray, np.ndarray]:
        ids, scores = self._inner.search(queries, 1)
        return ids, scores


@pytest.mark.parametrize("filtered", [False, True])
def test_short_candidate_lists_are_widened(filtered: bool) -> None:
    world = World(1, 100, 50, RankingSettings(0.5, num_candidates=10, num_recent=0), 0)
    world.ranker._items.index = Forgetful(world.ranker._items.index)  # type: ignore[arg-type, assignment]
    query, _ = world.query(n=15)
    allowed = np.array(sorted(world.items)[:60]) if filtered else None
    query = replace(query, allowed=allowed)
    result = world.ranker.recommend([query])[0]
    assert_best(world, query, result.rows.tolist(), result.scores.tolist())


def test_equal_scores_are_ordered_by_row(path: Path) -> None:
    ranker = Ranker(DIM, None, path[0], exhaustive_items=path[1])
    zero = np.zeros((1, DIM), np.float32)
    for row in np.random.default_rng(0).permutation(50):  # one by one, so that slots are not in order
        ranker.upsert(np.array([row]), zero, zero, np.zeros(1), np.ones(1), np.array([row]))
    for vector in (np.ones(DIM, np.float32), None):
        result = ranker.recommend([RankQuery(vector, n=7)])[0]
        assert result.rows.tolist() == list(range(7))


def test_nothing_to_recommend(path: Path) -> None:
    ranker = Ranker(DIM, None, path[0], exhaustive_items=path[1])
    vector = np.ones(DIM, np.float32)
    assert ranker.recommend([]) == []
    for query in (RankQuery(vector), RankQuery(None), RankQuery(vector, allowed=np.array([1]))):
        assert len(ranker.recommend([query])[0]) == 0
    world = World(0, 20, 10, *path)
    everything = np.array(sorted(world.items))
    for query in (RankQuery(vector, exclude=everything), RankQuery(None, exclude=everything)):
        assert len(world.ranker.recommend([query])[0]) == 0


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_similar_is_the_cosine_without_bias(seed: int) -> None:
    world = World(seed, 40, 20, RankingSettings(1.0), 0)
    world.ranker.upsert(
        np.array([500]), np.zeros((1, DIM)), np.zeros((1, DIM)), np.ones(1), np.ones(1), np.array([-1])
    )
    world.items[500] = (np.zeros(DIM), np.zeros(DIM), 1.0, 1.0, -1)
    row = int(world.rng.choice(sorted(world.items)))
    exclude = world.rng.integers(0, 80, 5)
    allowed = None if seed % 2 else world.rng.integers(0, 80, 30)
    result = world.ranker.similar(row, 8, allowed, exclude)
    passing = set(world.items) - {row} - set(exclude.tolist())
    if allowed is not None:
        passing &= set(allowed.tolist())

    def cosine(other: int) -> float:
        a, b = world.items[row][1], world.items[other][1]
        norm = float(np.linalg.norm(a) * np.linalg.norm(b))
        return float(a @ b) / norm if norm else 0.0

    best = sorted((cosine(other) for other in passing), reverse=True)[:8]
    np.testing.assert_allclose(result.scores, best, atol=1e-5)
    assert [cosine(other) for other in result.rows.tolist()] == pytest.approx(best, abs=1e-5)
    assert set(result.rows.tolist()) <= passing
    with pytest.raises(UnknownItem):
        world.ranker.similar(999_999, 3)


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    world = World(0, 10, 10, RankingSettings(1.0), 0)
    row = np.array([min(world.items)])
    before = world.ranker.vectors(row)
    one, two = np.ones((1, DIM), np.float32), np.ones((2, DIM), np.float32)
    for source, target, bias, position in (
        (two, one, np.ones(1), np.zeros(1)),
        (one, one, np.ones(2), np.zeros(1)),
        (one * np.nan, one, np.ones(1), np.zeros(1)),
        (one, one * np.nan, np.ones(1), np.zeros(1)),
        (one, one, np.ones(1), np.array([10])),  # beyond the id table
    ):
        with pytest.raises(ValueError):
            world.ranker.upsert(row, source, target, bias, np.ones(1), position)
    for old, new in zip(before, world.ranker.vectors(row), strict=True):
        np.testing.assert_array_equal(old, new)
    with pytest.raises(UnknownItem):
        world.ranker.vectors(np.array([99]))
    with pytest.raises(ValueError, match="shape"):
        world.ranker.recommend([RankQuery(np.ones(DIM + 1, np.float32))])
    with pytest.raises(ValueError, match="n is 0"):
        RankQuery(None, n=0)


def test_an_answer_never_mixes_two_states() -> None:
    """Every write sets all targets and biases to one value: score = 2 * value, every reason = value."""
    ranker = Ranker(1, None, RankingSettings(0.0))
    rows = np.arange(200)
    ones = np.ones((200, 1), np.float32)
    ranker.upsert(rows, ones, ones, np.ones(200), rows, rows)
    stop = threading.Event()
    mixed: list[object] = []
    query = RankQuery(
        np.ones(1, np.float32), np.array([3]), np.ones(1, np.float32), n=200, exclude_seen=False
    )

    def read() -> None:
        while not stop.is_set():
            result = ranker.recommend([query])[0]
            answers = {*result.scores.tolist(), *(2 * reason[0][1] for reason in result.reasons)}
            if len(result) != 200 or len(answers) != 1:
                mixed.append(answers)

    readers = [threading.Thread(target=read, daemon=True) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for reader in readers:
            reader.start()
        for value in range(1, 200):
            ranker.upsert(rows, ones, ones * value, np.full(200, value), rows, rows)
    finally:
        stop.set()
        sys.setswitchinterval(interval)
    for reader in readers:
        reader.join(timeout=20)
        assert not reader.is_alive()
    assert not mixed


def test_a_long_batch_goes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(5, 60, 40, RankingSettings(0.3), 100_000)
    queries = [replace(world.query()[0], allowed=None) for _ in range(9)]
    whole = world.ranker.recommend(queries)
    monkeypatch.setattr("models.ranking._PRODUCT_SIZE", 130)
    for one, other in zip(whole, world.ranker.recommend(queries), strict=True):
        assert one.rows.tolist() == other.rows.tolist()


@pytest.mark.parametrize("density", [0.05, 0.9])
def test_the_real_item_similarity_fits(density: float) -> None:
    """The dense stand-in above answers as `ItemSimilarity` does, sparse and dense."""
    world = World(7, 60, 50, RankingSettings(0.5), 0)
    matrix = world.rng.random((50, 50), np.float32) * (world.rng.random((50, 50)) < density)
    np.fill_diagonal(matrix, 0)
    world.similarity.matrix = matrix
    queries = [world.query()[0] for _ in range(5)]
    expected = world.ranker.recommend(queries)
    world.ranker._similarity = ItemSimilarity(scipy.sparse.csr_matrix(matrix) if density < 0.5 else matrix)
    for one, other in zip(expected, world.ranker.recommend(queries), strict=True):
        assert one.rows.tolist() == other.rows.tolist()
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        assert [[j for j, _ in r] for r in one.reasons] == [[j for j, _ in r] for r in other.reasons]
