"""`Adjacency` behaves like a dict of ordered dicts, and stays small."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from graph.adjacency import Adjacency

ROWS, KEYS = 5, 12
rows, keys = st.integers(0, ROWS - 1), st.integers(0, KEYS - 1)
values = st.integers(0, 9).map(float)


class AdjacencyModel(RuleBasedStateMachine):
    @initialize(adopted=st.lists(st.integers(0, 9), max_size=ROWS))
    def begin(self, adopted: list[int]) -> None:
        self.model: dict[int, dict[int, float]] = {row: {} for row in range(ROWS)}
        for row, degree in enumerate(adopted):
            self.model[row] = {key: float(row) for key in range(degree)}
        lengths = [len(self.model[row]) for row in range(ROWS)]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        flat = [pair for row in range(ROWS) for pair in self.model[row].items()]
        self.adjacency = Adjacency.from_csr(
            indptr,
            np.array([key for key, _ in flat], np.int32),
            {"value": np.array([value for _, value in flat], np.float32)},
        )

    @rule(row=rows, key=keys, value=values)
    def put(self, row: int, key: int, value: float) -> None:
        before = self.adjacency.put(row, key, {"value": value})
        known = self.model[row].get(key)
        assert before == (None if known is None else {"value": known})
        self.model[row][key] = value

    @rule(row=rows, key=keys)
    def drop(self, row: int, key: int) -> None:
        known = self.model[row].pop(key, None)
        assert self.adjacency.drop(row, key) == (None if known is None else {"value": known})

    @rule(row=rows, pairs=st.dictionaries(keys, values, max_size=8))
    def upsert(self, row: int, pairs: dict[int, float]) -> None:
        expected = self._places(row, list(pairs))
        places = self.adjacency.upsert(
            row, np.array(list(pairs), np.int32), {"value": np.array(list(pairs.values()), np.float32)}
        )
        assert places.tolist() == expected
        self.model[row].update(pairs)

    @rule(row=rows, gone=st.sets(keys, max_size=8))
    def discard(self, row: int, gone: set[int]) -> None:
        expected = self._places(row, list(gone))
        assert self.adjacency.discard(row, np.array(list(gone), np.int32)).tolist() == expected
        for key in gone:
            self.model[row].pop(key, None)

    def _places(self, row: int, wanted: list[int]) -> list[int]:
        present = list(self.model[row])
        return [present.index(key) if key in present else -1 for key in wanted]

    @invariant()
    def equal(self) -> None:
        for row, model in self.model.items():
            assert self.adjacency.keys(row).tolist() == list(model)
            assert self.adjacency.column("value", row).tolist() == list(model.values())
            for key in range(KEYS):
                assert self.adjacency.position(row, key) == (list(model).index(key) if key in model else None)
        assert self.adjacency.degrees.tolist() == [len(model) for model in self.model.values()]
        assert self.adjacency.num_edges == sum(map(len, self.model.values()))
        wanted = np.array([3, 0, 3, 1])
        indptr, found, columns = self.adjacency.gather(wanted)
        expected = [pair for row in wanted.tolist() for pair in self.model[row].items()]
        assert list(zip(found.tolist(), columns["value"].tolist(), strict=True)) == expected
        assert np.diff(indptr).tolist() == [len(self.model[row]) for row in wanted.tolist()]
        assert self.adjacency.csr()[1].tolist() == [key for model in self.model.values() for key in model]
        self._segments_are_disjoint()

    def _segments_are_disjoint(self) -> None:
        taken = np.zeros(self.adjacency._used, int)
        for row in range(ROWS):
            start, capacity = int(self.adjacency._start[row]), int(self.adjacency._capacity[row])
            assert self.adjacency.degree(row) <= capacity
            assert self.adjacency.degree(row) > 0 or capacity == 0
            taken[start : start + capacity] += 1
        for capacity, starts in self.adjacency._free.items():
            for start in starts:
                taken[start : start + capacity] += 1
        assert taken.max(initial=0) <= 1


AdjacencyModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAdjacencyModel = AdjacencyModel.TestCase


def test_rows_grow_without_touching_what_is_there() -> None:
    adjacency = Adjacency({"value": np.float32})
    for row in range(2000):
        adjacency.ensure_rows(row + 1)
        adjacency.put(row, row % 7, {"value": float(row)})
    assert adjacency.num_rows == 2000
    assert adjacency.column("value", 1234).tolist() == [1234.0]


@pytest.mark.parametrize("columns", [{"value": np.float32, "timestamp": np.uint32}, {"value": np.float32}])
def test_at_most_24_bytes_per_edge_after_live_inserts_and_deletes(columns: dict[str, type]) -> None:
    rng = np.random.default_rng(0)
    adjacency, model = Adjacency(columns), defaultdict(set)
    adjacency.ensure_rows(1000)
    # Degrees as skewed as ratings are: a few rows hold most edges.
    weights = rng.lognormal(0, 1.2, 1000)
    writes = zip(
        rng.choice(1000, 100_000, p=weights / weights.sum()).tolist(),
        rng.integers(0, 4000, 100_000).tolist(),
        (rng.random(100_000) < 0.3).tolist(),
        strict=True,
    )
    values = dict.fromkeys(columns, 1)
    for row, key, delete in writes:
        if delete and model[row]:
            gone = model[row].pop()
            assert adjacency.drop(row, gone) is not None
        else:
            adjacency.put(row, key, values)
            model[row].add(key)
    assert adjacency.num_edges == sum(map(len, model.values())) > 30_000
    assert adjacency.nbytes / adjacency.num_edges <= 24
