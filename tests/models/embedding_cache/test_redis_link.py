"""Commands are packed as hiredis packs them, and go out while later ones are still being made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hiredis
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from models.embedding_cache import redis_link
from models.embedding_cache.redis_link import (
    FLIES_ALONE_PARTS,
    FLIGHT_BYTES,
    Parts,
    _exchange,
    _flights,
    _packed,
)

PARTS = st.lists(st.binary(max_size=6), min_size=1, max_size=8) | st.integers(0, 20).flatmap(
    lambda size: st.lists(st.binary(min_size=size, max_size=size), min_size=1, max_size=300)
)


@given(PARTS)
def test_packed_is_what_hiredis_packs(parts: list[bytes]) -> None:
    assert _packed(tuple(parts)) == hiredis.pack_command(tuple(parts))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", (FLIES_ALONE_PARTS, FLIES_ALONE_PARTS - 1))
def test_a_large_command_leaves_before_the_next_is_made_and_small_ones_together(size: int) -> None:
    made: list[int] = []

    def commands() -> Iterator[Parts]:
        for number in range(3):
            made.append(number)
            yield (b"MGET", *[b"%d" % number] * size)

    flights = _flights(commands())
    _, first = next(flights)
    assert (first, made) == ((1, [0]) if size == FLIES_ALONE_PARTS else (3, [0, 1, 2]))
    assert first + sum(number for _, number in flights) == 3


def test_a_flight_ends_with_the_command_that_fills_it() -> None:
    value = b"x" * (FLIGHT_BYTES // 2)
    assert [number for _, number in _flights([(b"SET", b"key", value)] * 5)] == [2, 2, 1]


class SlowConnection:
    """Pool and connection in one; every answer takes its time on the clock."""

    def __init__(self, now: list[float], answer_s: float) -> None:
        self.now, self.answer_s = now, answer_s

    def get_connection(self) -> SlowConnection:
        return self

    def send_packed_command(self, packed: list[bytes], check_health: bool) -> None: ...

    def read_response(self) -> bytes:
        self.now[0] += self.answer_s
        return b"answer"

    def disconnect(self) -> None: ...

    def release(self, connection: SlowConnection) -> None: ...


@pytest.mark.parametrize(("making_s", "answer_s"), ((10.0, 0.0), (0.0, 10.0)))
def test_time_to_make_commands_is_not_the_servers(
    monkeypatch: pytest.MonkeyPatch, making_s: float, answer_s: float
) -> None:
    now = [0.0]
    monkeypatch.setattr(redis_link.time, "monotonic", lambda: now[0])

    def commands() -> Iterator[Parts]:
        for _ in range(3):
            now[0] += making_s
            yield (b"MGET", *[b"key"] * FLIES_ALONE_PARTS)

    connection: Any = SlowConnection(now, answer_s)
    if answer_s:
        with pytest.raises(redis.TimeoutError, match="slower"):
            _exchange(connection, commands(), 1.0)
    else:
        assert _exchange(connection, commands(), 1.0) == [b"answer"] * 3
