"""The tier in this process against a dictionary, and its budget."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from models.embedding_cache.memory_tier import MemoryTier

D = 4


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def row_of(number: int) -> np.ndarray:
    return np.full(D, number, np.float16)


def put(tier: MemoryTier, keys, numbers, ttl_s=None) -> None:
    rows = np.array([row_of(number) for number in numbers], np.float16).reshape(-1, D)
    tier.put_many(keys, rows, np.array(numbers, np.int32), ttl_s)


def get(tier: MemoryTier, keys) -> list[int | None]:
    found, rows, tokens = tier.get_many(keys)
    assert (rows == tokens[:, None]).all() and len(rows) == found.sum()
    numbers = iter(tokens.tolist())
    return [next(numbers) if hit else None for hit in found]


KEYS = st.lists(st.sampled_from([*"abcdefgh", ("prompt", "a"), ("prompt", "b")]), max_size=6)


class AgainstDictionary(RuleBasedStateMachine):
    """Whatever is found is right and unexpired; without a need to evict, everything is found."""

    @initialize(entries=st.sampled_from([2, 5, 100]))
    def start(self, entries):
        self.clock = Clock()
        self.max_bytes = entries * 300
        self.tier = MemoryTier(D, np.float16, self.max_bytes, self.clock)
        self.roomy = entries == 100
        self.written: dict[object, tuple[int, float]] = {}
        self.number = 0

    @rule(keys=KEYS, ttl_s=st.sampled_from([None, 1.0, 3.0]))
    def put(self, keys, ttl_s):
        numbers = [self.number + n for n in range(len(keys))]
        self.number = (self.number + len(keys)) % 2000
        put(self.tier, keys, numbers, ttl_s)
        until = np.inf if ttl_s is None else self.clock.now + ttl_s
        self.written.update({key: (number, until) for key, number in zip(keys, numbers, strict=True)})

    @rule(keys=KEYS)
    def get(self, keys):
        for key, found in zip(keys, get(self.tier, keys), strict=True):
            number, until = self.written.get(key, (None, 0.0))
            expected = number if until > self.clock.now else None
            assert found == expected or (found is None and not self.roomy)

    @rule(keys=KEYS)
    def drop(self, keys):
        dropped = self.tier.drop(keys)
        there = {key for key in keys if self.written.pop(key, (0, 0.0))[1] > self.clock.now}
        assert dropped == len(there) or (dropped < len(there) and not self.roomy)

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0]))
    def wait(self, seconds):
        self.clock.now += seconds

    @rule()
    def clear(self):
        self.tier.clear()
        assert len(self.tier) == self.tier.nbytes == 0
        self.written.clear()

    @invariant()
    def within_budget(self):
        if hasattr(self, "tier"):
            assert self.tier.nbytes <= self.max_bytes


TestAgainstDictionary = AgainstDictionary.TestCase
TestAgainstDictionary.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_what_is_asked_for_stays():
    tier = MemoryTier(D, np.float16, 20 * 300)
    put(tier, ["hot"], [1])
    for n in range(200):
        put(tier, [f"cold {n}"], [2])
        assert get(tier, ["hot"]) == [1]
    assert tier.evictions > 150


def test_it_never_takes_more_than_its_budget_and_uses_it():
    budget = 1 << 20
    tier = MemoryTier(384, np.float16, budget)
    texts = [f"text number {n} " + "x" * (n % 300) for n in range(5000)]
    for start in range(0, len(texts), 500):
        tier.put_many(
            texts[start : start + 500], np.zeros((500, 384), np.float16), np.zeros(500, np.int32), None
        )
        assert tier.nbytes <= budget
    assert tier.nbytes > 0.95 * budget
    held = [text for text in texts if tier.get_many([text]).found[0]]
    assert len(held) == len(tier)
    numbers = len(held) * (768 + 4 + 8 + 1)
    keys = sum(map(sys.getsizeof, held))
    table = sys.getsizeof(dict.fromkeys(held)) + len(held) * (8 + 32)
    assert numbers + keys + table <= 1.02 * tier.nbytes


def test_a_batch_beyond_the_budget_leaves_its_last_entries():
    tier = MemoryTier(D, np.float16, 5 * 250)
    keys = [f"{n}" for n in range(50)]
    put(tier, keys, range(50))
    held = [number for number in get(tier, keys) if number is not None]
    assert held and held == list(range(50 - len(held), 50))


@pytest.mark.parametrize("max_bytes", [0, 10])
def test_without_room_nothing_is_kept(max_bytes):
    tier = MemoryTier(D, np.float16, max_bytes)
    put(tier, ["a"], [1])
    assert get(tier, ["a"]) == [None] and len(tier) == 0 and tier.nbytes == 0


def test_a_key_too_large_is_not_kept_and_costs_nobody_a_place():
    tier = MemoryTier(D, np.float16, 2000)
    put(tier, ["a"], [1])
    put(tier, ["x" * 5000], [2])
    assert get(tier, ["a", "x" * 5000]) == [1, None]


def test_entries_expire_and_can_be_replaced():
    clock = Clock()
    tier = MemoryTier(D, np.float16, 10_000, clock)
    put(tier, ["a", "b"], [1, 2], ttl_s=10)
    put(tier, ["c"], [3])
    clock.now += 9.9
    assert get(tier, ["a", "b", "c", "a"]) == [1, 2, 3, 1]
    put(tier, ["b"], [4], ttl_s=10)
    clock.now += 0.2
    assert get(tier, ["a", "b", "c", "a"]) == [None, 4, 3, None]
    assert len(tier) == 2


def test_a_negative_budget_is_refused():
    with pytest.raises(ValueError, match="max_bytes"):
        MemoryTier(D, np.float16, -1)
