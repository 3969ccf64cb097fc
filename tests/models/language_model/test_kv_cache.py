"""The cache against plain tensors, one for each row: joins, growth, moves, shrinking, lack of memory."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from models.language_model import kv_cache
from models.language_model.kv_cache import KVCache, StepPlan

LAYERS, HEADS, SIZE, ROWS, TOKENS = 2, 2, 3, 6, 300
Reference = list[list[tuple[Tensor, Tensor]]]  # of each row, of each layer: keys and values [heads, n, d]


class Rows:
    """A cache and what it has to hold; every change is made to both."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.random = torch.Generator().manual_seed(seed)
        self.cache = KVCache(LAYERS, max_rows=ROWS, max_tokens=TOKENS)
        self.rows: Reference = []

    def length(self, row: int) -> int:
        return self.rows[row][0][0].shape[1]

    def append(self, rows: list[int], counts: list[int]) -> None:
        """As a forward pass does: `counts[i]` new tokens for row `rows[i]`, the longest without padding."""
        width = max(counts)
        new = [
            [torch.randn(len(rows), HEADS, width, SIZE, generator=self.random) for _ in range(2)]
            for _ in range(LAYERS)
        ]
        starts = [self.length(row) for row in rows]
        end = max(start + count for start, count in zip(starts, counts, strict=True))
        is_decoding = width == 1 and rows == list(range(len(rows)))
        pairs = [(i, place) for i, count in enumerate(counts) for place in range(count)]
        which = torch.tensor([i for i, _ in pairs])
        place = torch.tensor([p for _, p in pairs])
        self.cache.plan = StepPlan(
            slice(0, len(rows)) if is_decoding else torch.tensor(rows),
            end,
            torch.tensor(rows)[which],
            torch.tensor(starts)[which] + place,
            None if is_decoding else (which, place),
            max(rows) + 1,
        )
        for layer, (keys, values) in enumerate(new):
            seen = self.cache.update(keys, values, layer)
            for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
                old = self.rows[row][layer]
                self.rows[row][layer] = (
                    torch.cat([old[0], keys[i, :, :count]], 1),
                    torch.cat([old[1], values[i, :, :count]], 1),
                )
                for got, expected in zip(seen, self.rows[row][layer], strict=True):
                    assert got.shape[2] == end
                    assert torch.equal(got[i, :, : expected.shape[1]], expected)
                    assert torch.isfinite(got).all()

    def join(self) -> None:
        none = torch.zeros(HEADS, 0, SIZE)
        self.rows.append([(none, none) for _ in range(LAYERS)])
        if self.chance.random() < 0.5:
            length = self.chance.randrange(1, 40)
            block = [
                tuple(torch.randn(HEADS, length, SIZE, generator=self.random) for _ in range(2))
                for _ in range(LAYERS)
            ]
            self.cache.write(len(self.rows) - 1, 0, block)  # type: ignore[arg-type]
            self.rows[-1] = block  # type: ignore[assignment]

    def leave(self) -> None:
        gone, last = self.chance.randrange(len(self.rows)), len(self.rows) - 1
        if gone != last:
            self.cache.move(last, gone, self.length(last))
        self.rows[gone] = self.rows[last]
        self.rows.pop()

    def swap(self) -> None:
        one, other = self.chance.sample(range(len(self.rows)), 2)
        if not self.length(max(one, other)):
            return
        self.cache.swap(one, other, max(self.length(one), self.length(other)))
        self.rows[one], self.rows[other] = self.rows[other], self.rows[one]

    def shrink(self, hard: bool) -> None:
        longest = max((self.length(row) for row in range(len(self.rows))), default=0)
        before = self.cache.nbytes
        freed = self.cache.shrink(len(self.rows), longest + 1, hard=hard)
        assert freed == before - self.cache.nbytes >= 0
        if not self.rows:
            assert self.cache.nbytes == 0

    def check(self) -> None:
        for row, layers in enumerate(self.rows):
            if length := self.length(row):
                held = self.cache.read(row, 0, length)
                for got, expected in zip(held, layers, strict=True):
                    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])

    def change(self) -> None:
        steps: list[Any] = [lambda: self.shrink(False), lambda: self.shrink(True)]
        growing = [row for row in range(len(self.rows)) if self.length(row) < TOKENS - 60]
        if len(self.rows) < ROWS:
            steps += [self.join] * 3
        if self.rows:
            steps += [self.leave]
        if len(self.rows) > 1:
            steps += [self.swap]
        if growing:
            some = self.chance.sample(growing, self.chance.randrange(1, len(growing) + 1))
            steps += [lambda: self.append(some, [self.chance.randrange(1, 60) for _ in some])] * 3
        if len(growing) == len(self.rows) > 0:
            steps += [lambda: self.append(growing, [1] * len(growing))] * 4
        self.chance.choice(steps)()


