"""A user's graph: what is in it, in which order, and never anything of another user."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.errors import UnknownUser
from graph.schema import RATING_DTYPE, ChangeSet, Item, Memory, Relation, User
from graph.user_graph import MAX_EDGES_PER_NODE, MAX_LABEL_CHARS, GraphEdge, GraphNode, UserGraph, user_graph
from graph.view import GraphView


def make_view(
    memories: list[Memory], relations: list[Relation], ratings: list[tuple[int, int, float, int]]
) -> GraphView:
    view = GraphView("s")
    view.apply(
        ChangeSet(
            0,
            1,
            users=[User(n, f"u{n}", {}, 1) for n in range(3)],
            items=[Item(n, f"i{n}", f"Film {n}", (), None, "", 1) for n in range(6)],
            memories=memories,
            ratings=np.array([(*rating, 1, False) for rating in ratings], RATING_DTYPE),
            relations=relations,
        )
    )
    return view


@pytest.fixture
def view() -> GraphView:
    return make_view(
        [Memory(n, f"m{n}", int(n == 1), f"fact {n}", 1) for n in range(4)],
        [
            Relation(0, "about", "item", 3, 1),
            Relation(0, "about", "item", 5, 1),
            Relation(3, "after", "memory", 0, 1),
            Relation(1, "about", "item", 4, 1),
            Relation(1, "about", "item", 3, 1),
        ],
        [(0, 0, 3.0, 0), (0, 1, 4.0, 50), (0, 2, 2.5, 0), (0, 3, 5.0, 20), (1, 0, 1.0, 7), (2, 5, 1.0, 7)],
    )


def ids(graph: UserGraph) -> list[str]:
    return [node.node_id for node in graph.nodes]


def test_memories_and_ratings_come_by_turns_and_then_what_they_lead_to(view: GraphView) -> None:
    graph = user_graph(view, "u0", depth=2, limit=100)
    assert graph.complete
    assert graph.nodes == (
        GraphNode("user", "u0", "u0", 0),
        GraphNode("memory", "m3", "fact 3", 1),
        GraphNode("item", "i1", "Film 1", 1),
        GraphNode("memory", "m2", "fact 2", 1),
        GraphNode("item", "i3", "Film 3", 1),
        GraphNode("memory", "m0", "fact 0", 1),
        GraphNode("item", "i2", "Film 2", 1),
        GraphNode("item", "i0", "Film 0", 1),
        GraphNode("item", "i5", "Film 5", 2),
    )
    assert graph.edges == (
        GraphEdge("user", "u0", "remembers", "memory", "m3"),
        GraphEdge("user", "u0", "rated", "item", "i1", 4.0),
        GraphEdge("user", "u0", "remembers", "memory", "m2"),
        GraphEdge("user", "u0", "rated", "item", "i3", 5.0),
        GraphEdge("user", "u0", "remembers", "memory", "m0"),
        GraphEdge("user", "u0", "rated", "item", "i2", 2.5),
        GraphEdge("user", "u0", "rated", "item", "i0", 3.0),
        GraphEdge("memory", "m3", "after", "memory", "m0"),
        GraphEdge("memory", "m0", "about", "item", "i3"),
        GraphEdge("memory", "m0", "about", "item", "i5"),
    )


@pytest.mark.parametrize(("depth", "count"), [(0, 1), (1, 8), (2, 9), (3, 9), (9, 9)])
def test_depth(view: GraphView, depth: int, count: int) -> None:
    graph = user_graph(view, "u0", depth, limit=100)
    assert (len(graph.nodes), graph.complete) == (count, True)
    assert max(node.depth for node in graph.nodes) == min(depth, 2)
    # Among the nodes that are there every edge is, whatever the depth.
    assert GraphEdge("memory", "m0", "about", "item", "i3") in graph.edges or depth == 0


@pytest.mark.parametrize("limit", range(1, 11))
def test_a_limit_keeps_what_comes_first(view: GraphView, limit: int) -> None:
    whole, graph = user_graph(view, "u0", 2, 100), user_graph(view, "u0", 2, limit)
    assert graph.nodes == whole.nodes[:limit]
    assert graph.complete is (limit >= 9)
    kept = set(ids(graph))
    assert graph.edges == tuple(e for e in whole.edges if {e.source_id, e.target_id} <= kept)


def test_labels_and_edges_are_bounded() -> None:
    relations = [Relation(0, f"n{n:03}", "item", 0, 1) for n in range(90)]
    view = make_view([Memory(0, "m0", 0, "word " * 99, 1)], relations, [])
    graph = user_graph(view, "u0", depth=2, limit=3)
    assert len(graph.nodes) == 3
    assert len(graph.edges) == 3 * MAX_EDGES_PER_NODE
    assert not graph.complete
    assert len(graph.nodes[1].label) <= MAX_LABEL_CHARS
    assert graph.nodes[1].label.endswith("word\u2026")


def test_a_user_without_anything(view: GraphView) -> None:
    view.apply(ChangeSet(1, 2, users=[User(3, "new", {}, 2)]))
    assert user_graph(view, "new", 2, 10) == UserGraph((GraphNode("user", "new", "new", 0),), (), True)
    with pytest.raises(UnknownUser):
        user_graph(view, "nobody", 2, 10)


@st.composite
def worlds(draw: st.DrawFn) -> GraphView:
    owners = draw(st.lists(st.integers(0, 2), max_size=12))
    rows = {user: [n for n, owner in enumerate(owners) if owner == user] for user in range(3)}
    relations = {}
    for row, owner in enumerate(owners):
        others = [("memory", other) for other in rows[owner] if other != row]
        targets = st.sampled_from([("item", n) for n in range(6)] + others)
        for name, target in draw(st.lists(st.tuples(st.sampled_from("ab"), targets), max_size=3)):
            relations[row, name, target] = Relation(row, name, *target, 1)  # type: ignore[arg-type]
    pairs = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), unique=True, max_size=12))
    return make_view(
        [Memory(n, f"m{n}", owner, f"secret of u{owner}: {n}", 1) for n, owner in enumerate(owners)],
        list(relations.values()),
        [(*pair, 0.5 + pair[0], draw(st.integers(0, 3))) for pair in pairs],
    )


@settings(max_examples=150, deadline=None)
@given(worlds(), st.integers(0, 2), st.integers(0, 4), st.integers(1, 20))
def test_nothing_of_another_user(view: GraphView, row: int, depth: int, limit: int) -> None:
    graph = user_graph(view, f"u{row}", depth, limit)
    own = {m.memory_id for m in view.memories_of(row)}
    related = {r for m in view.memories_of(row) for r in view.relations_of(m.row)}
    rated = dict(zip(*(column.tolist() for column in view.ratings_of(row)[:2]), strict=True))
    items = {f"i{n}" for n in rated} | {f"i{r.target_row}" for r in related if r.target_kind == "item"}
    for node in graph.nodes:
        assert node.node_id in {"user": {f"u{row}"}, "memory": own, "item": items}[node.kind]
        assert "secret" not in node.label or f"secret of u{row}:" in node.label
    edges = {
        ("memory", f"m{r.memory_row}", r.name, r.target_kind, f"{r.target_kind[0]}{r.target_row}", None)
        for r in related
    }
    edges |= {("user", f"u{row}", "remembers", "memory", memory_id, None) for memory_id in own}
    edges |= {("user", f"u{row}", "rated", "item", f"i{n}", value) for n, value in rated.items()}
    kept = {(node.kind, node.node_id) for node in graph.nodes}
    assert len(kept) == len(graph.nodes) <= limit
    found = [(e.source_kind, e.source_id, e.name, e.target_kind, e.target_id, e.value) for e in graph.edges]
    assert len(set(found)) == len(found)
    assert set(found) == {e for e in edges if e[:2] in kept and e[3:5] in kept}
    if graph.complete and depth >= 2:
        assert len(kept) == 1 + len(own) + len(items)
