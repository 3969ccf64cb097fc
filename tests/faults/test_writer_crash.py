"""SIGKILL on the graph state while it writes: nothing acknowledged is lost, nothing is invented."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time

import pytest

from tests.faults.ledger import BackgroundWriters, BookkeepingWriter, assert_kept, head
from tests.processes import wait_until
from tests.service import Service
from tests.small_store import SmallStore

pytestmark = pytest.mark.faults

ROUNDS = 30
RECOVERY_S = 10.0
SEED = 20_260


def test_thirty_kills_lose_nothing_and_the_service_returns(service: Service, small_store: SmallStore) -> None:
    items = small_store.items["space"] + small_store.items["garden"]
    chance = random.Random(SEED)
    recovery: list[float] = []
    first = head(service)
    replaced = service.status()["graph_keeper"]["writers_replaced"]
    prober = BookkeepingWriter(service.url, "prober", items, random.Random(SEED))
    with BackgroundWriters(service, items, SEED) as writers:
        for _ in range(ROUNDS):
            # At a random moment of the stream of writes, which is also at a random phase of a commit.
            enough = writers.acknowledged + chance.randrange(5, 60)
            wait_until(lambda goal=enough: writers.acknowledged >= goal, 20, "writes between two kills")
            victim = service.writer_pid()
            os.kill(victim, signal.SIGKILL)
            killed = time.monotonic()
            prober.write()  # begun after the kill, repeated until it is acknowledged
            recovery.append(time.monotonic() - killed)
            assert service.writer_pid() != victim
    writers.check()
    prober.close()

    books = [*writers.writers, prober]
    assert_kept(service, books)
    # Every write took one version of its own; a write done twice or one nobody sent would take another.
    versions = sorted([*writers.versions, *prober.versions])
    assert versions == list(range(first + 1, head(service) + 1))
    slowest = max(recovery)
    summary = (
        f"{ROUNDS} kills, {len(versions)} writes, {sum(b.repeats for b in books)} repeated; "
        f"writing again after max {slowest:.2f} s, median {statistics.median(recovery):.2f} s"
    )
    print(summary)
    assert slowest < RECOVERY_S, summary
    # Ray restarts what died; the watchdog must not take a writer that recovers for one that hangs.
    assert service.status()["graph_keeper"]["writers_replaced"] == replaced
