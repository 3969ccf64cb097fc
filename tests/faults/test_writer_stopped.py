"""Parts that stop without dying, and replicas that die: the service mends itself."""

from __future__ import annotations

import os
import random
import signal
import time

import httpx
import pytest

from tests.faults.ledger import BackgroundWriters, BookkeepingWriter, assert_kept, head
from tests.processes import Process, wait_until
from tests.service import Service
from tests.small_store import SmallStore

pytestmark = pytest.mark.faults

REPLACED_S = 30.0
RETURNED_S = 60.0


def test_a_stopped_writer_is_replaced(service: Service, small_store: SmallStore) -> None:
    """Ray restarts a process that died, not one that hangs: that takes the watchdog."""
    items = small_store.items["garden"]
    replaced = service.status()["graph_keeper"]["writers_replaced"]
    (old,) = (p for p in service.family() if p.pid == service.writer_pid())
    before = head(service)
    prober = BookkeepingWriter(service.url, "stopped", items, random.Random(1))
    with BackgroundWriters(service, items, seed=2) as writers:
        wait_until(lambda: writers.acknowledged > 20, 20, "writes before the stop")
        os.kill(old.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        prober.write()
        took = time.monotonic() - stopped
    writers.check()
    prober.close()
    print(f"writing again {took:.2f} s after SIGSTOP")
    assert took < REPLACED_S
    wait_until(lambda: not old.alive, 10, f"end of the stopped writer {old}")
    assert service.status()["graph_keeper"]["writers_replaced"] == replaced + 1
    assert_kept(service, [*writers.writers, prober])
    versions = sorted([*writers.versions, *prober.versions])
    assert versions == list(range(before + 1, head(service) + 1))


@pytest.mark.parametrize("part", ["Retriever", "GraphEncoder", "Ingress", "GraphKeeper", "haproxy"])
def test_a_killed_part_comes_back(service: Service, small_store: SmallStore, part: str) -> None:
    fan = small_store.fans["space"][0]
    writer = BookkeepingWriter(service.url, f"during-{part}", small_store.items["space"], random.Random(3))
    for _ in range(20):
        writer.write()
    victim = _process_of(service, part)
    os.kill(victim.pid, signal.SIGKILL)
    killed = time.monotonic()

    def back() -> bool:
        """A new process, every part ready, and an answer that knows the latest write."""
        if victim.alive or all(p == victim for p in _processes_of(service, part)):
            return False
        try:
            ready = service.get("/readyz").status_code == 200
            answer = service.get(f"/v1/users/{fan}/recommendations?n=5")
        except httpx.TransportError:
            return False
        return ready and answer.status_code == 200 and len(answer.json()["recommendations"]) == 5

    wait_until(back, RETURNED_S, f"return of {part}")
    print(f"{part} back after {time.monotonic() - killed:.2f} s")
    for _ in range(20):
        writer.write()
    writer.close()
    assert_kept(service, [writer])
    user = next(iter(writer.ratings))[0]
    rated = {item for rater, item in writer.ratings if rater == user}
    with service.client() as client:
        client.observe(f"{service.status()['store_id']}.{writer.versions[-1]}")
        found = {r.item_id for r in client.recommend(user, n=1_000).recommendations}
    assert found.isdisjoint(rated)
    assert found


def _processes_of(service: Service, part: str) -> list[Process]:
    name = "haproxy -" if part == "haproxy" else f"ServeReplica:weft:{part}"
    return [p for p in service.family() if name in p.command]


def _process_of(service: Service, part: str) -> Process:
    (found,) = _processes_of(service, part)
    return found
