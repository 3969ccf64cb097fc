"""The writer and head of the feed, as the plain asyncio class it is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import deployments.graph_state as module
from deployments import metrics
from deployments.graph_state import FollowerReport, GraphState
from deployments.settings import Settings
from graph.errors import (
    OutcomeUnknown,
    Overloaded,
    SnapshotRequired,
    StoreLocked,
    Unavailable,
    UnknownUser,
)
from graph.lock import holder_of, lock_of
from graph.schema import (
    ChangeSet,
    DeleteUser,
    PutItem,
    PutPointer,
    PutRating,
    PutUser,
    WriteRequest,
    WriteResult,
)
from graph.snapshot import newest_snapshot, write_snapshot
from graph.store import GraphStore
from graph.view import GraphView
from graph.writer import ApplyFailed, GraphWriter
from tests.deployments.local_state import make_settings, report, stored, until, write
from tests.graph.plain_model import assert_same_view


@pytest.fixture
def settings(tmp_path: Path, store_url: str) -> Settings:
    return make_settings(tmp_path, store={"url": store_url})


@pytest.fixture
async def state(settings: Settings) -> AsyncIterator[GraphState]:
    state = GraphState(settings)
    yield state
    await state.close()


class Gate:
    """Holds the writer thread before or after a commit until it is opened."""

    def __init__(self, state: GraphState, after: bool = False) -> None:
        self.groups: list[int] = []
        self.entered = threading.Event()
        self._open = threading.Event()
        commit = state._writer.commit

        def held(requests: list[WriteRequest]) -> Any:
            self.groups.append(len(requests))
            committed = commit(requests) if after else None
            self.entered.set()
            assert self._open.wait(30)
            return committed or commit(requests)

        state._writer.commit = held  # type: ignore[method-assign,assignment]

    def open(self) -> None:
        self._open.set()


# ----------------------------------------------------------------------------------------------- writing


async def test_what_waits_together_shares_a_transaction(state: GraphState) -> None:
    gate = Gate(state)
    first = asyncio.create_task(write(state, PutUser("first")))
    await until(gate.entered.is_set)
    others = [asyncio.create_task(write(state, PutUser(f"u{n}"))) for n in range(50)]
    await until(lambda: state._queued == 50)
    gate.open()
    results = [await first, *(await asyncio.gather(*others))]
    assert gate.groups == [1, 50]
    assert [r.version for r in results] == list(range(1, 52))
    status = await state.status()
    assert (status["group_commits"], status["acknowledged_writes"], status["users"]) == (2, 51, 51)


async def test_a_store_that_hangs_is_seen_while_it_does(
    state: GraphState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STORE_HANGS_S", 0.05)
    up = lambda: metrics.STORE_UP.values()[()]  # noqa: E731
    gate = Gate(state)
    waiting = asyncio.create_task(write(state, PutUser("first")))
    await until(gate.entered.is_set)
    state.measure()
    assert up() == 1, "not yet"
    await asyncio.sleep(0.1)
    state.measure()
    assert up() == 0
    gate.open()
    await waiting
    state.measure()
    assert up() == 1
    assert metrics.WRITER_EPOCH.values()[()] == await state.ping()


async def test_concurrent_writers_each_get_their_own_outcome(state: GraphState, settings: Settings) -> None:
    await write(state, PutItem("i", "I"))

    async def client(number: int) -> list[int]:
        versions = []
        for n in range(10):
            name = f"{number}-{n}"
            versions.append((await write(state, PutUser(name), PutRating(name, "i", 3.0))).version)
            with pytest.raises(UnknownUser, match=f"{name}-nobody"):
                await write(state, DeleteUser(f"{name}-nobody"))
        return versions

    versions = await asyncio.gather(*(client(number) for number in range(12)))
    assert sorted(v for each in versions for v in each) == list(range(2, 122))
    assert all(each == sorted(each) for each in versions)
    view = stored(settings)
    for number, each in enumerate(versions):
        assert [view.user(f"{number}-{n}").version for n in range(10)] == each
    assert_same_view(view, state._writer.view)


async def test_a_group_is_no_larger_than_allowed(tmp_path: Path) -> None:
    state = GraphState(make_settings(tmp_path, graph_state={"max_group_operations": 4}))
    gate = Gate(state)
    gate.open()
    lists = [
        [WriteRequest((PutUser(f"{n}-{k}"),)) for k in range(size)] for n, size in enumerate([3, 2, 2, 6, 1])
    ]
    outcomes = await asyncio.gather(*(state.write(requests) for requests in lists))
    assert [len(o) for o in outcomes] == [3, 2, 2, 6, 1]
    assert gate.groups == [3, 4, 6, 1]  # a list is never split
    await state.close()


async def test_too_many_waiting_writes_are_refused(tmp_path: Path) -> None:
    state = GraphState(make_settings(tmp_path, graph_state={"max_queued_writes": 3}))
    gate = Gate(state)
    first = asyncio.create_task(write(state, PutUser("first")))
    await until(gate.entered.is_set)
    waiting = [asyncio.create_task(write(state, PutUser(f"u{n}"))) for n in range(3)]
    await until(lambda: state._queued == 3)
    refused = await state.write([WriteRequest((PutUser("x"),)), WriteRequest((PutUser("y"),))])
    assert [type(o) for o in refused] == [Overloaded, Overloaded]
    gate.open()
    await asyncio.gather(first, *waiting)
    assert (await write(state, PutUser("later"))).version == 5
    assert state._writer.view.find_user("x") is None
    await state.close()


async def test_a_caller_that_goes_away_takes_nobody_along(state: GraphState, settings: Settings) -> None:
    gate = Gate(state)
    tasks = [asyncio.create_task(write(state, PutUser(f"u{n}"))) for n in range(6)]
    await until(gate.entered.is_set)
    for task in tasks[::2]:
        task.cancel()
    gate.open()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(d, asyncio.CancelledError) for d in done] == [True, False] * 3
    assert (await write(state, PutUser("after"))).version == 7
    assert stored(settings).num_users == 7  # what was handed in is written, wanted or not


async def test_a_defect_reaches_its_callers_and_the_writer_lives_on(state: GraphState) -> None:
    with pytest.raises(TypeError):
        await state.write([WriteRequest((PutUser(None),))])  # type: ignore[arg-type]
    assert (await write(state, PutUser("u"))).version == 1


@pytest.mark.parametrize("cause", ["fenced", "unappliable"])
async def test_a_writer_that_cannot_go_on_leaves(
    state: GraphState, settings: Settings, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []

    def leave(code: int) -> None:
        left.append(code)
        raise SystemError("left")

    monkeypatch.setattr(module.os, "_exit", leave)
    if cause == "fenced":
        other = GraphStore(settings.store_url)
        GraphWriter(other)
        other.close()
    else:

        def fail(_: list[WriteRequest]) -> None:
            raise ApplyFailed("committed but not applied")

        monkeypatch.setattr(state._writer, "commit", fail)
    pending = asyncio.create_task(write(state, PutUser("u")))
    await until(lambda: bool(left))
    assert left == [1]
    pending.cancel()
    assert state._draining is not None
    with pytest.raises(SystemError):
        await state._draining
    state._draining, state._closed = None, True
    state._lock.release()
    state._store.close()
    assert stored(settings).num_users == 0


class Doubt:
    """The next commit happens or does not, but nobody learns which until the store is back."""

    def __init__(self, state: GraphState, happens: bool) -> None:
        self._away, store = True, state._store
        commit, committed = store.commit, store.committed

        def lost(*arguments: Any, **keywords: Any) -> None:
            store.commit = commit  # type: ignore[method-assign]
            if happens:
                commit(*arguments, **keywords)
            raise OutcomeUnknown("broke off")

        def ask(*arguments: Any) -> bool:
            if self._away:
                raise Unavailable("away")
            return committed(*arguments)

        store.commit, store.committed = lost, ask  # type: ignore[method-assign]

    def end(self) -> None:
        self._away = False


@pytest.mark.parametrize("happens", [True, False])
async def test_a_commit_in_doubt_is_settled_without_another_write(
    state: GraphState, settings: Settings, happens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SETTLE_INTERVAL_S", 0.01)
    await write(state, PutUser("first"))
    doubt = Doubt(state, happens)
    with pytest.raises(OutcomeUnknown):
        await write(state, PutUser("u"), key="k")
    with pytest.raises(Unavailable, match="nothing was changed"):
        await write(state, PutUser("v"))
    tail = asyncio.create_task(state.tail(report(state, 1), timeout_s=1.0))
    doubt.end()
    await until(lambda: not state._writer.uncertain)
    assert [c.to_version for c in (await tail).commits] == ([2] if happens else [])
    assert_same_view(stored(settings), state._writer.view)
    result = await write(state, PutUser("u"), key="k")
    assert (result.version, result.replayed) == (2, happens)


async def test_closing_does_not_wait_for_a_store_that_is_away(
    state: GraphState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SETTLE_INTERVAL_S", 0.01)
    Doubt(state, True)
    with pytest.raises(OutcomeUnknown):
        await write(state, PutUser("u"))
    await asyncio.wait_for(state.close(), 10)


async def test_a_start_waits_for_the_store(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[str] = []

    def starting(url: str) -> GraphStore:
        attempts.append(url)
        if len(attempts) < 2:
            raise Unavailable("the database system is starting up")
        return GraphStore(url)

    monkeypatch.setattr(module, "GraphStore", starting)
    await GraphState(settings).close()
    assert len(attempts) == 2
    monkeypatch.setattr(module, "STORE_WAIT_S", 0.0)
    attempts.clear()
    with pytest.raises(Unavailable, match="starting up"):
        GraphState(settings)
    assert holder_of(settings.store_url, settings.data_dir) is None


# -------------------------------------------------------------------------------------------------- tail


async def test_the_tail_brings_what_follows(state: GraphState) -> None:
    for n in range(4):
        await write(state, PutUser(f"u{n}"))
    for version in range(4):
        tail = await state.tail(report(state, version), timeout_s=5)
        assert (tail.head, tail.gap) == (4, False)
        assert [(c.from_version, c.to_version) for c in tail.commits] == [
            (v, v + 1) for v in range(version, 4)
        ]
    view = GraphView(state.store_id)
    for changes in (await state.tail(report(state, 0))).commits:
        view.apply(changes)
    assert_same_view(view, state._writer.view)


async def test_the_tail_waits_for_a_commit(state: GraphState) -> None:
    tails = [asyncio.create_task(state.tail(report(state, 0), timeout_s=30)) for _ in range(5)]
    await until(lambda: state._moved is not None)
    await state.write([WriteRequest((PutUser("nobody/"),))])  # refused: nothing moves
    assert not any(t.done() for t in tails)
    await write(state, PutUser("u"))
    for tail in await asyncio.gather(*tails):
        assert [c.to_version for c in tail.commits] == [1]


async def test_the_tail_gives_up_after_its_timeout(state: GraphState) -> None:
    await write(state, PutUser("u"))
    tail = await state.tail(report(state, 1), timeout_s=0.01)
    assert (tail.store_id, tail.head, tail.commits, tail.gap) == (state.store_id, 1, (), False)


@pytest.mark.parametrize(
    ("version", "store_id"), [(5, None), (0, "foreign"), (1, "foreign")], ids=["ahead", "foreign", "both"]
)
async def test_the_tail_sends_strangers_away(state: GraphState, version: int, store_id: str | None) -> None:
    await write(state, PutUser("u"))
    stranger = report(state, version, store_id=store_id or state.store_id)
    tail = await state.tail(stranger, timeout_s=30)
    assert (tail.gap, tail.commits, tail.store_id, tail.head) == (True, (), state.store_id, 1)


async def test_kinds_are_filtered_but_versions_are_not(state: GraphState) -> None:
    await write(state, PutItem("i", "I"), PutUser("u"))
    await write(state, PutRating("u", "i", 3.0))
    await write(state, PutPointer("s", "n", {}))
    tail = await state.tail(report(state, 0), frozenset(("item", "pointer")))
    assert [(c.to_version, len(c)) for c in tail.commits] == [(1, 1), (2, 0), (3, 1)]
    assert [len(c.users) + len(c.ratings) for c in tail.commits] == [0, 0, 0]


@pytest.mark.parametrize("limits", [{"ring_versions": 3}, {"ring_rows": 6}], ids=["versions", "rows"])
async def test_the_ring_forgets_and_says_so(tmp_path: Path, limits: dict[str, int]) -> None:
    state = GraphState(make_settings(tmp_path, graph_state=limits))
    for n in range(8):
        await write(state, PutUser(f"a{n}"), PutUser(f"b{n}"))
    assert [c.to_version for c in state._ring] == [6, 7, 8]
    assert state._ring_rows == 6
    assert (await state.tail(report(state, 4))).gap
    assert [c.to_version for c in (await state.tail(report(state, 5))).commits] == [6, 7, 8]
    await state.close()


async def test_a_version_inside_a_group_is_a_gap(state: GraphState) -> None:
    await state.write([WriteRequest((PutUser(f"u{n}"),)) for n in range(3)])
    assert (await state.tail(report(state, 1))).gap
    assert [c.to_version for c in (await state.tail(report(state, 0))).commits] == [3]


# ---------------------------------------------------------------------------------------------- catching up


async def pages_of(state: GraphState, version: int) -> list[ChangeSet | SnapshotRequired]:
    return [page async for page in state.changes_since(version)]


async def test_nobody_gets_ahead_of_the_tail(state: GraphState) -> None:
    """Between commit and publication a scan sees more than the tail knows."""
    await write(state, PutUser("u0"))
    gate = Gate(state, after=True)
    writing = asyncio.create_task(write(state, PutUser("u1")))
    await until(gate.entered.is_set)
    assert (state._store.head().version, state._head) == (2, 1)
    scan = asyncio.create_task(pages_of(state, 0))
    opened = asyncio.create_task(_open_when(gate, scan))
    pages = await scan
    assert isinstance(pages[-1], ChangeSet)
    assert not (await state.tail(report(state, pages[-1].to_version), timeout_s=0.01)).gap
    await asyncio.gather(writing, opened)


async def _open_when(gate: Gate, scan: asyncio.Task[Any]) -> None:
    # Time enough for a scan that does not wait to come through.
    await asyncio.wait([scan], timeout=0.3)
    gate.open()


async def test_a_scan_from_before_the_horizon_asks_for_a_snapshot(state: GraphState) -> None:
    await write(state, PutUser("u"))
    await write(state, DeleteUser("u"))
    assert await state.snapshot() == 2
    (answer,) = await pages_of(state, 1)
    assert isinstance(answer, SnapshotRequired)
    assert len(await pages_of(state, 2)) == 1
    assert (await state.status())["horizon"] == 2


async def test_followers_are_known_until_they_leave(
    state: GraphState, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = FollowerReport("f1", "graph_encoder", state.store_id, 0, ("d1",), ("d2",))
    await state.tail(mine, timeout_s=0.001)
    await state.tail(report(state, 0, follower_id="f2"), timeout_s=0.001)
    assert list(await state.reports()) == state.followers()
    assert state.followers()[0] == mine
    assert [f["lag_versions"] for f in (await state.status())["followers"]] == [0, 0]
    await state.forget("f2")
    await state.forget("never seen")
    assert state.followers() == [mine]
    monkeypatch.setattr(module, "FOLLOWER_FORGOTTEN_S", -1.0)
    assert state.followers() == []


# ------------------------------------------------------------------------------------- snapshots and closing


async def test_a_snapshot_is_taken_by_itself_and_again(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, graph_state={"snapshot_every_versions": 5})
    state = GraphState(settings)
    for n in range(12):
        await write(state, PutUser(f"u{n}"))
    await until(lambda: state._snapshotting is not None and state._snapshotting.done())
    assert state._snapshot_version >= 5
    assert [p.name for p in settings.snapshot_dir.iterdir()] == [f"v{state._snapshot_version:020d}"]
    await state.close()


async def test_closing_finishes_waiting_writes_snapshots_and_lets_go(settings: Settings) -> None:
    state = GraphState(settings)
    holder = holder_of(settings.store_url, settings.data_dir)
    assert holder is not None
    assert holder["url"] == settings.url
    gate = Gate(state)
    tasks = [asyncio.create_task(write(state, PutUser(f"u{n}"))) for n in range(5)]
    await until(gate.entered.is_set)
    closing = asyncio.create_task(state.close())
    await until(lambda: state._closed)
    (late,) = await state.write([WriteRequest((PutUser("late"),))])
    assert isinstance(late, Unavailable)
    gate.open()
    assert all(isinstance(r, WriteResult) for r in await asyncio.gather(*tasks))
    await closing
    await state.close()  # once is enough
    assert holder_of(settings.store_url, settings.data_dir) is None
    view = newest_snapshot(settings.snapshot_dir, state.store_id)
    assert view is not None
    assert_same_view(view, stored(settings))
    assert view.num_users == 5
    again = GraphState(settings)
    assert (await again.status())["version"] == 5
    assert_same_view(again._writer.view, view)
    assert await again.ping() == 2
    await again.close()
    assert again._head == again._snapshot_version


async def test_a_store_that_is_held_is_not_taken(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_WAIT_S", 0.01)
    with (
        lock_of(settings.store_url, settings.data_dir, "the command `weft import`"),
        pytest.raises(StoreLocked, match="weft import"),
    ):
        GraphState(settings)
    state = GraphState(settings)
    await state.close()


async def test_a_snapshot_that_cannot_be_written_stops_nothing(
    state: GraphState, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    await write(state, PutUser("u"))
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_snapshot", fail)
        await state._snapshot_logged()
    assert "no space left" in caplog.text
    assert (await state.status())["horizon"] == 0  # nothing is purged without a snapshot
    assert (await write(state, PutUser("v"))).version == 2


async def test_a_restored_backup_knows_no_later_snapshots(settings: Settings) -> None:
    state = GraphState(settings)
    await write(state, PutUser("then"))
    await state.close()
    future = GraphView(state.store_id, version=5)
    write_snapshot(settings.snapshot_dir, future.contents())
    again = GraphState(settings)
    for n in range(6):  # past the version of the snapshot that never was
        await write(again, PutUser(f"now{n}"))
    view = newest_snapshot(settings.snapshot_dir, state.store_id)
    assert view is not None
    assert view.version == 1
    await again.close()
    last = GraphState(settings)
    assert_same_view(last._writer.view, stored(settings))
    await last.close()
