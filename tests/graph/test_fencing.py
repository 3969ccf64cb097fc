"""Plain processes on one store: a writer that was stopped, and writers that are killed in mid-commit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from graph.store import GraphStore
from tests.graph.plain_model import assert_same_view, read_view

pytestmark = [pytest.mark.faults, pytest.mark.timeout(60)]
ROOT = Path(__file__).parents[2]

HESITANT = """
import sys
from graph.errors import Fenced
from graph.schema import PutItem, PutUser, WriteRequest
from graph.store import GraphStore
from graph.writer import GraphWriter

name = sys.argv[2]
store = GraphStore(sys.argv[1])
writer = GraphWriter(store)
commit = store.commit

def hesitate(*args, **kwargs):  # planned, and about to write
    print("about to write", flush=True)
    sys.stdin.readline()
    commit(*args, **kwargs)

store.commit = hesitate
for n in range(3):
    try:
        requests = [WriteRequest((PutUser(f"{name}-{n}"), PutItem(f"{name}-{n}", "I"))) for _ in range(2)]
        committed = writer.commit(requests)
    except Fenced as error:
        print("fenced", flush=True)
        sys.exit(7)
    print(*(o.version for o in committed.outcomes), flush=True)
"""

FORKING = """
import os, random, sys
from graph.schema import Idempotency, PutItem, PutRating, WriteRequest
from graph.store import GraphStore
from graph.writer import GraphWriter

def say(*words):  # in one system call: a killed process must not leave half a line
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def write(path, number, seed):
    rng = random.Random(seed)
    writer = GraphWriter(GraphStore(path))
    for n in range(10_000):
        names = [f"{number}.{n}.{k}" for k in range(rng.randint(1, 6))]
        group = [
            WriteRequest(
                (PutItem(x, "I"), PutRating(x, x, 4.0), PutRating("all", x, 1.5)), Idempotency("s", x, "")
            )
            for x in names
        ]
        say("try", *names)
        outcomes = writer.commit(group).outcomes
        say("ack", *(f"{x}={o.version}" for x, o in zip(names, outcomes)))

for line in sys.stdin:
    number, seed = line.split()
    child = os.fork()
    if child == 0:
        try:
            write(sys.argv[1], number, int(seed))
        finally:
            os._exit(1)
    say("pid", child)
    os.waitpid(child, 0)
    say("gone")
"""


@contextmanager
def process(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def say(to: subprocess.Popen[str], text: str = "") -> None:
    assert to.stdin is not None
    to.stdin.write(text + "\n")
    to.stdin.flush()


def hear(of: subprocess.Popen[str]) -> str:
    assert of.stdout is not None
    return of.stdout.readline().strip()


def test_a_writer_that_was_stopped_is_fenced_when_it_wakes(store_url: str) -> None:
    with process(HESITANT, store_url, "first") as first:
        assert hear(first) == "about to write"
        say(first)
        assert hear(first) == "1 1"
        assert hear(first) == "about to write"
        first.send_signal(signal.SIGSTOP)
        with process(HESITANT, store_url, "second") as second:
            for version in (2, 3, 4):
                assert hear(second) == "about to write"
                say(second)
                assert hear(second) == f"{version} {version}"
            assert second.wait(20) == 0
        say(first)
        first.send_signal(signal.SIGCONT)
        assert hear(first) == "fenced"
        assert first.wait(20) == 7
    store = GraphStore(store_url)
    view = read_view(store)
    assert [u.user_id for u in view.users()] == ["first-0", "second-0", "second-1", "second-2"]
    assert [i.row for i in view.items()] == [0, 1, 2, 3]
    assert store.head().version == 4
    store.close()


def test_killed_in_mid_commit_nothing_acknowledged_is_lost_and_nothing_invented(store_url: str) -> None:
    rng = random.Random(20)
    acknowledged: dict[str, int] = {}
    tried: set[str] = set()
    with process(FORKING, store_url) as forking:
        for number in range(20):
            say(forking, f"{number} {rng.randrange(2**32)}")
            child = int(hear(forking).removeprefix("pid "))
            patience = rng.randint(1, 40)
            while (line := hear(forking)) != "gone":
                what, *names = line.split()
                if what == "try":
                    tried.update(names)
                else:
                    acknowledged.update((x, int(version)) for x, version in (n.split("=") for n in names))
                patience -= 1
                if patience == 0:
                    os.kill(child, signal.SIGKILL)
            assert patience <= 0, "the child ended by itself"
    store = GraphStore(store_url)
    view = read_view(store)
    found = {item.item_id: item.version for item in view.items()}
    assert len(acknowledged) > 100
    assert acknowledged.items() <= found.items()
    assert set(found) <= tried
    # A request is there whole, under the one version it was answered with, or not at all.
    assert sorted(found.values()) == list(range(1, store.head().version + 1))
    rows = {item.item_id: item.row for item in view.items()}
    assert len(set(rows.values())) == len(rows) == view.num_users - 1
    everyone = set(view.ratings_of(view.user("all").row).item_rows.tolist())
    assert everyone == set(rows.values())
    for item_id, row in rows.items():
        assert view.ratings_of(view.user(item_id).row).item_rows.tolist() == [row]
    assert_same_view(read_view(store), view)
    store.close()
