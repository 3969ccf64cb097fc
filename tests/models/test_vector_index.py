"""The index against brute force over a plain dict."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import models.vector_index
from models.vector_index import VectorIndex

DIM = 5


def brute_force(
    held: dict[int, np.ndarray], query: np.ndarray, k: int, exclude: set[int], allowed: set[int] | None
) -> list[float]:
    passing = [i for i in held if i not in exclude and (allowed is None or i in allowed)]
    return sorted((float(held[i] @ query) for i in passing), reverse=True)[:k]


def check(
    held: dict[int, np.ndarray],
    index: VectorIndex,
    queries: np.ndarray,
    k: int,
    exclude: list[np.ndarray] | None,
    allowed: np.ndarray | None,
) -> None:
    ids, scores = index.search(queries, k, exclude, allowed)
    assert ids.shape == scores.shape == (len(queries), k)
    assert ids.dtype == np.int64 and scores.dtype == np.float32
    for q, query in enumerate(queries):
        banned = set() if exclude is None else set(exclude[q].tolist())
        passing = None if allowed is None else set(allowed.tolist())
        best = brute_force(held, query, k, banned, passing)
        got = ids[q][: len(best)]
        assert (ids[q][len(best) :] == -1).all() and np.isneginf(scores[q][len(best) :]).all()
        np.testing.assert_allclose(scores[q][: len(best)], best, atol=1e-4)
        assert len(set(got.tolist())) == len(best)
        for found, score in zip(got.tolist(), scores[q], strict=False):
            assert found not in banned and (passing is None or found in passing)
            assert float(held[found] @ query) == pytest.approx(float(score), abs=1e-4)


class IndexMachine(RuleBasedStateMachine):
    """Any order of writes and searches, ids that come back, duplicates and unknown ids everywhere."""

    ids = st.lists(st.integers(0, 60), max_size=25)

    @initialize(
        seed=st.integers(0, 2**32 - 1), few=st.sampled_from([0, 4096]), heavy=st.sampled_from([3, 512])
    )
    def start(self, seed: int, few: int, heavy: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.index = VectorIndex(DIM)
        self.held: dict[int, np.ndarray] = {}
        # Small sizes would otherwise never reach the selector's paths.
        models.vector_index._EXHAUSTIVE_ALLOWED = few
        models.vector_index._SELECTOR_EXCLUDES = heavy

    def teardown(self) -> None:
        models.vector_index._EXHAUSTIVE_ALLOWED = 4096
        models.vector_index._SELECTOR_EXCLUDES = 512

    @rule(ids=ids)
    def upsert(self, ids: list[int]) -> None:
        vectors = self.rng.standard_normal((len(ids), DIM)).astype(np.float32)
        self.index.upsert(np.array(ids, np.int64), vectors)
        self.held.update(zip(ids, vectors, strict=True))

    @rule(ids=ids)
    def remove(self, ids: list[int]) -> None:
        gone = {i for i in ids if self.held.pop(i, None) is not None}
        assert self.index.remove(np.array(ids, np.int64)) == len(gone)

    @rule(
        q=st.integers(1, 4),
        k=st.integers(1, 80),
        exclude=st.none() | st.lists(ids, min_size=4, max_size=4),
        everything=st.booleans(),
        allowed=st.none() | st.lists(st.integers(-3, 90), max_size=40),
    )
    def search(
        self, q: int, k: int, exclude: list[list[int]] | None, everything: bool, allowed: list[int] | None
    ) -> None:
        queries = self.rng.standard_normal((q, DIM)).astype(np.float32)
        banned = None if exclude is None else [np.array(e * 2, np.int64) for e in exclude[:q]]
        if banned is not None and everything:
            banned[0] = np.arange(61)
        passing = None if allowed is None else np.array(allowed, np.int64)
        check(self.held, self.index, queries, k, banned, passing)

    @invariant()
    def holds_what_was_written(self) -> None:
        assert len(self.index) == len(self.held)
        known = np.array(sorted(self.held), np.int64)
        if len(known):
            np.testing.assert_array_equal(self.index.vectors(known), [self.held[i] for i in known.tolist()])
        asked = np.arange(-2, 70)
        assert self.index.contains(asked).tolist() == [i in self.held for i in asked.tolist()]


IndexMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestIndexMachine = IndexMachine.TestCase


@given(seed=st.integers(0, 2**32 - 1), q=st.sampled_from([1, 2, 40]), k=st.sampled_from([1, 10, 3000]))
@settings(max_examples=30, deadline=None)
def test_search_of_thousands_equals_brute_force(seed: int, q: int, k: int) -> None:
    """Large enough for FAISS to use BLAS and for queries with many and few exclusions in one batch."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(4000)[:2500].astype(np.int64)
    vectors = rng.standard_normal((len(ids), 32)).astype(np.float32)
    index = VectorIndex(32)
    index.upsert(ids, vectors)
    gone = rng.choice(ids, 300, replace=False)
    assert index.remove(gone) == 300
    held = {i: v for i, v in zip(ids.tolist(), vectors, strict=True) if i not in set(gone.tolist())}
    exclude = [rng.integers(0, 4000, int(size)) for size in rng.choice([0, 5, 100, 1500], q)]
    allowed = None if rng.random() < 0.5 else rng.integers(0, 4000, int(rng.choice([3, 200, 6000])))
    queries = rng.standard_normal((q, 32)).astype(np.float32)
    for some in (queries[:3], queries):
        ids_found, _ = index.search(some, k, exclude[: len(some)], allowed)
        assert len(ids_found) == len(some)
    check(held, index, queries[:3], k, exclude[:3], allowed)
    batch_ids, batch_scores = index.search(queries, k, exclude, allowed)
    for place in range(0, q, 7):
        one_ids, one_scores = index.search(queries[place : place + 1], k, exclude[place : place + 1], allowed)
        np.testing.assert_allclose(batch_scores[place], one_scores[0], atol=1e-4)
        assert set(batch_ids[place].tolist()) == set(one_ids[0].tolist())


