"""A follower reaches the head, whatever the way there does to it."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import deployments.following as module
from deployments.following import Follower
from deployments.graph_state import FollowerReport, GraphState, Tail
from graph.errors import SnapshotRequired, Unavailable
from graph.schema import (
    ALL_KINDS,
    ChangeSet,
    DeleteItem,
    DeleteUser,
    Kind,
    Operation,
    PutItem,
    PutPointer,
    PutRating,
    PutUser,
    WriteRequest,
)
from graph.snapshot import write_snapshot
from graph.view import GraphView
from tests.deployments.local_state import make_settings, until, write
from tests.graph.plain_model import assert_same_view


class PlainReplica:
    """Holds the view and checks that it is driven as promised."""

    def __init__(self) -> None:
        self.view = GraphView()
        self.loads = 0
        self.applied: list[tuple[int, int]] = []
        self._busy = False

    async def load(self, view: GraphView) -> None:
        await self._alone()
        self.view, self.loads = view, self.loads + 1

    async def apply(self, changes: ChangeSet) -> None:
        await self._alone()
        assert changes.from_version == self.view.version
        self.applied.append((changes.from_version, changes.to_version))
        self.view.apply(changes)

    async def _alone(self) -> None:
        assert not self._busy
        self._busy = True
        await asyncio.sleep(0)
        self._busy = False

    def generations(self) -> tuple[str, ...]:
        return ("d1",)

    def failed(self) -> tuple[str, ...]:
        return ("d2",)


class Source:
    """A graph state behind a connection that may fail in every way a handle can."""

    def __init__(self, state: GraphState, seed: int | None = None) -> None:
        self.state: GraphState | None = state
        self.rng = None if seed is None else random.Random(seed)
        self.reports_seen: list[FollowerReport] = []
        self.scans = 0
        self.forgotten: list[str] = []

    def _there(self, chance: float = 0.3) -> GraphState:
        if self.state is None or (self.rng and self.rng.random() < chance):
            raise Unavailable("the graph state is restarting")
        return self.state

    async def status(self) -> dict[str, Any]:
        return await self._there().status()

    async def forget(self, follower_id: str) -> None:
        self.forgotten.append(follower_id)
        await self._there().forget(follower_id)

    async def tail(
        self, report: FollowerReport, kinds: frozenset[Kind] = ALL_KINDS, timeout_s: float = 10.0
    ) -> Tail:
        self.reports_seen.append(report)
        tail = await self._there().tail(report, kinds, 0.05 if self.rng else timeout_s)
        self._there(0.1)  # executed, and the answer lost
        if self.rng is None or tail.gap:
            return tail
        commits = list(tail.commits)
        match self.rng.randrange(6):
            case 0:
                self.rng.shuffle(commits)
            case 1:
                commits = [c for c in commits for _ in range(2)]
            case 2:
                commits = [c for c in commits if self.rng.random() < 0.6]
            case 3:
                return Tail(tail.store_id, tail.head, gap=True)
        return Tail(tail.store_id, tail.head, tuple(commits))

    async def changes_since(
        self, version: int, kinds: frozenset[Kind] = ALL_KINDS
    ) -> AsyncIterator[ChangeSet | SnapshotRequired]:
        self.scans += 1
        async for page in self._there().changes_since(version, kinds):
            yield page
            self._there(0.2)


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.001)


class World:
    def __init__(self, folder: Path, seed: int | None = None, **limits: int) -> None:
        self.settings = make_settings(folder, graph_state=limits)
        self.state = GraphState(self.settings)
        self.source = Source(self.state, seed)
        self.replica = PlainReplica()
        self.rng = random.Random(seed or 0)
        self.follower = self.new_follower(self.replica)

    def new_follower(self, replica: PlainReplica, kinds: frozenset[Kind] = ALL_KINDS) -> Follower:
        return Follower("test", replica, self.source, self.settings.snapshot_dir, kinds)  # type: ignore[arg-type]

    async def restart(self) -> None:
        self.source.state = None
        await self.state.close()
        self.state = GraphState(self.settings)
        self.source.state = self.state

    def random_operation(self) -> Operation:
        user, item = f"u{self.rng.randrange(6)}", f"i{self.rng.randrange(6)}"
        kinds = [PutItem(item, str(self.rng.random())), DeleteItem(item), DeleteUser(user), PutUser(user)]
        return self.rng.choice([*kinds, *[PutRating(user, item, self.rng.randint(1, 5))] * 6])

    async def write_some(self, count: int) -> None:
        for _ in range(count):
            await self.state.write(
                [WriteRequest((self.random_operation(),)) for _ in range(self.rng.randint(1, 3))]
            )

    async def level(self) -> None:
        await until(
            lambda: (
                self.follower.version == self.state._head and self.follower.store_id == self.state.store_id
            )
        )
        assert self.follower.alive
        assert_same_view(self.replica.view, self.state._writer.view)

    async def close(self) -> None:
        self.source.rng = None
        await self.follower.stop()
        await self.state.close()


def remove_store(folder: Path) -> None:
    for path in folder.glob("weft.sqlite*"):
        path.unlink()


async def test_it_starts_level_and_stays_level(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.write_some(20)
    await world.follower.start()
    assert world.follower.version == world.state._head
    await world.write_some(30)
    await world.level()
    assert world.replica.loads == 1
    assert world.follower.connected
    await world.close()


async def test_it_says_who_it_is_and_takes_its_leave(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.follower.start()
    await until(lambda: bool(world.state.followers()))
    (found,) = world.state.followers()
    assert (found.kind, found.generations, found.failed) == ("test", ("d1",), ("d2",))
    assert found.follower_id == world.follower.follower_id
    await world.follower.stop()
    assert world.state.followers() == []
    assert not world.follower.alive
    await world.state.close()


async def test_leaving_does_not_wait_for_a_writer_that_is_away(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.follower.start()
    world.source.state = None
    await world.follower.stop()
    assert world.source.forgotten == [world.follower.follower_id]
    await world.state.close()


async def test_starting_waits_for_the_graph_state(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.write_some(5)
    world.source.state = None
    starting = asyncio.create_task(world.follower.start())
    assert not await world.follower.wait_for(0, 0.02)
    world.source.state = world.state
    await starting
    await world.level()
    await world.close()


@pytest.mark.parametrize("seed", range(8))
async def test_it_converges_over_a_faulty_connection(tmp_path: Path, seed: int) -> None:
    limits = {"ring_versions": 5} if seed % 2 else {}
    world = World(tmp_path, seed, **limits)
    await world.write_some(10)
    await world.follower.start()
    for _ in range(6):
        await world.write_some(10)
        match world.rng.randrange(4):
            case 0:
                await world.restart()
            case 1:
                await world.state.snapshot()  # the horizon moves
            case 2:
                await world.level()
    await world.level()
    spans = world.replica.applied
    assert all(first <= last for first, last in spans)
    await world.close()


async def test_a_gap_in_the_ring_is_scanned_not_reloaded(tmp_path: Path) -> None:
    world = World(tmp_path, ring_versions=2)
    await world.write_some(4)
    await world.follower.start()
    await world.level()
    scans = world.source.scans
    await until(lambda: world.state._moved is not None)  # it waits for the next commit, and will not get it
    world.source.state = None
    for n in range(6):
        await write(world.state, PutUser(f"missed{n}"))
    world.source.state = world.state
    await world.level()
    assert world.replica.loads == 1
    assert world.source.scans == scans + 1
    await world.close()


async def test_a_restart_of_the_writer_costs_no_reload(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.write_some(10)
    await world.follower.start()
    await world.restart()
    await world.write_some(10)
    await world.level()
    assert world.replica.loads == 1
    await world.close()


async def test_a_moved_horizon_needs_the_snapshot(tmp_path: Path) -> None:
    world = World(tmp_path, ring_versions=1)
    await world.write_some(10)
    await world.follower.start()
    world.source.state = None
    await write(world.state, PutUser("goes"))
    await write(world.state, DeleteUser("goes"))
    await world.state.snapshot()
    await world.write_some(3)
    world.source.state = world.state
    await world.level()
    assert world.replica.loads == 2
    await world.close()


@pytest.mark.parametrize("writes", [3, 60], ids=["with a lower head", "with a higher head"])
async def test_another_store_is_loaded_anew(tmp_path: Path, writes: int) -> None:
    world = World(tmp_path)
    await world.write_some(30)
    await world.follower.start()
    await world.level()
    first = world.follower.store_id
    world.source.state = None
    await world.state.close()
    remove_store(tmp_path)  # the snapshots of the old store stay
    world.state = GraphState(world.settings)
    await world.write_some(writes)
    world.source.state = world.state
    await world.level()
    assert world.follower.store_id != first
    assert world.replica.view.store_id == world.state.store_id
    await world.close()


async def test_a_restored_backup_takes_the_follower_back(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.write_some(10)
    await world.restart()  # closes: the file is complete
    shutil.copy(tmp_path / "weft.sqlite", tmp_path / "backup")
    await world.write_some(10)
    await world.follower.start()
    await world.level()
    ahead = world.follower.version
    world.source.state = None
    await world.state.close()
    remove_store(tmp_path)
    shutil.copy(tmp_path / "backup", tmp_path / "weft.sqlite")
    world.state = world.source.state = GraphState(world.settings)
    # As a copy on another machine would keep it: a snapshot that the writer has not removed.
    write_snapshot(world.settings.snapshot_dir, world.replica.view.contents())
    await until(lambda: world.follower.version == world.state._head)
    assert world.follower.version < ahead
    await world.level()
    await world.close()


async def test_a_write_overwritten_while_it_catches_up(tmp_path: Path) -> None:
    """The scan holds the later state already, the tail brings the earlier one: it must not come back."""
    world = World(tmp_path, ring_versions=100)
    await write(world.state, PutItem("i", "I"), PutRating("u", "i", 1.0))
    state, written = world.state, []
    scan = state.changes_since

    async def busy(version: int, kinds: frozenset[Kind] = ALL_KINDS) -> AsyncIterator[Any]:
        for value in (2.0, 3.0):  # before the scan reads, hence in it, and in the ring as well
            written.append((await write(state, PutRating("u", "i", value))).version)
        pages = [page async for page in scan(version, kinds)]
        for value in (4.0, 5.0):  # after it has read, before it is applied
            written.append((await write(state, PutRating("u", "i", value))).version)
        await write(state, DeleteUser("u"))
        await write(state, PutRating("u", "i", 0.5))
        for page in pages:
            yield page

    state.changes_since = busy  # type: ignore[method-assign,assignment]
    await world.follower.start()
    await world.level()
    rating = world.replica.view.rating(world.replica.view.user("u").row, 0)
    assert rating == (0.5, 0)
    assert written == [2, 3, 4, 5]
    await world.close()


async def test_filtered_kinds_keep_the_versions(tmp_path: Path) -> None:
    world = World(tmp_path, seed=3)
    replica = PlainReplica()
    follower = world.new_follower(replica, frozenset(("item", "pointer")))
    await world.write_some(10)
    await follower.start()
    await world.write_some(20)
    await write(world.state, PutPointer("encoder", "active", {"digest": "d"}))
    await until(lambda: follower.version == world.state._head)
    assert list(replica.view.items()) == list(world.state._writer.view.items())
    assert (replica.view.num_users, replica.view.num_ratings) == (0, 0)
    assert replica.view.pointer("encoder", "active") is not None
    world.source.rng = None
    await follower.stop()
    await world.state.close()


async def test_waiting_for_a_version(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.follower.start()
    assert await world.follower.wait_for(0, 0.001)
    assert not await world.follower.wait_for(1, 0.01)
    waiting = [asyncio.create_task(world.follower.wait_for(n, 15)) for n in (1, 2, 3)]
    for n in range(3):
        await write(world.state, PutUser(f"u{n}"))
        assert await waiting[n]
        assert world.follower.version >= n + 1
    assert not await world.follower.wait_for(4, 0.01)
    await world.close()


async def test_a_defect_ends_the_follower_visibly(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.follower.start()

    async def fail(_: ChangeSet) -> None:
        raise ZeroDivisionError

    world.replica.apply = fail  # type: ignore[method-assign,assignment]
    await write(world.state, PutUser("u"))
    await until(lambda: not world.follower.alive)
    await world.close()
