"""Fused search against brute force over plain dicts, and its locking."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import models.text_search
from models.text_search import (
    FULL_LEXICAL,
    LEXICAL_WEIGHT,
    MIN_LEXICAL,
    MIN_LEXICAL_ALONE,
    SearchResult,
    TextQuery,
    TextSearch,
    TitleSearch,
)
from models.trigram_index import TrigramIndex

DIM = 4
TITLES = ["Matrix, The", "The Matrix Reloaded", "Animatrix", "Alien", "Aliens", "Amélie", "Heat", "Up", "???"]
QUERIES = ["the matrx", "alien", "amelie", "heat up", "nothing of the sort", "", "???"]

_rows = st.lists(st.integers(0, 40), max_size=20)
_filter = st.none() | st.lists(st.integers(-2, 60), max_size=60)


class Oracle:
    """The documented formula over all items, one by one."""

    def __init__(self) -> None:
        self.titles: dict[int, str] = {}
        self.vectors: dict[int, np.ndarray] = {}

    def lexical(self, text: str) -> dict[int, float]:
        index = TrigramIndex()
        index.upsert(np.array(list(self.titles), np.int64), list(self.titles.values()))
        rows, scores = index.scores(text)
        return dict(zip(rows.tolist(), scores.tolist(), strict=True))

    def cosine(self, row: int, query: np.ndarray) -> float:
        lengths = np.linalg.norm(self.vectors[row]) * np.linalg.norm(query)
        return float(self.vectors[row] @ query / lengths) if lengths > 0 else 0.0

    def scores(self, text: str, query: np.ndarray | None) -> dict[int, float]:
        lexical = self.lexical(text)
        if query is None:
            return {row: score for row, score in lexical.items() if score >= MIN_LEXICAL_ALONE}
        scores = {row: self.cosine(row, query) for row in self.vectors}
        for row, score in lexical.items():
            ramp = min(max((score - MIN_LEXICAL) / (FULL_LEXICAL - MIN_LEXICAL), 0), 1)
            if ramp > 0:
                bonus = LEXICAL_WEIGHT * ramp * (score / max(lexical.values())) ** 8
                scores[row] = scores.get(row, 0.0) + bonus
        return scores


def check(
    result: SearchResult,
    scores: dict[int, float],
    n: int,
    allowed: list[int] | None,
    exclude: list[int] | None,
) -> None:
    assert result.rows.dtype == np.int64 and result.scores.dtype == np.float32
    passing = {
        row: score
        for row, score in scores.items()
        if (allowed is None or row in allowed) and (exclude is None or row not in exclude)
    }
    assert len(result) == len(result.rows) == len(result.scores) == min(n, len(passing))
    got = result.rows.tolist()
    assert len(set(got)) == len(got) and set(got) <= set(passing)
    assert result.scores.tolist() == pytest.approx(
        sorted(passing.values(), reverse=True)[: len(got)], abs=1e-5
    )
    assert result.scores.tolist() == pytest.approx([passing[row] for row in got], abs=1e-5)
    places = list(zip((-result.scores).tolist(), got, strict=True))
    assert places == sorted(places)


@pytest.fixture(autouse=True)
def restored_candidates() -> Iterator[None]:
    before = models.text_search.NUM_CANDIDATES
    yield
    models.text_search.NUM_CANDIDATES = before


def array(rows: list[int] | None) -> np.ndarray | None:
    return None if rows is None else np.array(rows, np.int64)


@given(
    seed=st.integers(0, 2**32 - 1),
    writes=st.lists(
        st.tuples(st.sampled_from(["titles", "vectors", "remove", "remove_vectors"]), _rows), max_size=10
    ),
    text=st.sampled_from(QUERIES),
    with_vector=st.booleans(),
    n=st.integers(1, 50),
    allowed=_filter,
    exclude=_filter,
    exhaustive=st.sampled_from([0, 5, 100_000]),
)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_search_and_similar_equal_brute_force(
    seed: int,
    writes: list[tuple[str, list[int]]],
    text: str,
    with_vector: bool,
    n: int,
    allowed: list[int] | None,
    exclude: list[int] | None,
    exhaustive: int,
) -> None:
    rng = np.random.default_rng(seed)
    # All items fit among the candidates here, so that every path is exact.
    search, oracle = TextSearch(DIM, exhaustive_items=exhaustive), Oracle()
    for kind, rows in [("titles", list(range(12))), ("vectors", list(range(6, 18))), *writes]:
        if kind == "titles":
            titles = [TITLES[k] for k in rng.integers(len(TITLES), size=len(rows))]
            search.upsert_texts(np.array(rows, np.int64), titles)
            oracle.titles.update(zip(rows, titles, strict=True))
        elif kind == "vectors":
            # Few directions, of any length and zero among them: many ties.
            vectors = rng.integers(-1, 2, (len(rows), DIM)).astype(np.float32)
            search.upsert_vectors(np.array(rows, np.int64), vectors)
            oracle.vectors.update(zip(rows, vectors, strict=True))
        elif kind == "remove":
            known = {row for row in rows if row in oracle.titles or row in oracle.vectors}
            titles = search.titles.remove(np.array(rows, np.int64))
            vectors = search.remove_vectors(np.array(rows, np.int64))
            assert (titles, vectors) == (len(known & set(oracle.titles)), len(known & set(oracle.vectors)))
            for row in known:
                oracle.titles.pop(row, None)
                oracle.vectors.pop(row, None)
        else:
            gone = {row for row in rows if oracle.vectors.pop(row, None) is not None}
            assert search.remove_vectors(np.array(rows, np.int64)) == len(gone)
        assert (len(search), len(search.titles)) == (len(oracle.vectors), len(oracle.titles))
    query = 3 * rng.standard_normal(DIM).astype(np.float32) if with_vector else None
    result = search.search(text, query, n, array(allowed), array(exclude))
    check(result, oracle.scores(text, query), n, allowed, exclude)
    for row in list(oracle.vectors)[:1]:
        like = {other: oracle.cosine(other, oracle.vectors[row]) for other in oracle.vectors}
        similar = search.similar(row, n, array(allowed), array(exclude))
        assert similar is not None
        check(similar, like, n, allowed, [*(exclude or []), row])


def catalogue(count: int, exhaustive_items: int) -> tuple[TextSearch, np.ndarray]:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((count, DIM)).astype(np.float32)
    search = TextSearch(DIM, exhaustive_items)
    search.upsert_vectors(np.arange(count), vectors)
    search.upsert_texts(np.arange(count + 5), [f"title {k:05} of them" for k in range(count + 5)])
    return search, vectors


def test_candidates_of_both_sides_are_united_and_rescored() -> None:
    models.text_search.NUM_CANDIDATES = 20
    (whole, vectors), (candidates, _) = catalogue(3000, 100_000), catalogue(3000, 10)
    for wanted in (7, 1234, 3003):  # the last has no vector
        for direction in (1, -1):
            query = direction * vectors[wanted % 3000]
            expected = whole.search(f"title {wanted:05}", query, 10)
            result = candidates.search(f"title {wanted:05}", query, 10)
            assert result.rows[0] == expected.rows[0]
            np.testing.assert_allclose(result.scores[0], expected.scores[0], atol=1e-6)
            allowed = np.arange(0, 3005, 2)
            result = candidates.search(f"title {wanted:05}", query, 10, allowed, np.array([wanted]))
            assert len(result) == 10 and set(result.rows.tolist()) <= set(allowed.tolist()) - {wanted}


def test_typo_finds_the_title_that_the_vector_misses() -> None:
    search = TextSearch(2)
    search.upsert_texts(np.arange(3), ["Matrix, The", "Matador, The", "Heat"])
    search.upsert_vectors(np.arange(3), np.array([[0.3, 1], [0.4, 1], [0.6, 1]], np.float32))
    assert search.search("the matrx", np.array([1, 0], np.float32), 3).rows[0] == 0
    assert search.search("something else", np.array([1, 0], np.float32), 3).rows.tolist() == [2, 1, 0]


def test_item_without_vector_is_found_by_title_alone() -> None:
    search = TextSearch(2)
    search.upsert_texts(np.array([5, 6]), ["Alien", "Heat"])
    search.upsert_vectors(np.array([6]), np.array([[1, 0]], np.float32))
    assert search.search("alien", np.array([0, 1], np.float32), 5).rows.tolist() == [5, 6]
    assert search.search("alien", None, 5).rows.tolist() == [5]
    assert len(search.search("nothing", None, 5)) == 0
    assert len(TextSearch(2).search("alien", np.ones(2, np.float32), 5)) == 0


@pytest.mark.parametrize("length", [1e-30, 1e30])
def test_vectors_of_extreme_length_are_normalised(length: float) -> None:
    search = TextSearch(2)
    search.upsert_vectors(np.array([1]), np.array([[length, 0]], np.float32))
    assert search.search("", np.array([length, 0], np.float32), 1).scores[0] == pytest.approx(1)


def test_nothing_is_similar_to_an_item_without_vector() -> None:
    search = TextSearch(DIM)
    search.upsert_texts(np.array([3]), ["Alien"])
    search.upsert_vectors(np.array([4]), np.ones((1, DIM), np.float32))
    assert search.similar(3, 10) is None


@pytest.mark.parametrize("exhaustive", [0, 30, 100_000])
def test_a_batch_answers_as_its_queries_one_by_one(exhaustive: int) -> None:
    rng = np.random.default_rng(0)
    search, _ = catalogue(100, exhaustive)
    queries = [
        TextQuery(
            f"title {rng.integers(110):05}",
            int(rng.integers(1, 20)),
            rng.integers(120, size=int(rng.integers(1, 60))) if k % 3 == 0 else None,
            rng.integers(120, size=5) if k % 2 else None,
            rng.standard_normal(DIM).astype(np.float32) if k % 5 else None,
        )
        for k in range(40)
    ]
    batch = search.search_batch(queries)
    assert len(batch) == len(queries)
    for query, found in zip(queries, batch, strict=True):
        alone = search.search(query.text, query.vector, query.n, query.allowed, query.exclude)
        assert found.rows.tolist() == alone.rows.tolist()
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-6)
        if query.vector is None:
            assert found.rows.tolist() == search.titles.search(query).rows.tolist()
    assert search.search_batch([]) == []


def test_models_share_their_titles() -> None:
    titles = TitleSearch()
    one, other = TextSearch(2, titles=titles), TextSearch(3, titles=titles)
    titles.upsert(np.array([1, 2]), ["Alien", "Heat"])
    one.upsert_vectors(np.array([2]), np.array([[1, 0]], np.float32))
    for search in (one, other):
        query = np.array([0, 1, 0], np.float32)[: search.dim]
        assert search.search("alien", query, 1).rows.tolist() == [1]
    one.upsert_texts(np.array([1]), ["Aliens and others"])
    titles.remove(np.array([2]))
    assert other.search("others", None, 5).rows.tolist() == [1]
    assert len(other.search("heat", None, 5)) == 0
    assert one.search("heat", np.array([1, 0], np.float32), 5).rows.tolist() == [2]  # by its vector


def test_input_that_does_not_fit_is_refused_with_nothing_changed() -> None:
    search = TextSearch(2)
    with pytest.raises(ValueError, match=r"expected \[n, 2\]"):
        search.upsert_vectors(np.array([1]), np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match="finite"):
        search.upsert_vectors(np.array([1]), np.full((1, 2), np.nan, np.float32))
    with pytest.raises(ValueError, match="2 ids and 1 vectors"):
        search.upsert_vectors(np.array([1, 2]), np.zeros((1, 2), np.float32))
    with pytest.raises(ValueError, match="2 rows and 1 texts"):
        search.upsert_texts(np.array([1, 2]), ["one"])
    with pytest.raises(ValueError, match="expected"):
        search.search("x", np.zeros(3, np.float32), 1)
    with pytest.raises(ValueError, match="finite"):
        search.search("x", np.array([np.inf, 0], np.float32), 1)
    with pytest.raises(ValueError, match="n is 0"):
        search.search("x", None, 0)
    with pytest.raises(ValueError, match="n is 0"):
        search.similar(1, 0)
    with pytest.raises(ValueError, match="n is -1"):
        TextQuery("x", -1)
    assert (len(search), len(search.titles)) == (0, 0)


def test_answers_never_mix_two_states() -> None:
    """A writer moves all items between two states; every answer must be of one of them."""
    search, rows = TextSearch(2), np.arange(50)
    # Long titles: many postings to be caught between.
    one, other = (" ".join(f"{word}{k}" for k in range(20)) for word in ("alien", "heat"))
    states = [
        ([one] * 50, np.tile(np.array([1, 0], np.float32), (50, 1))),
        ([other] * 50, np.tile(np.array([0, 1], np.float32), (50, 1))),
    ]
    search.upsert_vectors(rows, states[0][1])
    search.upsert_texts(rows, states[0][0])
    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            by_title = search.search(one, None, 50)
            by_vector = search.similar(0, 49)
            titles = by_title.scores.tolist()
            assert by_vector is not None
            if titles not in ([], [1.0] * 50) or set(by_vector.scores.tolist()) != {1.0}:
                wrong.append((by_title, by_vector))

    readers = [threading.Thread(target=read) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns within a single write, too
    try:
        for reader in readers:
            reader.start()
        for turn in range(60):
            titles, vectors = states[turn % 2]
            search.upsert_texts(rows, titles)
            search.upsert_vectors(rows, vectors)
    finally:
        sys.setswitchinterval(interval)
        stop.set()
    for reader in readers:
        reader.join()
    assert not wrong
