"""Adapters in memory: written down, loaded ahead, replaced with what replaces them."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from threading import Event

import pytest

import deployments.warm_adapters as warm_adapters
from deployments.generation_messages import (
    GenerateQuery,
)
from deployments.replica_number import ReplicaNumber
from tests.deployments.local_adapters import digest_of, plain
from tests.deployments.local_language_model import World, answered, done
from tests.deployments.local_state import make_settings, until


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(make_settings(tmp_path))
    yield world
    await world.close()


async def test_what_was_resident_and_what_is_set_is_loaded_at_start(world: World) -> None:
    first = await world.replica()
    for name in ("alice", "bob", "carol", "dora"):
        version = await world.activate(first, "user", name, "v1", name)
    assert await first.wait_for(version, 5.0)
    for user in ("carol", "alice"):
        answered(await first.generate(GenerateQuery("hello", user_id=user)))
    await first.stop()
    world.replicas.remove(first)
    # What has no version any more is not loaded.
    saved = world.settings.adapter_dir / ".resident-0.json"
    assert json.loads(saved.read_text()) == [digest_of("carol"), digest_of("alice")]
    saved.write_text(json.dumps([digest_of("gone"), *json.loads(saved.read_text())]))

    warm = world.settings.adapters.model_copy(
        update={"warm_up": ("user/bob", "user/nobody", "user/dora/v1", digest_of("alice"))}
    )
    second = await world.replica(adapters=warm)
    _, _, residents = plain(second._opened)
    await until(lambda: len(residents.requested) == 4)
    assert residents.requested == [digest_of(word) for word in ("carol", "alice", "bob", "dora")]


@pytest.mark.parametrize("content", ["", "{", "7", "[1, null]"])
async def test_a_damaged_list_of_residents_is_no_obstacle(world: World, content: str) -> None:
    world.settings.adapter_dir.mkdir(parents=True)
    (world.settings.adapter_dir / ".resident-0.json").write_text(content)
    replica = await world.replica()
    answered(await replica.generate(GenerateQuery("hello")))


async def test_residents_are_written_down_while_it_runs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_adapters, "_LOOK_S", 0.01)
    replica = await world.replica()
    version = await world.activate(replica, "user", "alice", "v1", "one")
    assert await replica.wait_for(version, 5.0)
    answered(await replica.generate(GenerateQuery("hello", user_id="alice")))
    saved = world.settings.adapter_dir / ".resident-0.json"
    await until(lambda: saved.is_file() and json.loads(saved.read_text()) == [digest_of("one")])


async def test_a_stop_in_the_middle_of_the_start_leaves_nothing_open(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = Event()

    class Slow(ReplicaNumber):
        def __init__(self, folder: Path, what: str) -> None:
            claimed.set()
            time.sleep(0.05)
            super().__init__(folder, what)

    monkeypatch.setattr(warm_adapters, "ReplicaNumber", Slow)
    replica = await world.replica()
    await until(claimed.is_set)
    await replica.stop()
    world.replicas.remove(replica)
    number = ReplicaNumber(world.settings.adapter_dir, "resident")
    assert number.value == 0
    number.close()


async def test_a_swap_of_what_is_in_memory_loads_the_new_one_and_a_deletion_forgets(world: World) -> None:
    replica = await world.replica()
    await world.activate(replica, "user", "alice", "v1", "one")
    _, _, residents = plain(replica._opened)
    version = await world.activate(replica, "user", "alice", "v2", "two")
    assert await replica.wait_for(version, 5.0)
    assert residents.requested == []  # nobody asked for the old one either
    answered(await replica.generate(GenerateQuery("hello", user_id="alice")))
    version = await world.activate(replica, "user", "alice", "v3", "three")
    assert await replica.wait_for(version, 5.0)
    assert residents.requested == [digest_of("two"), digest_of("three")]
    version = await world.activate(replica, "user", "alice", "v4", "four")
    gone = done(await replica.delete_adapter("user", "alice", "v2", version))
    assert await replica.wait_for(gone.version, 5.0)
    assert residents.forgotten == [digest_of("two")]


async def test_replicas_write_a_list_each_and_read_all(world: World) -> None:
    first, second = await world.replica(), await world.replica()
    for name in ("alice", "bob"):
        version = await world.activate(first, "user", name, "v1", name)
    for replica, user in ((first, "alice"), (second, "bob")):
        assert await replica.wait_for(version, 5.0)
        answered(await replica.generate(GenerateQuery("hello", user_id=user)))
    while world.replicas:
        await world.replicas.pop().stop()
    files = sorted(world.settings.adapter_dir.glob(".resident-*.json"))
    listed = [json.loads(file.read_text()) for file in files]
    assert sorted(listed) == sorted([[digest_of("alice")], [digest_of("bob")]])
    third = await world.replica()
    _, _, residents = plain(third._opened)
    await until(lambda: len(residents.requested) == 2)
    assert set(residents.requested) == {digest_of("alice"), digest_of("bob")}
