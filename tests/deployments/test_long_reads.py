"""Reads on a thread and commits take turns, and the loop waits for neither."""

from __future__ import annotations

import asyncio
import threading

import pytest

from deployments.long_reads import LongReads
from graph.errors import Overloaded
from tests.deployments.local_state import until


class Read:
    """Begins, and ends when the test says so."""

    def __init__(self) -> None:
        self.began, self.end = threading.Event(), threading.Event()
        self.ended = False

    def __call__(self) -> str:
        self.began.set()
        assert self.end.wait(20)
        self.ended = True
        return "read"


async def test_nothing_is_applied_while_a_read_runs_and_the_loop_goes_on() -> None:
    reads, read, applied = LongReads(), Read(), []

    async def apply() -> None:
        async with reads.none():
            applied.append(read.ended)

    reading = asyncio.create_task(reads.run(read))
    await until(read.began.is_set)
    applying = asyncio.create_task(apply())
    await asyncio.sleep(0)
    assert applied == []
    read.end.set()
    assert await reading == "read"
    await applying
    assert applied == [True]


async def test_a_commit_waits_for_one_read_whatever_number_of_them_wait() -> None:
    reads, many, order = LongReads(), [Read() for _ in range(4)], []

    async def apply() -> None:
        async with reads.none():
            order.append(sum(read.ended for read in many))

    reading = [asyncio.create_task(reads.run(read)) for read in many]
    await until(many[0].began.is_set)
    applying = asyncio.create_task(apply())
    await asyncio.sleep(0)
    for read in many:
        read.end.set()
    await asyncio.gather(applying, *reading)
    assert order == [1]


async def test_a_reader_who_gives_up_does_not_let_a_commit_in() -> None:
    reads, read, applied = LongReads(), Read(), []

    async def apply() -> None:
        async with reads.none():
            applied.append(read.ended)

    reading = asyncio.create_task(reads.run(read))
    await until(read.began.is_set)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    applying = asyncio.create_task(apply())
    await asyncio.sleep(0.01)
    assert applied == []
    read.end.set()
    await applying
    assert applied == [True]


async def test_who_gives_up_before_their_turn_leaves_nothing_behind() -> None:
    reads, first, given_up = LongReads(), Read(), [Read() for _ in range(3)]
    reading = asyncio.create_task(reads.run(first))
    await until(first.began.is_set)
    waiting = [asyncio.create_task(reads.run(read)) for read in given_up]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    first.end.set()
    assert await reading == "read"
    assert await reads.run(lambda: 1) == 1
    assert not any(read.began.is_set() for read in given_up)


async def test_too_many_that_wait_are_refused() -> None:
    reads, first = LongReads(max_waiting=2), Read()
    reading = asyncio.create_task(reads.run(first))
    await until(first.began.is_set)
    waiting = [asyncio.create_task(reads.run(lambda: 1)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="2 long reads wait already"):
        await reads.run(lambda: 1)
    first.end.set()
    assert await asyncio.gather(reading, *waiting) == ["read", 1, 1]
    assert await reads.run(lambda: 2) == 2


async def test_what_a_read_raises_is_raised_and_the_next_one_runs() -> None:
    reads = LongReads()
    with pytest.raises(KeyError):
        await reads.run(lambda: {}["x"])
    assert await reads.run(lambda: 1) == 1
    async with reads.none():
        assert reads._running == set()