def test_an_empty_index_answers_padding() -> None:
    index = VectorIndex(DIM)
    for exclude, allowed in (
        (None, None),
        ([np.array([1])], None),
        (None, np.array([1])),
        (None, np.array([])),
    ):
        ids, scores = index.search(np.ones((1, DIM), np.float32), 3, exclude, allowed)
        assert ids.tolist() == [[-1, -1, -1]] and np.isneginf(scores).all()
    assert index.search(np.empty((0, DIM), np.float32), 3)[0].shape == (0, 3)
    assert index.remove(np.array([5])) == 0
    index.upsert(np.empty(0, np.int64), np.empty((0, DIM), np.float32))
    assert len(index) == 0


def test_the_last_of_duplicate_ids_wins() -> None:
    index = VectorIndex(1)
    for _ in range(2):  # as new, then as known
        index.upsert(np.array([7, 3, 7]), np.array([[1], [2], [3]], np.float32))
        assert index.vectors(np.array([7, 3])).tolist() == [[3], [2]]
        assert len(index) == 2


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    index = VectorIndex(2)
    index.upsert(np.array([1]), np.ones((1, 2), np.float32))
    for ids, vectors in (
        (np.array([1]), np.array([[np.nan, 0]], np.float32)),
        (np.array([2]), np.array([[np.inf, 0]], np.float32)),
        (np.array([-1]), np.ones((1, 2), np.float32)),
        (np.array([1, 2]), np.ones((1, 2), np.float32)),
        (np.array([1]), np.ones((1, 3), np.float32)),
    ):
        with pytest.raises(ValueError):
            index.upsert(ids, vectors)
    with pytest.raises(ValueError, match="exclusions"):
        index.search(np.ones((2, 2), np.float32), 1, [np.array([1])])
    with pytest.raises(ValueError, match="k is 0"):
        index.search(np.ones((1, 2), np.float32), 0)
    with pytest.raises(KeyError, match="9"):
        index.vectors(np.array([1, 9]))
    assert index.vectors(np.array([1])).tolist() == [[1, 1]]


def test_searches_beside_mutation_never_see_half_a_write() -> None:
    """Both ids always hold the same value and each write moves them together; the reader must agree."""
    index = VectorIndex(2)
    index.upsert(np.arange(100), np.zeros((100, 2), np.float32))
    stop = threading.Event()
    torn: list[np.ndarray] = []

    def read() -> None:
        while not stop.is_set():
            _, scores = index.search(np.array([[1, 1], [1, 1]], np.float32), 100)
            if scores.min() != scores.max():
                torn.append(scores)

    readers = [threading.Thread(target=read, daemon=True) for _ in range(2)]
    for reader in readers:
        reader.start()
    for value in range(1, 300):
        index.upsert(np.arange(100), np.full((100, 2), value, np.float32))
        index.upsert(np.array([100 + value]), np.full((1, 2), value, np.float32))
        assert index.remove(np.array([100 + value])) == 1
    stop.set()
    for reader in readers:
        reader.join(timeout=20)
        assert not reader.is_alive()
    assert not torn


def test_faiss_is_loaded_on_first_use_only() -> None:
    code = "import sys, models.ranking; sys.exit(bool({'faiss', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
