"""The part of the graph that is a user's own: ratings, memories and what they are related to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Literal, TypeAlias

import numpy as np

from graph.context_lines import shortened
from graph.errors import Corrupt
from graph.view import GraphView

NodeKind: TypeAlias = Literal["user", "item", "memory"]
MAX_LABEL_CHARS = 200
MAX_EDGES_PER_NODE = 20
"""Among `limit` nodes there are at most so many times as many edges."""

_Place: TypeAlias = tuple[NodeKind, int]


@dataclass(frozen=True, slots=True)
class GraphNode:
    """`label` is the title of an item, the beginning of a memory's text, the id of the user."""

    kind: NodeKind
    node_id: str
    label: str
    depth: int  # edges between it and the user


@dataclass(frozen=True, slots=True)
class GraphEdge:
    """`name` is "rated" (with a value), "remembers" (user to memory), or a relation's own."""

    source_kind: NodeKind
    source_id: str
    name: str
    target_kind: NodeKind
    target_id: str
    value: float | None = None


@dataclass(frozen=True, slots=True)
class UserGraph:
    """Nodes by depth, the user first, and the edges among them; `complete` False: a limit left some out."""

    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]
    complete: bool


def user_graph(view: GraphView, user_id: str, depth: int, limit: int) -> UserGraph:
    """Nodes up to `depth` edges from the user, at most `limit`, and the edges of the user's among them.

    One edge away are the user's memories, newest first, and rated items, most recent first, by turns; two
    edges away are the other items that memories are related to. Nothing is further: the user remembers every
    memory at first hand, and no edge that leaves an item is the user's own.

    Nothing of another user is on the way. Raises UnknownUser. O(ratings + memories of the user).
    """
    user = view.user(user_id)
    rated = view.ratings_of(user.row)
    values = dict(zip(rated.item_rows.tolist(), rated.values.tolist(), strict=True))
    depths: dict[_Place, int] = {("user", user.row): 0}
    if depth >= 1:
        recent = np.lexsort((rated.item_rows, rated.timestamps))[::-1]
        memories: list[_Place] = [("memory", memory.row) for memory in reversed(view.memories_of(user.row))]
        items: list[_Place] = [("item", row) for row in rated.item_rows[recent].tolist()]
        depths |= dict.fromkeys(_by_turns(memories, items), 1)
        if depth >= 2:
            for _, row in memories:
                for relation in view.relations_of(row):
                    depths.setdefault((relation.target_kind, relation.target_row), 2)
    kept = {place: _node(view, place, at) for place, at in islice(depths.items(), limit)}
    edges = list(islice(_edges(view, kept, values), MAX_EDGES_PER_NODE * limit + 1))
    complete = len(kept) == len(depths) and len(edges) <= MAX_EDGES_PER_NODE * limit
    return UserGraph(tuple(kept.values()), tuple(edges[: MAX_EDGES_PER_NODE * limit]), complete)


def _by_turns(first: Sequence[_Place], second: Sequence[_Place]) -> Iterator[_Place]:
    """One of each as long as both last, so that a limit cuts neither off."""
    pairs = zip_longest(first, second)
    return (place for pair in pairs for place in pair if place is not None)


def _node(view: GraphView, place: _Place, depth: int) -> GraphNode:
    kind, row = place
    if kind == "user" and (user := view.user_at(row)) is not None:
        return GraphNode(kind, user.user_id, user.user_id, depth)
    if kind == "item" and (item := view.item_at(row)) is not None:
        return GraphNode(kind, item.item_id, item.title, depth)
    if kind == "memory" and (memory := view.memory_at(row)) is not None:
        return GraphNode(kind, memory.memory_id, shortened(memory.text, MAX_LABEL_CHARS), depth)
    raise Corrupt(f"an edge of the graph leads to {kind} row {row}, which is not there")


def _edges(view: GraphView, kept: dict[_Place, GraphNode], values: dict[int, float]) -> Iterator[GraphEdge]:
    """What the user remembers and rated, in the order of nodes, then relations in the order of memories."""
    (_, user), *others = kept.items()
    for (kind, row), node in others:
        if kind == "memory":
            yield GraphEdge("user", user.node_id, "remembers", kind, node.node_id)
        elif row in values:
            yield GraphEdge("user", user.node_id, "rated", kind, node.node_id, values[row])
    for (kind, row), node in others:
        for relation in view.relations_of(row) if kind == "memory" else ():
            target = kept.get((relation.target_kind, relation.target_row))
            if target is not None:
                yield GraphEdge(kind, node.node_id, relation.name, target.kind, target.node_id)
