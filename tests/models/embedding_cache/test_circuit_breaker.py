"""The circuit breaker by a clock of its own."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from models.embedding_cache.circuit_breaker import CircuitBreaker


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker("redis at here", failures=3, retry_after_s=0.25, max_retry_after_s=1.0, clock=clock)


def fail(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        assert breaker.allow()
        breaker.failed(TimeoutError("no answer"))


def test_it_opens_after_failures_in_a_row_alone(breaker):
    fail(breaker, 2)
    assert breaker.allow()
    breaker.succeeded()
    fail(breaker, 2)
    assert breaker.state == "closed"
    fail(breaker, 1)
    assert breaker.state == "open" and not breaker.allow()
    assert (breaker.opened, breaker.skipped) == (1, 1)


def test_one_probe_goes_through_and_closes_it(breaker, clock):
    fail(breaker, 3)
    clock.now = 0.24
    assert not breaker.allow()
    clock.now = 0.25
    assert [breaker.allow() for _ in range(4)] == [True, False, False, False]
    assert breaker.state == "half-open"
    breaker.succeeded()
    assert breaker.state == "closed" and all(breaker.allow() for _ in range(4))


def test_failed_probes_back_off_up_to_a_second(breaker, clock):
    fail(breaker, 3)
    for wait_s in (0.25, 0.5, 1.0, 1.0, 1.0):
        clock.now += wait_s - 0.01
        assert not breaker.allow()
        clock.now += 0.01
        assert breaker.allow()
        breaker.failed(TimeoutError())
    clock.now += 1.0
    assert breaker.allow()
    breaker.succeeded()
    fail(breaker, 3)
    clock.now += 0.25
    assert breaker.allow(), "the wait starts anew after it was closed"
    assert breaker.opened == 2


def test_stragglers_do_not_prolong_the_wait(breaker, clock):
    fail(breaker, 3)
    clock.now = 0.2
    breaker.failed(TimeoutError())
    clock.now = 0.25
    assert breaker.allow()


def test_one_of_many_threads_probes(breaker, clock):
    fail(breaker, 3)
    clock.now = 1.0
    start, allowed = threading.Barrier(16), []

    def ask() -> None:
        start.wait()
        allowed.append(breaker.allow())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(allowed) == 1


def test_skipping_takes_microseconds(breaker):
    fail(breaker, 3)
    began = time.perf_counter()
    for _ in range(10_000):
        breaker.allow()
    assert time.perf_counter() - began < 0.5  # 50 microseconds each, on however slow a machine


def test_it_says_so_once(breaker, clock, caplog):
    caplog.set_level(logging.INFO, "weft.embedding_cache")
    fail(breaker, 3)
    clock.now = 5.0
    fail(breaker, 1)
    clock.now = 10.0
    assert breaker.allow()
    breaker.succeeded()
    breaker.succeeded()
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [
        ("WARNING", "redis at here: unavailable, going on without it: no answer"),
        ("INFO", "redis at here: connected"),
    ]


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="failures"):
        CircuitBreaker("x", failures=0)
    with pytest.raises(ValueError, match="retry_after_s"):
        CircuitBreaker("x", retry_after_s=2.0, max_retry_after_s=1.0)