@pytest.mark.parametrize("seed", range(8))
def test_rows_hold_what_was_written(seed: int) -> None:
    rows = Rows(seed)
    for _ in range(120):
        rows.change()
        rows.check()


@pytest.mark.parametrize("seed", range(4))
def test_a_lack_of_memory_loses_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that failed in any layer is repeated, as the engine does, and rows are as they were."""
    rows = Rows(seed)
    rows.join()  # before memory is short: nothing catches it there
    whole, failures = kv_cache._RowLayer._grow, 0

    def grow(layer: Any, like: Tensor, num_rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        nonlocal failures
        if rows.chance.random() < 0.4:
            failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(layer, like, num_rows, tokens)

    def append(some: list[int], counts: list[int]) -> None:
        """One pass, in which every layer may fail; its lengths advance when it succeeded."""
        before = [list(layers) for layers in rows.rows]
        for _ in range(50):
            try:
                Rows.append(rows, some, counts)
                return
            except torch.OutOfMemoryError:
                rows.rows = [list(layers) for layers in before]
                rows.check()
                rows.shrink(True)
        pytest.fail("never enough memory")

    monkeypatch.setattr(kv_cache._RowLayer, "_grow", grow)
    monkeypatch.setattr(rows, "append", append)
    for _ in range(60):
        try:
            rows.change()
        except torch.OutOfMemoryError:  # a block of the prefix cache had no place
            none = torch.zeros(HEADS, 0, SIZE)
            rows.rows[-1] = [(none, none) for _ in range(LAYERS)]
        rows.check()
    assert failures > 5


def test_one_long_row_does_not_keep_its_room_for_ever() -> None:
    rows = Rows(0)
    for _ in range(4):
        rows.join()
    rows.append([0, 1, 2, 3], [TOKENS, 5, 5, 5])
    full = rows.cache.nbytes
    assert rows.cache.shrink(4, TOKENS) == 0  # all of it is needed
    rows.cache.move(3, 0, rows.length(3))
    rows.rows[0] = rows.rows.pop()
    version = rows.cache.version
    assert rows.cache.shrink(3, 40) == full - rows.cache.nbytes > full / 2
    assert rows.cache.version > version
    rows.check()
    assert rows.cache.shrink(3, 40) == 0  # there is some room to grow left
    assert rows.cache.shrink(3, 20, hard=True) > 0
    rows.check()
    assert rows.cache.release() > 0 and rows.cache.nbytes == 0


def test_where_doubling_is_too_much_a_row_grows_by_less(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(0)
    rows.join()
    rows.append([0], [128])
    whole = kv_cache._RowLayer._grow

    def grow(layer: Any, like: Tensor, num_rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        if tokens > 200:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(layer, like, num_rows, tokens)

    monkeypatch.setattr(kv_cache._RowLayer, "_grow", grow)
    rows.append([0], [2])
    assert rows.cache.row_layers[0].keys is not None
    assert rows.cache.row_layers[0].keys.shape[2] == 144
    with pytest.raises(torch.OutOfMemoryError):
        rows.append([0], [100])


def test_clearing_a_row() -> None:
    rows = Rows(0)
    rows.join(), rows.join()
    rows.append([0, 1], [70, 70])
    rows.cache.row_layers[0].keys[1] = torch.nan  # type: ignore[index]
    rows.cache.clear_row(1)
    rows.rows.pop()
    rows.check()
    for keys, values in rows.cache.read(1, 0, 128):
        assert not keys.any() and not values.any()
