"""Adapters' pointers and files, also when several change them at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import deployments.adapter_manager as module
from deployments.adapter_manager import AdapterManager
from deployments.adapter_versions import AdapterVersions
from deployments.following import Follower
from deployments.generation_messages import ActivateAdapter, AdapterWritten, PutAdapter
from deployments.graph_state import GraphState
from deployments.settings import Settings
from graph.errors import (
    AdapterInUse,
    Conflict,
    InvalidAdapter,
    InvalidInput,
    PointerMoved,
    Unavailable,
    UnknownAdapter,
    WeftError,
)
from graph.schema import ChangeSet, PutPointer
from graph.view import GraphView
from models.adapters import AdapterStore
from tests.deployments.local_adapters import PlainStore, digest_of, put_in_inbox
from tests.deployments.local_state import make_settings, until, write
from tests.models.test_adapters import write as write_adapter


class Replica:
    """A manager with a view of its own."""

    def __init__(self, settings: Settings, state: Any) -> None:
        self.store = PlainStore(settings)
        self.versions = AdapterVersions(GraphView())
        self.view = GraphView()
        self.follower = Follower("test", self, state, settings.snapshot_dir, frozenset(("pointer",)))
        self.manager = AdapterManager(settings, state, self.follower, lambda: self.versions, self.store)

    async def load(self, view: GraphView) -> None:
        self.view, self.versions = view, AdapterVersions(view)

    async def apply(self, changes: ChangeSet) -> None:
        self.view.apply(changes)
        self.versions.apply(changes.pointers)

    def generations(self) -> tuple[str, ...]:
        return ()

    def failed(self) -> tuple[str, ...]:
        return ()


class World:
    def __init__(self, folder: Path) -> None:
        self.settings = make_settings(folder)
        self.state = GraphState(self.settings)
        self.replicas: list[Replica] = []

    async def replica(self, state: Any = None) -> Replica:
        replica = Replica(self.settings, state or self.state)
        self.replicas.append(replica)
        await replica.follower.start()
        await replica.manager.start()
        return replica

    async def put(self, replica: Replica, version: str, word: str, name: str = "alice") -> AdapterWritten:
        put_in_inbox(self.settings, f"{name}-{version}-{word}", word)
        what = PutAdapter("user", name, version, path=f"{name}-{version}-{word}")
        return await replica.manager.put(what)

    async def level(self) -> None:
        for replica in self.replicas:
            assert await replica.follower.wait_for(self.state._head, 5.0)

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.manager.stop()
            await replica.follower.stop()
        await self.state.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


def one(version: str) -> ActivateAdapter:
    return ActivateAdapter("user", "alice", ((version, 1.0),))


async def test_a_version_is_put_once_and_never_changes(world: World) -> None:
    replica = await world.replica()
    first = await world.put(replica, "v1", "one")
    assert first.put is not None
    assert (first.put.digest, first.put.active, first.replayed) == (digest_of("one"), False, False)
    again = await world.put(replica, "v1", "one")
    assert (again.version, again.replayed, again.put) == (first.version, True, first.put)
    with pytest.raises(Conflict, match="choose a new label"):
        await world.put(replica, "v1", "other")
    assert replica.store.digests() == {digest_of("one")}  # the refused files are gone again
    await world.put(replica, "v2", "one")
    await world.put(replica, "v1", "one", name="bob")


async def test_files_that_are_no_adapter_change_nothing(world: World) -> None:
    replica = await world.replica()
    head = world.state._head
    with pytest.raises(InvalidAdapter):
        await world.put(replica, "v1", "bad")
    assert world.state._head == head
    for what in (
        PutAdapter("user", "..", "v1", path="x"),
        PutAdapter("user", "alice", "v/1", path="x"),
        PutAdapter("user", "alice", "v1"),
        PutAdapter("user", "alice", "v1", path="x", upload="y"),
        *(
            PutAdapter("user", "alice", "v1", upload=u)
            for u in ("", ".", "..", "../x", "a/b", "a\0", "é", ".x")
        ),
    ):
        with pytest.raises(InvalidInput):
            await replica.manager.put(what)


async def test_an_upload_is_removed_whatever_becomes_of_it(world: World) -> None:
    replica = await world.replica()
    uploads = world.settings.upload_dir
    for name, word in (("good", "one"), ("damaged", "bad")):
        (uploads / name).write_text(word)
    found = await replica.manager.put(PutAdapter("user", "alice", "v1", upload="good"))
    assert found.put is not None
    assert found.put.digest == digest_of("one")
    with pytest.raises(InvalidAdapter):
        await replica.manager.put(PutAdapter("user", "alice", "v2", upload="damaged"))
    assert list(uploads.iterdir()) == []


async def test_uploads_that_nobody_came_for_are_removed_at_start(world: World) -> None:
    import os
    import time

    uploads = world.settings.upload_dir
    uploads.mkdir(parents=True)
    for name, age_s in (("old", 7_200), ("new", 60)):
        (uploads / name).write_text("x")
        os.utime(uploads / name, (time.time() - age_s,) * 2)
    await world.replica()
    assert [path.name for path in uploads.iterdir()] == ["new"]


async def test_activating_keeps_what_was_and_rolling_back_returns_to_it(world: World) -> None:
    replica = await world.replica()
    for version in ("v1", "v2"):
        await world.put(replica, version, version)
    with pytest.raises(Conflict, match="nothing to roll back"):
        await replica.manager.roll_back("user", "alice")
    with pytest.raises(UnknownAdapter, match="put it first"):
        await replica.manager.activate(one("v3"))

    first = await replica.manager.activate(one("v1"))
    with pytest.raises(Conflict):
        await replica.manager.roll_back("user", "alice")
    second = await replica.manager.activate(one("v2"))
    again = await replica.manager.activate(one("v2"))
    assert (again.version, again.replayed) == (second.version, True)
    back = await replica.manager.roll_back("user", "alice")
    assert back.state is not None
    assert [arm.version for arm in back.state.arms] == ["v1"]
    forth = await replica.manager.roll_back("user", "alice")
    assert forth.state is not None
    assert [arm.version for arm in forth.state.arms] == ["v2"]
    none = await replica.manager.activate(ActivateAdapter("user", "alice", ()))
    assert none.state is not None
    assert (none.state.arms, [arm.version for arm in none.state.previous]) == ((), ["v2"])

    states = await replica.manager.history("user", "alice")
    told = [([a.version for a in s.arms], [a.version for a in s.previous], s.action) for s in states]
    assert told == [
        (["v1"], [], "activate"),
        (["v2"], ["v1"], "activate"),
        (["v1"], ["v2"], "rollback"),
        (["v2"], ["v1"], "rollback"),
        ([], ["v2"], "deactivate"),
    ]
    assert [s.version for s in states] == sorted(s.version for s in states)
    assert states[0].version == first.version
    assert await replica.manager.history("user", "bob") == ()


@pytest.mark.parametrize(
    "arms",
    [(("v1", 0.0),), (("v1", float("nan")),), (("v1", -1.0),), (("v1", 1.0), ("v1", 2.0)), (("v1", 1e9),)],
)
async def test_arms_have_weights_and_differ(world: World, arms: Any) -> None:
    replica = await world.replica()
    await world.put(replica, "v1", "one")
    with pytest.raises(InvalidInput):
        await replica.manager.activate(ActivateAdapter("user", "alice", arms))
    two = ActivateAdapter("user", "alice", (("v1", 3.0),))
    found = await replica.manager.activate(two)
    assert found.state is not None
    assert found.state.arms[0].weight == 3.0


async def test_files_that_are_gone_are_not_made_active(world: World) -> None:
    replica = await world.replica()
    await world.put(replica, "v1", "one")
    (world.settings.adapter_dir / digest_of("one")).unlink()
    with pytest.raises(UnknownAdapter, match="gone"):
        await replica.manager.activate(one("v1"))
    assert await replica.manager.history("user", "alice") == ()


async def test_files_that_are_gone_are_not_returned_to(world: World) -> None:
    replica = await world.replica()
    for version in ("v1", "v2"):
        await world.put(replica, version, version)
        await replica.manager.activate(one(version))
    (world.settings.adapter_dir / digest_of("v1")).unlink()
    with pytest.raises(UnknownAdapter, match="gone"):
        await replica.manager.roll_back("user", "alice")
    assert [s.action for s in await replica.manager.history("user", "alice")] == ["activate", "activate"]
    none = await replica.manager.activate(ActivateAdapter("user", "alice", ()))  # the way out
    assert none.state is not None
    assert none.state.arms == ()


async def test_files_damaged_since_they_were_put_are_not_made_active(tmp_path: Path) -> None:
    world = World(tmp_path)
    replica = await world.replica()
    world.settings.adapter_inbox.mkdir(parents=True, exist_ok=True)
    write_adapter(world.settings.adapter_inbox / "a")
    store = AdapterStore(
        world.settings.adapter_dir, world.settings.adapter_inbox, None, max_rank=8, max_bytes=1 << 20
    )
    replica.manager._store = store
    found = await replica.manager.put(PutAdapter("user", "alice", "v1", path="a"))
    assert found.put is not None
    assert found.put.modules == ("q_proj",)
    weights = world.settings.adapter_dir / found.put.digest / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(InvalidAdapter, match="damaged"):
        await replica.manager.activate(one("v1"))
    await replica.manager.put(PutAdapter("user", "alice", "v1", path="a"))  # as the message says
    await replica.manager.activate(one("v1"))
    await world.close()


async def test_an_upload_that_is_not_there(world: World) -> None:
    replica = await world.replica()
    replica.manager._store = AdapterStore(
        world.settings.adapter_dir, world.settings.adapter_inbox, None, max_rank=8, max_bytes=1 << 20
    )
    with pytest.raises(Unavailable, match="cannot be read"):
        await replica.manager.put(PutAdapter("user", "alice", "v1", upload="missing"))


async def test_the_last_version_goes_once_nothing_is_active(world: World) -> None:
    replica = await world.replica()
    await world.put(replica, "v1", "one")
    await replica.manager.activate(one("v1"))
    await replica.manager.activate(ActivateAdapter("user", "alice", ()))
    deleted = await replica.manager.delete("user", "alice", "v1")
    assert replica.store.digests() == set()
    with pytest.raises(Conflict, match="nothing to roll back to"):
        await replica.manager.roll_back("user", "alice")
    states = await replica.manager.history("user", "alice")
    assert [state.previous for state in states if state.version == deleted.version] == [()]


async def test_what_is_in_use_is_not_deleted_and_shared_files_stay(world: World) -> None:
    replica = await world.replica()
    for version, word in (("v1", "one"), ("v2", "two"), ("v3", "three"), ("v4", "one")):
        await world.put(replica, version, word)
    await replica.manager.activate(one("v1"))
    await replica.manager.activate(one("v2"))
    with pytest.raises(AdapterInUse, match="is active"):
        await replica.manager.delete("user", "alice", "v2")
    with pytest.raises(AdapterInUse, match="rollback"):
        await replica.manager.delete("user", "alice", "v1")
    await replica.manager.activate(one("v3"))
    await replica.manager.delete("user", "alice", "v1")
    with pytest.raises(UnknownAdapter):
        await replica.manager.delete("user", "alice", "v1")
    assert digest_of("one") in replica.store.digests()  # v4 has them
    await replica.manager.delete("user", "alice", "v4")
    assert replica.store.digests() == {digest_of("two"), digest_of("three")}
    # The label is free again.
    found = await world.put(replica, "v1", "new")
    assert found.put is not None
    assert found.put.digest == digest_of("new")


async def test_a_list_goes_page_by_page(world: World) -> None:
    replica = await world.replica()
    for name in ("bob", "alice", "a.b"):
        for version in ("v2", "v1", "v10"):
            await world.put(replica, version, f"{name}{version}", name)
    await replica.manager.activate(one("v1"))
    await world.level()
    keys: list[str] = []
    after = None
    while True:
        page = await replica.manager.list(2, after, None, None)
        assert len(page.versions) <= 2
        keys += [f"{v.scope}/{v.name}/{v.version}" for v in page.versions]
        assert (len(page.candidates) > 0) == (after is None)
        after = page.next
        if after is None:
            break
    assert keys == sorted(keys)
    assert len(keys) == 9
    mine = await replica.manager.list(10, None, "user", "alice")
    assert [v.version for v in mine.versions] == ["v1", "v10", "v2"]
    assert [v.active for v in mine.versions] == [True, False, False]
    assert [s.arms[0].version for s in mine.states] == ["v1"]
    assert len((await replica.manager.list(10, None, "domain", None)).versions) == 0
    assert len((await replica.manager.list(10, None, None, "bob")).versions) == 3


class Unlucky:
    """A graph state that dies between commit and answer, and says so."""

    def __init__(self, state: GraphState, every: int) -> None:
        self._state, self._every, self._calls = state, every, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    async def write(self, requests: Any) -> Any:
        self._calls += 1
        if self._calls % self._every == 1:
            raise Unavailable("away")
        found = await self._state.write(requests)
        if self._calls % self._every == 0:
            raise Unavailable("the graph state is restarting")
        return found


async def test_a_write_whose_answer_is_lost_happens_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.001)
    replica = await world.replica(Unlucky(world.state, 3))
    for version in ("v1", "v2"):
        await world.put(replica, version, version)
        await replica.manager.activate(one(version))
    await replica.manager.roll_back("user", "alice")
    states = await replica.manager.history("user", "alice")
    assert [s.arms[0].version for s in states] == ["v1", "v2", "v1"]


async def test_somebody_who_always_comes_first_is_a_conflict(world: World) -> None:
    class Rival:
        def __getattr__(self, name: str) -> Any:
            return getattr(world.state, name)

        async def write(self, requests: Any) -> Any:
            first = requests[0].operations[0]
            await write(world.state, PutPointer(first.scope, first.name, first.value))
            return await world.state.write(requests)

    replica = await world.replica()
    await world.put(replica, "v1", "one")
    slow = await world.replica(Rival())
    with pytest.raises(PointerMoved):
        await slow.manager.activate(one("v1"))


async def test_a_caller_that_goes_away_does_not_stop_what_was_begun(world: World) -> None:
    import threading

    replica = await world.replica()
    goes_on, entered = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        goes_on.wait(20)

    replica.store.before_import = wait
    (world.settings.upload_dir / "u").write_text("one")
    task = asyncio.create_task(replica.manager.put(PutAdapter("user", "alice", "v1", upload="u")))
    await until(entered.is_set)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (world.settings.upload_dir / "u").exists()
    goes_on.set()
    await replica.manager.stop()
    await world.level()
    assert replica.versions.find("user", "alice", "v1") is not None
    assert not (world.settings.upload_dir / "u").exists()


@pytest.mark.parametrize("seed", range(4))
async def test_three_replicas_that_change_everything_at_once(world: World, seed: int) -> None:
    """What is active, or what a rollback returns to, always has its files, at every version of the feed."""
    rng = random.Random(seed)
    replicas = [await world.replica() for _ in range(3)]
    labels, words = ("v1", "v2", "v3"), ("one", "two")
    for label in labels:
        for word in words:
            put_in_inbox(world.settings, f"alice-{label}-{word}", word)
    outcomes: dict[str, int] = {}

    async def work(replica: Replica) -> None:
        manager = replica.manager
        for _ in range(25):
            label = rng.choice(labels)
            call: Any = rng.choice(
                [
                    lambda: manager.put(
                        PutAdapter("user", "alice", label, path=f"alice-{label}-{rng.choice(words)}")  # noqa: B023
                    ),
                    lambda: manager.activate(one(label)),  # noqa: B023
                    lambda: manager.roll_back("user", "alice"),
                    lambda: manager.delete("user", "alice", label),  # noqa: B023
                ]
            )
            try:
                await call()
            except WeftError as error:
                kind = type(error).__name__
                assert kind in ("Conflict", "UnknownAdapter", "AdapterInUse", "PointerMoved"), error
                outcomes[kind] = outcomes.get(kind, 0) + 1
            else:
                outcomes["done"] = outcomes.get("done", 0) + 1
            state = replica.versions.state("user", "alice")
            if state is not None:
                there = replica.store.digests()
                for arm in (*state.arms, *state.previous):
                    assert replica.versions.find("user", "alice", arm.version) is not None
                    assert arm.digest in there

    await asyncio.gather(*(work(replica) for replica in replicas))
    await world.level()
    assert outcomes["done"] > 10
    in_use = {v.digest for v in (await replicas[0].manager.list(100, None, None, None)).versions}
    assert replicas[0].store.digests() == in_use
    for replica in replicas[1:]:
        assert replica.versions.state("user", "alice") == replicas[0].versions.state("user", "alice")
