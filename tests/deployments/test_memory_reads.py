"""Memories, a user's own graph and context lines, as the graph encoder answers them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deployments.memory_reads as memory_reads
from deployments.graph_encoder import GraphEncoder
from deployments.graph_state import GraphState
from deployments.memory_messages import MemoryPage, MemoryQuery, MemoryRecord, RelationRecord
from graph.context import ContextQuery, Suggestion
from graph.errors import InvalidInput, NotYet, UnknownMemory, UnknownUser
from graph.node_text import text_digest
from graph.schema import (
    DeleteItem,
    DeleteMemory,
    Operation,
    PutItem,
    PutMemory,
    PutPointer,
    PutRating,
    PutRelation,
    PutTextVector,
    WriteResult,
)
from graph.text_vectors import packed
from tests.deployments.local_state import make_settings, until, write
from tests.deployments.test_replicas import make_encoder

MODEL = "hashing-1"
NOW = 1_800_000_000


class World:
    def __init__(self, folder: Path) -> None:
        self.settings = make_settings(folder)
        self.state = GraphState(self.settings)
        self.encoder = GraphEncoder(self.settings, self.state)

    async def write(self, *operations: Operation) -> WriteResult:
        """Written, and seen by the encoder."""
        result = await write(self.state, *operations)
        assert await self.encoder.wait_for(result.version, 15)
        return result

    async def close(self) -> None:
        await self.encoder.stop()
        await self.state.close()


@pytest.fixture(params=["no encoder", "encoder"])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    world = World(tmp_path)
    await world.encoder.start()
    await write(
        world.state,
        *(PutItem(f"i{n}", f"Film {n}", ("noir",)) for n in range(6)),
        PutRating("ann", "i0", 5.0),
        PutRating("ann", "i1", 1.0),
        PutRating("bob", "i0", 5.0),
        PutMemory("a1", "ann", "I dislike horror"),
        PutMemory("b1", "bob", "a secret of bob's"),
        PutMemory("a2", "ann", "My cat is called Film", valid_at=1_700_000_000, source="chat"),
        PutMemory("a3", "ann", "I lived in Rome", invalid_at=1_600_000_000),
        PutRelation("ann", "a2", "about", "item", "i2"),
        PutRelation("ann", "a2", "beside", "memory", "a1"),
    )
    if request.param == "encoder":
        digest = make_encoder(world.settings.encoder_dir, 1)
        await write(world.state, PutPointer("encoder", "active", {"digest": digest}))
        await until(lambda: world.encoder._generations.active is not None)
    assert await world.encoder.wait_for(world.state._head, 15)
    yield world
    await world.close()


@pytest.fixture(params=["on the loop", "on a thread"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "on a thread":
        monkeypatch.setattr(memory_reads, "_QUICK_NODES", -1)
        monkeypatch.setattr(memory_reads, "_QUICK_CONTEXT_NODES", -1)


async def page(world: World, *args: Any) -> MemoryPage:
    found = await world.encoder.list_memories(*args)
    assert isinstance(found, MemoryPage), found
    return found


async def test_a_memory_with_its_relations(world: World) -> None:
    found = await world.encoder.read_memory("ann", "a2", world.state._head)
    assert isinstance(found, MemoryRecord)
    assert (found.memory.text, found.memory.valid_at, found.memory.source) == (
        "My cat is called Film",
        1_700_000_000,
        "chat",
    )
    assert found.relations == (
        RelationRecord("a2", "about", "item", "i2", "Film 2"),
        RelationRecord("a2", "beside", "memory", "a1", "I dislike horror"),
    )
    assert (found.user_id, found.version) == ("ann", world.state._head)


async def test_what_somebody_else_remembers_is_unknown(world: World, place: None) -> None:
    encoder = world.encoder
    assert isinstance(await encoder.read_memory("ann", "b1", 0), UnknownMemory)
    assert isinstance(await encoder.read_memory("bob", "a1", 0), UnknownMemory)
    assert isinstance(await encoder.read_memory("nobody", "a1", 0), UnknownUser)
    assert [r.memory.memory_id for r in (await page(world, "bob", 10, None, 0)).records] == ["b1"]
    found: Any = await encoder.search_memories(MemoryQuery("bob", "I dislike horror film cat", 50))
    assert [f.record.memory.memory_id for f in found.found] in ([], ["b1"])
    graph: Any = await encoder.user_graph("bob", 6, 1_000, 0)
    assert not {n.node_id for n in graph.graph.nodes} & {"ann", "a1", "a2", "a3", "i1", "i2"}
    lines: Any = await encoder.context(ContextQuery("bob", "dislike horror cat", NOW), 0)
    assert not any(line.source_kind == "memory" and line.source_id != "b1" for line in lines.lines)


async def test_pages_are_oldest_first_and_go_on_where_one_ended(world: World, place: None) -> None:
    first = await page(world, "ann", 2, None, 0)
    rest = await page(world, "ann", 2, first.next, 0)
    assert [[r.memory.memory_id for r in p.records] for p in (first, rest)] == [["a1", "a2"], ["a3"]]
    assert rest.next is None
    assert first.version == world.state._head
    assert isinstance(await world.encoder.list_memories("ann", 2, "x", 0), InvalidInput)
    assert isinstance(await world.encoder.list_memories("nobody", 2, None, 0), UnknownUser)


async def test_long_texts_end_a_page_early(
    world: World, place: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_reads, "_PAGE_CHARS", 30)
    seen, after = [], None
    while True:
        found = await page(world, "ann", 2, after, 0)
        seen.append([record.memory.memory_id for record in found.records])
        if (after := found.next) is None:
            break
    assert seen == [["a1"], ["a2"], ["a3"]]


@pytest.mark.parametrize("what", ["text", "relations"])
async def test_what_is_long_is_read_on_a_thread(
    world: World, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    limits = {"text": "_QUICK_CHARS", "relations": "_QUICK_RELATIONS"}
    threads: list[threading.Thread] = []
    page_of = memory_reads._page

    def noted(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return page_of(*args)

    monkeypatch.setattr(memory_reads, "_page", noted)
    await page(world, "ann", 2, None, 0)
    monkeypatch.setattr(memory_reads, limits[what], 1)
    await page(world, "ann", 2, None, 0)
    assert [thread is threading.main_thread() for thread in threads] == [True, False]


async def test_every_read_honours_the_version_it_is_given(world: World, place: None) -> None:
    ahead, encoder = world.state._head + 1, world.encoder

    def reads() -> list[Any]:
        return [
            encoder.read_memory("new", "m", ahead),
            encoder.list_memories("new", 10, None, ahead),
            encoder.search_memories(MemoryQuery("new", "x", min_version=ahead)),
            encoder.user_graph("new", 2, 10, ahead),
            encoder.context(ContextQuery("new", "", NOW), ahead),
        ]

    assert all([isinstance(await read, NotYet) for read in reads()])
    await world.write(PutMemory("m", "new", "I am here"))
    answers = [await read for read in reads()]
    assert [answer.version for answer in answers] == [ahead] * 5
    assert answers[0].memory.text == "I am here"


async def test_searching_by_words_and_by_vectors(world: World, place: None) -> None:
    encoder = world.encoder
    found: Any = await encoder.search_memories(MemoryQuery("ann", "horror", 1))
    assert [f.record.memory.memory_id for f in found.found] == ["a1"]
    assert found.text_model is None
    vector = np.array([0.6, 0.8], np.float32)
    # A vector without any to compare it with is as good as none.
    asked = MemoryQuery("ann", "horror", 1, vector, MODEL)
    assert (await encoder.search_memories(asked)).text_model is None  # type: ignore[union-attr]
    digest = text_digest("My cat is called Film")
    await world.write(PutTextVector("memory", "a2", MODEL, digest, packed(vector)))
    # Where none of one's own has a vector, words decided.
    assert (await encoder.search_memories(MemoryQuery("bob", "x", 1, vector, MODEL))).text_model is None  # type: ignore[union-attr]
    found = await encoder.search_memories(MemoryQuery("ann", "zzz", 1, vector, MODEL))
    assert [f.record.memory.memory_id for f in found.found] == ["a2"]
    assert found.text_model == MODEL
    assert found.found[0].record.relations[0].target_id == "i2"


async def test_what_holds_no_longer_can_be_left_out(world: World) -> None:
    everything: Any = await world.encoder.search_memories(MemoryQuery("ann", "lived in Rome", 10))
    valid: Any = await world.encoder.search_memories(MemoryQuery("ann", "lived in Rome", 10, valid_only=True))
    gone = {f.record.memory.memory_id for f in everything.found} - {
        f.record.memory.memory_id for f in valid.found
    }
    assert gone == {"a3"}


async def test_context_lines_name_their_sources(world: World, place: None) -> None:
    asked = ContextQuery(
        "ann", "horror", NOW, suggestions=(Suggestion("i4", "Film 4", ("Film 0",)),), must=("i4",)
    )
    found: Any = await world.encoder.context(asked, world.state._head)
    sources = {(line.kind, line.source_kind, line.source_id) for line in found.lines}
    assert {("said", "memory", "a1"), ("liked", "item", "i0"), ("suggested", "item", "i4")} <= sources
    assert ("said", "memory", "a3") not in sources  # holds no longer
    assert found.version == world.state._head


async def test_what_is_deleted_is_gone_from_every_read(world: World, place: None) -> None:
    await world.write(DeleteItem("i2"))
    found: Any = await world.encoder.read_memory("ann", "a2", 0)
    assert [r.target_kind for r in found.relations] == ["memory"]
    await world.write(DeleteMemory("a1", "ann"))
    found = await world.encoder.read_memory("ann", "a2", 0)
    assert found.relations == ()
    assert isinstance(await world.encoder.read_memory("ann", "a1", 0), UnknownMemory)
    graph: Any = await world.encoder.user_graph("ann", 3, 100, 0)
    assert not {"a1", "i2"} & {node.node_id for node in graph.graph.nodes}
    lines: Any = await world.encoder.context(ContextQuery("ann", "horror", NOW), 0)
    assert not {"a1", "i2"} & {line.source_id for line in lines.lines}


async def test_the_own_graph_and_its_limit(world: World, place: None) -> None:
    whole: Any = await world.encoder.user_graph("ann", 2, 100, world.state._head)
    assert (whole.user_id, whole.graph.complete, whole.version) == ("ann", True, world.state._head)
    assert {n.node_id for n in whole.graph.nodes} == {"ann", "i0", "i1", "i2", "a1", "a2", "a3"}
    cut: Any = await world.encoder.user_graph("ann", 2, 3, 0)
    assert (len(cut.graph.nodes), cut.graph.complete) == (3, False)
    assert isinstance(await world.encoder.user_graph("nobody", 2, 3, 0), UnknownUser)


async def test_a_long_read_sees_one_version_and_holds_up_commits_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_reads, "_QUICK_CONTEXT_NODES", -1)
    began, go = threading.Event(), threading.Event()
    seen: list[tuple[int, int]] = []

    def slow(view: Any, query: ContextQuery) -> list[Any]:
        before = view.version
        began.set()
        assert go.wait(20)
        seen.append((before, view.version))
        return []

    monkeypatch.setattr(memory_reads, "select", slow)
    head = world.state._head
    reading = asyncio.create_task(world.encoder.context(ContextQuery("ann", "", NOW), 0))
    await until(began.is_set)
    result = await write(world.state, PutMemory("a4", "ann", "new"))
    # Others are answered meanwhile, of the version before.
    found: Any = await world.encoder.read_memory("ann", "a1", 0)
    assert found.version == head
    assert isinstance(await world.encoder.read_memory("ann", "a4", result.version), NotYet)
    go.set()
    assert (await reading).version == head  # type: ignore[union-attr]
    assert seen == [(head, head)]
    assert await world.encoder.wait_for(result.version, 15)
