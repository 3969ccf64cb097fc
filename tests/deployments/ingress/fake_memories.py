"""The fake backend's memories, relations, graph and context: kept in memory, and a user's own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from deployments.memory_messages import (
    ContextCandidates,
    FittedContext,
    FoundMemory,
    GraphAnswer,
    MemoryPage,
    MemoryQuery,
    MemoryRecord,
    MemorySearchAnswer,
    RelationRecord,
)
from graph.context_lines import LINE_KINDS, ContextLine, because_of, render, said
from graph.errors import Conflict, UnknownMemory, UnknownRelation
from graph.schema import (
    DeleteItem,
    DeleteMemory,
    DeleteRelation,
    DeleteUser,
    Memory,
    PutMemory,
    PutRelation,
    User,
)
from graph.user_graph import GraphEdge, GraphNode, NodeKind, UserGraph

COUNTED_BY = "fake/Language-Model"
NO_TIMINGS = {"embedding": 0.0, "suggestions": 0.0, "selection": 0.0, "fitting": 0.0}
LIKED_FROM = 3.0


@dataclass
class FakeMemories:
    """Reads users, items and ratings of the backend it is a part of.

    `asked_context` records every call for context; `context_fails` is raised by the next ones.
    """

    known_memories: dict[str, Memory] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)  # memory to user
    known_relations: set[tuple[str, str, str, str]] = field(default_factory=set)  # memory, name, kind, id
    asked_context: list[tuple[str, str, int, str | None]] = field(default_factory=list)
    asked_memories: list[MemoryQuery] = field(default_factory=list)
    context_fails: Exception | None = None
    context_misses: tuple[str, ...] = ()

    def _apply_memory(self, operation: object) -> int:
        match operation:
            case PutMemory(memory_id, user_id, text, valid_at, invalid_at, source):
                if self.owners.get(memory_id, user_id) != user_id:
                    raise Conflict(f"the id {memory_id!r} is taken", param="memory_id")
                user = self.known_users.setdefault(user_id, User(0, user_id, {}, self.version + 1))
                memory = Memory(
                    0,
                    memory_id,
                    user.row,
                    text,
                    self.version + 1,
                    valid_at=valid_at,
                    invalid_at=invalid_at,
                    source=source,
                )
                self.known_memories[memory_id], self.owners[memory_id] = memory, user_id
            case DeleteMemory(memory_id, user_id):
                self._memory(user_id, memory_id)
                self._forget(memory_id)
            case PutRelation(user_id, memory_id, name, kind, target):
                self._memory(user_id, memory_id)
                self._item(target) if kind == "item" else self._memory(user_id, target)
                self.known_relations.add((memory_id, name, kind, target))
            case DeleteRelation(user_id, memory_id, name, kind, target):
                self._memory(user_id, memory_id)
                if (memory_id, name, kind, target) not in self.known_relations:
                    raise UnknownRelation(f"memory {memory_id!r} has no such relation")
                self.known_relations.remove((memory_id, name, kind, target))
            case DeleteUser(user_id):
                for memory_id in [m for m, owner in self.owners.items() if owner == user_id]:
                    self._forget(memory_id)
            case DeleteItem(item_id):
                self.known_relations -= {r for r in self.known_relations if r[2:] == ("item", item_id)}
        return 1

    def _forget(self, memory_id: str) -> None:
        del self.known_memories[memory_id], self.owners[memory_id]
        self.known_relations -= {
            r for r in self.known_relations if r[0] == memory_id or r[2:] == ("memory", memory_id)
        }

    def _memory(self, user_id: str | None, memory_id: str) -> Memory:
        if memory_id not in self.owners or user_id not in (None, self.owners[memory_id]):
            raise UnknownMemory(f"user {user_id!r} has no memory {memory_id!r}", param="memory_id")
        return self.known_memories[memory_id]

    def _own(self, user_id: str) -> Iterator[Memory]:
        return (m for m in self.known_memories.values() if self.owners[m.memory_id] == user_id)

    def _record(self, memory: Memory, version: int) -> MemoryRecord:
        relations = tuple(
            RelationRecord(memory_id, name, kind, target, self._label(kind, target))
            for memory_id, name, kind, target in sorted(self.known_relations)
            if memory_id == memory.memory_id
        )
        return MemoryRecord(memory, self.owners[memory.memory_id], relations, version)

    def _label(self, kind: str, node_id: str) -> str:
        return self.known_items[node_id].title if kind == "item" else self.known_memories[node_id].text

    async def memory(self, user_id: str, memory_id: str, min_version: int) -> MemoryRecord:
        version = self._read(min_version, user_id)
        self._user(user_id)
        return self._record(self._memory(user_id, memory_id), version)

    async def memories(self, user_id: str, limit: int, after: str | None, min_version: int) -> MemoryPage:
        version = self._read(min_version, user_id)
        self._user(user_id)
        records = [self._record(memory, version) for memory in self._own(user_id)]
        start = int(after) if after else 0
        end = start + limit
        return MemoryPage(tuple(records[start:end]), str(end) if end < len(records) else None, version)

    async def search_memories(self, query: MemoryQuery) -> MemorySearchAnswer:
        self.asked_memories.append(query)
        version = self._read(query.min_version, query.user_id)
        self._user(query.user_id)
        scored = [
            FoundMemory(self._record(memory, version), _overlap(memory.text, query.text))
            for memory in self._own(query.user_id)
            if not query.valid_only or memory.holds_at(int(time.time()))
        ]
        scored.sort(key=lambda found: -found.score)
        return MemorySearchAnswer(tuple(scored[: query.n]), None, version)

    async def user_graph(self, user_id: str, depth: int, limit: int, min_version: int) -> GraphAnswer:
        version = self._read(min_version, user_id)
        self._user(user_id)
        edges = [*self._edges(user_id)]
        depths: dict[tuple[NodeKind, str], int] = {("user", user_id): 0}
        for level in range(depth):
            for edge in edges:
                if depths.get((edge.source_kind, edge.source_id)) == level:
                    depths.setdefault((edge.target_kind, edge.target_id), level + 1)
        kept = dict(list(depths.items())[:limit])
        nodes = tuple(
            GraphNode(kind, node_id, node_id if kind == "user" else self._label(kind, node_id), level)
            for (kind, node_id), level in kept.items()
        )
        among = tuple(
            edge
            for edge in edges
            if (edge.source_kind, edge.source_id) in kept and (edge.target_kind, edge.target_id) in kept
        )
        return GraphAnswer(user_id, UserGraph(nodes, among, len(kept) == len(depths)), version)

    def _edges(self, user_id: str) -> Iterator[GraphEdge]:
        for (user, item_id), rating in self.known_ratings.items():
            if user == user_id:
                yield GraphEdge("user", user_id, "rated", "item", item_id, rating.value)
        for memory in self._own(user_id):
            yield GraphEdge("user", user_id, "remembers", "memory", memory.memory_id)
        for memory_id, name, kind, target in sorted(self.known_relations):
            if self.owners[memory_id] == user_id:
                yield GraphEdge("memory", memory_id, name, kind, target)

    async def context_lines(
        self, user_id: str, query: str, min_version: int, explain_item: str | None = None
    ) -> ContextCandidates:
        self.asked_context.append((user_id, query, min_version, explain_item))
        version = self._read(min_version, user_id)
        if self.context_fails is not None:
            raise self.context_fails
        self._user(user_id)
        if explain_item is not None:
            self._item(explain_item)
        lines = [*self._lines(user_id, query, explain_item)]
        return ContextCandidates(tuple(lines), version, self.context_misses)

    def _lines(self, user_id: str, query: str, explain_item: str | None) -> Iterator[ContextLine]:
        rated = {item: r.value for (user, item), r in self.known_ratings.items() if user == user_id}
        liked = [item_id for item_id, value in rated.items() if value >= LIKED_FROM]
        titles = [self.known_items[item_id].title for item_id in liked]
        if explain_item is not None:
            text = because_of(self.known_items[explain_item].title, titles)
            yield ContextLine("suggested", "item", explain_item, text, 2.0, "asked for")
        now = int(time.time())
        for memory in sorted(self._own(user_id), key=lambda memory: -_overlap(memory.text, query)):
            if memory.holds_at(now):
                score = _overlap(memory.text, query)
                yield ContextLine("said", "memory", memory.memory_id, said(memory.text), score, "words")
        for item_id, value in rated.items():
            kind = "liked" if item_id in liked else "disliked"
            title = self.known_items[item_id].title
            yield ContextLine(kind, "item", item_id, title, value / 5, f"rated {value}")

    async def fit_context(self, lines: ContextCandidates, max_tokens: int) -> FittedContext:
        self._read(0)
        return fitted(lines, max_tokens)


def fitted(lines: ContextCandidates, max_tokens: int) -> FittedContext:
    """As many lines as fit, in the prompt's order; a token is a word."""
    kept: list[ContextLine] = []
    for line in lines.lines:
        if _tokens([*kept, line]) <= max_tokens:
            kept.append(line)
    kept.sort(key=lambda line: LINE_KINDS.index(line.kind))
    return FittedContext(render(kept), tuple(kept), _tokens(kept), COUNTED_BY, lines.version, lines.missing)


def _tokens(lines: list[ContextLine]) -> int:
    return len(render(lines).split())


def _overlap(text: str, query: str) -> float:
    return float(len(set(text.lower().split()) & set(query.lower().split())))
