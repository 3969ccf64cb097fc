"""Nodes of a view by what callers call them."""

from __future__ import annotations

from graph.errors import InvalidInput, NotFound, UnknownMemory
from graph.schema import Item, Memory, User
from graph.view import GraphView


def node_named(view: GraphView, node_id: str, kind: str | None, owner: str | None) -> User | Item | Memory:
    """The one node of that id and kind; without a kind a user or an item, for memories are private."""
    if kind == "memory":
        memory = view.find_memory(node_id)
        if owner is None or memory is None or memory.user_row != view.user(owner).row:
            raise UnknownMemory(f"user {owner!r} has no memory {node_id!r}", param="node_id")
        return memory
    nodes: dict[str, User | Item] = {}
    if kind != "item" and (user := view.find_user(node_id)) is not None:
        nodes["user"] = user
    if kind != "user" and (item := view.find_item(node_id)) is not None:
        nodes["item"] = item
    if len(nodes) > 1:
        raise InvalidInput(
            f"{node_id!r} is the id of several nodes: say which with "
            + " or ".join(f"kind={name}" for name in nodes),
            param="kind",
        )
    if not nodes:
        raise NotFound(f"no {kind or 'user or item'} {node_id!r}", param="node_id")
    return next(iter(nodes.values()))
