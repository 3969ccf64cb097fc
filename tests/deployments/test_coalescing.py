"""The coalescer: what is promised about batches, errors, deadlines and callers who leave."""

from __future__ import annotations

import asyncio
import random
from contextvars import ContextVar

import pytest

from deployments.coalescing import Coalescer
from graph.errors import Overloaded, Unavailable, UnknownUser, WeftError


class Gate:
    """A `send` whose calls wait until they are let through; answers item * 10."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.releases: list[asyncio.Event] = []
        self.started = asyncio.Condition()

    async def __call__(self, items: list[int]) -> list[int | Exception]:
        release = asyncio.Event()
        async with self.started:
            self.batches.append(items)
            self.releases.append(release)
            self.started.notify_all()
        await release.wait()
        return [item * 10 for item in items]

    async def reached(self, count: int) -> None:
        async with asyncio.timeout(5), self.started:
            await self.started.wait_for(lambda: len(self.batches) >= count)


def calls(coalescer: Coalescer[int, int], items: list[int]) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(coalescer.call(item)) for item in items]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_waits_leaves_in_the_next_call() -> None:
    gate = Gate()
    coalescer = Coalescer(gate, max_batch=4)
    first = calls(coalescer, [1])
    await gate.reached(1)
    rest = calls(coalescer, [2, 3, 4, 5, 6])
    await turns()
    assert gate.batches == [[1]]  # max_in_flight is 1
    gate.releases[0].set()
    await gate.reached(2)
    gate.releases[1].set()
    await gate.reached(3)
    gate.releases[2].set()
    assert await asyncio.gather(*first, *rest) == [10, 20, 30, 40, 50, 60]
    assert gate.batches == [[1], [2, 3, 4, 5], [6]]
    assert coalescer.num_waiting == 0
    await turns()
    assert coalescer.num_in_flight == 0


async def test_calls_of_one_turn_share_a_batch() -> None:
    gate = Gate()
    coalescer = Coalescer(gate)
    tasks = calls(coalescer, [1, 2, 3])
    await gate.reached(1)
    gate.releases[0].set()
    assert await asyncio.gather(*tasks) == [10, 20, 30]
    assert gate.batches == [[1, 2, 3]]


async def test_several_sends_in_flight_up_to_the_limit() -> None:
    gate = Gate()
    coalescer = Coalescer(gate, max_batch=1, max_in_flight=2)
    tasks = calls(coalescer, [1, 2, 3])
    await gate.reached(2)
    await turns()
    assert gate.batches == [[1], [2]]
    gate.releases[1].set()  # out of order: the second answers first
    await gate.reached(3)
    gate.releases[2].set()
    gate.releases[0].set()
    assert await asyncio.gather(*tasks) == [10, 20, 30]


async def test_an_error_belongs_to_its_item() -> None:
    async def send(items: list[int]) -> list[int | Exception]:
        errors = {2: UnknownUser("no user"), 3: ValueError("secret"), 4: ConnectionResetError("secret")}
        return [errors.get(item, item) for item in items]

    coalescer = Coalescer(send)
    results = await asyncio.gather(*calls(coalescer, [1, 2, 3, 4]), return_exceptions=True)
    one, two, defect, away = results
    assert one == 1
    assert isinstance(two, UnknownUser)
    # A defect is not to be repeated, being away is.
    assert type(defect) is WeftError and (defect.code, defect.status) == ("internal", 500)
    assert not defect.retryable and isinstance(defect.__cause__, ValueError)
    assert type(away) is Unavailable and isinstance(away.__cause__, ConnectionResetError)
    assert "secret" not in f"{defect} {away}"


@pytest.mark.parametrize(
    ("failure", "kind"),
    [("is away", Unavailable), ("raises", WeftError), ("too few", WeftError), ("hangs", Unavailable)],
)
async def test_a_failing_send_fails_its_batch_alone(failure: str, kind: type[WeftError]) -> None:
    async def send(items: list[int]) -> list[int | Exception]:
        if items[0] < 0:
            if failure == "is away":
                raise ConnectionError("secret")
            if failure == "raises":
                raise KeyError("secret")
            if failure == "too few":
                return []
            await asyncio.Event().wait()
        return list(items)

    coalescer = Coalescer(send, max_batch=2, send_timeout_s=0.05)
    results = await asyncio.wait_for(
        asyncio.gather(*calls(coalescer, [-1, -2, 3, 4]), return_exceptions=True), timeout=5
    )
    assert [type(result) for result in results[:2]] == [kind, kind]
    assert "secret" not in str(results[0])
    assert results[0] is not results[1]
    assert results[2:] == [3, 4]


async def test_typed_errors_of_a_send_pass_through_and_others_are_translated() -> None:
    async def send(items: list[int]) -> list[int | Exception]:
        raise Overloaded("busy") if items[0] == 1 else KeyError("x")

    coalescer = Coalescer(send, translate=lambda error: UnknownUser(type(error).__name__))
    with pytest.raises(Overloaded, match="busy"):
        await coalescer.call(1)
    with pytest.raises(UnknownUser, match="KeyError"):
        await coalescer.call(2)


async def test_cancelled_callers_are_not_sent_and_hold_up_nobody() -> None:
    gate = Gate()
    coalescer = Coalescer(gate)
    flying = calls(coalescer, [1, 2])
    await gate.reached(1)
    waiting = calls(coalescer, [3, 4, 5])
    await turns()
    flying[0].cancel()
    waiting[1].cancel()
    gate.releases[0].set()  # in the same turn: the futures are cancelled, their callers have not run
    await gate.reached(2)
    gate.releases[1].set()
    results = await asyncio.gather(*flying, *waiting, return_exceptions=True)
    assert [r if isinstance(r, int) else type(r) for r in results] == [
        asyncio.CancelledError, 20, 30, asyncio.CancelledError, 50,
    ]  # fmt: skip
    assert gate.batches == [[1, 2], [3, 5]]


async def test_a_batch_whose_callers_all_left_does_not_stop_later_ones() -> None:
    gate = Gate()
    coalescer = Coalescer(gate)
    tasks = calls(coalescer, [1, 2])
    await turns(1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    late = calls(coalescer, [3])
    await gate.reached(1)
    for _ in range(50):
        for release in gate.releases:
            release.set()
        await asyncio.sleep(0)
    assert await asyncio.wait_for(late[0], 5) == 30
    assert gate.batches == [[3]]


async def test_a_caller_does_not_take_the_send_down_with_its_context() -> None:
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[str] = []

    async def send(items: list[int]) -> list[int | Exception]:
        seen.append(request.get())
        return list(items)

    request.set("the first caller's")
    assert await Coalescer(send).call(1) == 1
    assert seen == ["none"]


async def test_deadlines_count_waiting_and_flight() -> None:
    gate = Gate()
    coalescer = Coalescer(gate)
    first = asyncio.create_task(coalescer.call(1, timeout_s=0.05))
    await gate.reached(1)
    second = asyncio.create_task(coalescer.call(2, timeout_s=0.05))
    third = asyncio.create_task(coalescer.call(3))
    for task in (first, second):
        with pytest.raises(Unavailable, match=r"0\.05 s"):
            await task
    gate.releases[0].set()
    await gate.reached(2)
    gate.releases[1].set()
    assert await third == 30
    assert gate.batches == [[1], [3]]  # the second was past its deadline and never sent


async def test_a_timeout_error_from_the_other_side_is_not_the_callers_deadline() -> None:
    async def send(items: list[int]) -> list[int | Exception]:
        return [TimeoutError("theirs") for _ in items]

    with pytest.raises(TimeoutError, match="theirs"):
        await Coalescer(send, translate=lambda error: error).call(1, timeout_s=60)


async def test_a_full_queue_is_typed_and_those_who_leave_make_room() -> None:
    gate = Gate()
    coalescer = Coalescer(gate, max_waiting=2)
    first = calls(coalescer, [1])
    await gate.reached(1)
    waiting = calls(coalescer, [2, 3])
    await turns()
    with pytest.raises(Overloaded) as refused:
        await coalescer.call(4)
    assert refused.value.status == 429 and refused.value.retryable
    waiting[0].cancel()
    await turns()
    late = calls(coalescer, [5])
    await turns()
    gate.releases[0].set()
    await gate.reached(2)
    gate.releases[1].set()
    assert await asyncio.gather(*first, waiting[1], *late) == [10, 30, 50]


@pytest.mark.parametrize("seed", range(5))
async def test_storm(seed: int) -> None:
    """Callers leave at any moment, sends fail at random; whoever stays gets its own answer or its error."""
    draw = random.Random(seed)

    async def send(items: list[int]) -> list[int | Exception]:
        for _ in range(draw.randrange(4)):
            await asyncio.sleep(0)
        if draw.random() < 0.1:
            raise ConnectionError
        return [UnknownUser("no") if item % 13 == 0 else item * 10 for item in items]

    coalescer = Coalescer(send, max_batch=7, max_in_flight=1 + seed % 3, max_waiting=40)
    outcomes: dict[str, int] = {}

    async def caller(item: int) -> None:
        for _ in range(draw.randrange(30)):
            await asyncio.sleep(0)
        try:
            assert await coalescer.call(item) == item * 10
            outcome = "answered"
        except UnknownUser:
            assert item % 13 == 0
            outcome = "own error"
        except Overloaded:
            outcome = "overloaded"
        except Unavailable:
            outcome = "batch failed"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    tasks = [asyncio.create_task(caller(item)) for item in range(600)]
    for task in draw.sample(tasks, 250):
        for _ in range(draw.randrange(2)):
            await asyncio.sleep(0)
        task.cancel()
    done, pending = await asyncio.wait(tasks, timeout=20)
    assert not pending
    for task in done:
        assert task.cancelled() or task.exception() is None
    assert outcomes["answered"] > 50 and outcomes["own error"] > 0
    assert coalescer.num_waiting == 0
    await turns()
    assert coalescer.num_in_flight == 0
    # Still alive after all that (a send may fail by chance, so more than one try).
    for _ in range(20):
        try:
            assert await asyncio.wait_for(coalescer.call(1), 5) == 10
            break
        except Unavailable:
            continue
    else:
        pytest.fail("no call is answered any more")


async def test_close_fails_everybody_typed() -> None:
    gate = Gate()
    coalescer = Coalescer(gate)
    tasks = calls(coalescer, [1])
    await gate.reached(1)
    tasks += calls(coalescer, [2])
    await turns()
    await coalescer.close()
    for task in tasks:
        with pytest.raises(Unavailable):
            await task
    with pytest.raises(Unavailable, match="shutting down"):
        await coalescer.call(3)
    assert coalescer.num_in_flight == 0


@pytest.mark.parametrize("limit", ["max_batch", "max_in_flight", "max_waiting"])
def test_limits_are_checked(limit: str) -> None:
    with pytest.raises(ValueError, match=limit):
        Coalescer(Gate(), **{limit: 0})
