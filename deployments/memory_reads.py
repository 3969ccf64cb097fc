"""What the graph encoder answers of memories and of what is a user's own: its view holds them all."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import accumulate
from typing import TypeVar

from deployments.cursors import read_cursor
from deployments.long_reads import LongReads
from deployments.memory_messages import (
    ContextCandidates,
    FoundMemory,
    GraphAnswer,
    MemoryPage,
    MemoryQuery,
    MemoryRecord,
    MemorySearchAnswer,
    RelationRecord,
)
from deployments.slow_calls import noted
from graph.context import ContextQuery, select
from graph.context_lines import one_line
from graph.errors import UnknownMemory, WeftError
from graph.memory_search import score_memories
from graph.schema import Memory, Relation
from graph.user_graph import user_graph
from graph.view import GraphView
from graph.words import Wording

T = TypeVar("T")

_QUICK_NODES = 200
"""Memories and ratings of a user that are read at once: listing or searching so many takes about half a
millisecond, 10,000 of them 25 ms."""
_QUICK_CONTEXT_NODES = 10
"""A context looks at neighbours as well: 50 nodes take some milliseconds, 10,000 of them 100 ms."""
_QUICK_CHARS = 20_000
_QUICK_RELATIONS = 500
_PAGE_CHARS = 2_000_000
"""Text of one page: a longer one ends before `limit`."""
_TITLE_CHARS = 80


class MemoryReads:
    """Reads of one user's own part of a view. A memory of another user counts as unknown.

    Errors are answered, not raised: NotYet for a view that has not reached `min_version`.
    """

    def __init__(
        self, current: Callable[[], GraphView], check_version: Callable[[int], None], long_reads: LongReads
    ) -> None:
        """`current` gives the view of now; `check_version` raises NotYet."""
        self._current, self._check, self._long = current, check_version, long_reads

    @noted
    async def read_memory(self, user_id: str, memory_id: str, min_version: int) -> MemoryRecord | WeftError:
        try:
            self._check(min_version)
            view = self._current()
            row = view.user(user_id).row
        except WeftError as error:
            return error
        memory = view.find_memory(memory_id)
        if memory is None or memory.user_row != row:
            return UnknownMemory(
                f"user {user_id!r} has no memory {memory_id!r}: GET /v1/users/{{id}}/memories lists them"
            )
        return _record(view, user_id, memory)

    @noted
    async def list_memories(
        self, user_id: str, limit: int, after: str | None, min_version: int
    ) -> MemoryPage | WeftError:
        """Oldest first, from the cursor `after`."""

        def read(view: GraphView) -> MemoryPage:
            start = read_cursor(after)
            memories = [m for m in view.memories_of(view.user(user_id).row) if m.row >= start]
            page = _page(memories, limit)
            following = str(page[-1].row + 1) if len(memories) > len(page) else None
            return MemoryPage(tuple(_record(view, user_id, m) for m in page), following, view.version)

        return await self._read(user_id, min_version, read, _QUICK_NODES)

    @noted
    async def search_memories(self, query: MemoryQuery) -> MemorySearchAnswer | WeftError:
        def read(view: GraphView) -> MemorySearchAnswer:
            row, model = view.user(query.user_id).row, query.text_model
            now = int(time.time()) if query.valid_only else None
            scored = score_memories(view, row, Wording(query.text), query.vector, model, now)
            best = scored.best(query.n)
            return MemorySearchAnswer(
                tuple(FoundMemory(_record(view, query.user_id, memory), score) for memory, score in best),
                model if scored.embedded.any() else None,
                view.version,
            )

        return await self._read(query.user_id, query.min_version, read, _QUICK_NODES)

    @noted
    async def user_graph(
        self, user_id: str, depth: int, limit: int, min_version: int
    ) -> GraphAnswer | WeftError:
        """What is the user's own, up to `depth` edges away, at most `limit` nodes."""

        def read(view: GraphView) -> GraphAnswer:
            return GraphAnswer(user_id, user_graph(view, user_id, depth, limit), view.version)

        return await self._read(user_id, min_version, read, _QUICK_NODES)

    @noted
    async def context(self, query: ContextQuery, min_version: int) -> ContextCandidates | WeftError:
        """Lines for a prompt, the most useful first."""

        def read(view: GraphView) -> ContextCandidates:
            return ContextCandidates(tuple(select(view, query)), view.version)

        return await self._read(query.user_id, min_version, read, _QUICK_CONTEXT_NODES)

    async def _read(
        self, user_id: str, min_version: int, read: Callable[[GraphView], T], quick_nodes: int
    ) -> T | WeftError:
        def read_now() -> T:
            # Also on the thread: while a read waits for its turn, there may come another view.
            self._check(min_version)
            return read(self._current())

        try:
            self._check(min_version)
            view = self._current()
            row = view.user(user_id).row
            if _is_quick(view, row, quick_nodes):
                return read_now()
            return await self._long.run(read_now)
        except WeftError as error:
            return error


def _is_quick(view: GraphView, user_row: int, quick_nodes: int) -> bool:
    """Whether what is a user's own is little: nodes, text and relations."""
    if view.num_memories_of(user_row) + int(view.user_degrees[user_row]) > quick_nodes:
        return False
    memories = view.memories_of(user_row)
    relations = sum(len(view.relations_of(m.row)) for m in memories)
    return relations <= _QUICK_RELATIONS and sum(len(m.text) for m in memories) <= _QUICK_CHARS


def _page(memories: list[Memory], limit: int) -> list[Memory]:
    """The first of them, at most `limit`, at least one if there is one."""
    ends = accumulate(len(memory.text) for memory in memories[:limit])
    return [m for m, end in zip(memories, ends, strict=False) if end <= _PAGE_CHARS] or memories[:1]


def _record(view: GraphView, user_id: str, memory: Memory) -> MemoryRecord:
    relations = (_relation(view, memory, relation) for relation in view.relations_of(memory.row))
    return MemoryRecord(memory, user_id, tuple(r for r in relations if r is not None), view.version)


def _relation(view: GraphView, memory: Memory, relation: Relation) -> RelationRecord | None:
    kind, row = relation.target_kind, relation.target_row
    if kind == "item":
        item = view.item_at(row)
        if item is None:
            return None
        return RelationRecord(memory.memory_id, relation.name, kind, item.item_id, item.title)
    other = view.memory_at(row)
    if other is None:
        return None
    title = one_line(other.text[: 2 * _TITLE_CHARS])[:_TITLE_CHARS]
    return RelationRecord(memory.memory_id, relation.name, kind, other.memory_id, title)
