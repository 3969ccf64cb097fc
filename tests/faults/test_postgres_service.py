"""A service on PostgreSQL whose writer is killed, and its server: nothing acknowledged is lost or doubled."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.graph_state import STORE_WAIT_S
from deployments.settings import Settings
from deployments.store_access import service_url
from graph.lock import holder_of, lock_of
from graph.store import GraphStore
from tests.faults.ledger import BackgroundWriters, BookkeepingWriter, assert_kept, head
from tests.graph.plain_model import read_view
from tests.postgres_server import PostgresServer, postgres_schema, postgres_server
from tests.processes import wait_until
from tests.service import Service, free_port, running_service, weft
from tests.small_store import SmallStore, make_small_store

pytestmark = pytest.mark.faults

KILLS = 8
OUTAGES = 4
SEED = 20_261


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def store_url(server: PostgresServer) -> Iterator[str]:
    with postgres_schema(server.url) as url:
        yield url


@pytest.fixture(scope="module")
def small_store(store_url: str, tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    return make_small_store(tmp_path_factory.mktemp("data"), store_url)


@pytest.fixture(scope="module")
def service(
    small_store: SmallStore, store_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    extra = {"WEFT_STORE__URL": store_url}
    with running_service(small_store.data_dir, tmp_path_factory.mktemp("logs"), extra=extra) as service:
        yield service


def test_commands_find_the_service_by_the_lock_in_the_server(service: Service, store_url: str) -> None:
    settings = Settings.model_validate({"data_dir": service.data_dir, "store": {"url": store_url}})
    holder = holder_of(store_url, service.data_dir)
    assert holder is not None
    assert (holder["pid"], holder["holder"]) == (service.writer_pid(), "the running service")
    assert service_url(settings) == service.url
    assert not (service.data_dir / "store.lock").exists()
    assert not (service.data_dir / "weft.sqlite").exists()
    assert service.status()["graph_state"]["store"].startswith("postgresql://postgres@127.0.0.1")


def test_an_import_goes_through_the_running_service(service: Service, store_url: str, tmp_path: Path) -> None:
    before, epoch = head(service), service.status()["graph_state"]["epoch"]
    ratings = tmp_path / "ratings.csv"
    ratings.write_text("user_id,item_id,rating\nvisitor,space-01,4\n", encoding="utf-8")
    extra = {"WEFT_STORE__URL": store_url}
    weft(service.data_dir, service.port, "import", "csv", "--ratings", str(ratings), extra=extra)
    with service.client() as client:
        assert [(r.item_id, r.value) for r in client.list_ratings("visitor").records] == [("space-01", 4.0)]
    assert head(service) > before
    assert service.status()["graph_state"]["epoch"] == epoch, "nobody was fenced"


def test_a_held_store_is_one_sentence(server: PostgresServer, tmp_path: Path) -> None:
    """The same as for SQLite, without a file in it."""
    ratings = tmp_path / "ratings.csv"
    ratings.write_text("user_id,item_id,rating\nada,space-01,4\n", encoding="utf-8")
    with postgres_schema(server.url) as url:
        make_small_store(tmp_path, url)
        command = ("import", "csv", "--ratings", str(ratings))
        extra = {"WEFT_STORE__URL": url}
        with lock_of(url, tmp_path, "the test"):
            done = weft(tmp_path, free_port(), *command, status=1, extra=extra)
            assert f"is held by the test (pid {os.getpid()})" in done.stderr
            assert "Traceback" not in done.stderr
        weft(tmp_path, free_port(), *command, extra=extra)
        store = GraphStore(url)
        assert read_view(store).user("ada").version == store.head().version
        store.close()


def test_a_killed_writer_loses_nothing(service: Service, small_store: SmallStore) -> None:
    items = small_store.items["space"]
    chance = random.Random(SEED)
    first = head(service)
    prober = BookkeepingWriter(service.url, "prober", items, random.Random(SEED))
    with BackgroundWriters(service, items, SEED) as writers:
        for _ in range(KILLS):
            enough = writers.acknowledged + chance.randrange(5, 60)
            wait_until(lambda goal=enough: writers.acknowledged >= goal, 20, "writes between two kills")
            victim = service.writer_pid()
            os.kill(victim, signal.SIGKILL)
            prober.write()
            assert service.writer_pid() != victim
    writers.check()
    prober.close()
    assert_kept(service, [*writers.writers, prober])
    versions = sorted([*writers.versions, *prober.versions])
    assert versions == list(range(first + 1, head(service) + 1))


def test_a_killed_server_loses_nothing(
    service: Service, server: PostgresServer, small_store: SmallStore
) -> None:
    items = small_store.items["garden"]
    chance = random.Random(SEED)
    first, writer = head(service), service.writer_pid()
    with BackgroundWriters(service, items, SEED + 1) as writers:
        for outage in range(OUTAGES):
            enough = writers.acknowledged + chance.randrange(5, 60)
            wait_until(lambda goal=enough: writers.acknowledged >= goal, 30, "writes between two outages")
            server.kill() if outage % 2 else server.stop(signal.SIGQUIT)
            if outage == OUTAGES - 1:
                time.sleep(7)  # longer than a commit asks for its outcome
                fan = small_store.fans["garden"][0]
                assert service.get(f"/v1/users/{fan}/recommendations?n=5").status_code == 200
            server.start()
        enough = writers.acknowledged + 50
        wait_until(lambda: writers.acknowledged >= enough, 30, "writes after the outages")
    writers.check()
    assert_kept(service, writers.writers)
    assert writers.versions == list(range(first + 1, head(service) + 1))
    assert service.writer_pid() == writer, "the writer went on, it was not replaced"
    wait_until(lambda: holder_of(str(service.store_url), service.data_dir), 10, "the lock is taken again")
    print(f"{len(writers.versions)} writes, {sum(w.repeats for w in writers.writers)} repeated")


def test_a_writer_that_dies_while_the_server_is_away_comes_back_with_it(
    service: Service, server: PostgresServer, small_store: SmallStore
) -> None:
    """For longer than its successor waits for the store: nothing restarts that one but the keeper."""
    items = small_store.items["garden"]
    first = head(service)
    with BackgroundWriters(service, items, SEED + 2, number=2) as writers:
        wait_until(lambda: writers.acknowledged > 20, 20, "writes before the outage")
        victim = service.writer_pid()
        server.kill()
        os.kill(victim, signal.SIGKILL)
        time.sleep(STORE_WAIT_S + 12)
        fan = small_store.fans["garden"][0]
        assert service.get(f"/v1/users/{fan}/recommendations?n=5").status_code == 200
        server.start()
        back = time.monotonic()
        enough = writers.acknowledged + 20
        wait_until(lambda: writers.acknowledged >= enough, 30, "writes after the outage")
        print(f"writing again {time.monotonic() - back:.2f} s after the server's return")
    assert "the graph state is gone: starting it again" in service.logs()
    writers.check()
    assert_kept(service, writers.writers)
    assert writers.versions == list(range(first + 1, head(service) + 1))
