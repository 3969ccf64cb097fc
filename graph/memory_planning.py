"""Planning writes of memories and their relations, which are private to one user.

A memory of somebody else is refused as one that is not there, so that nobody learns whose it is; only a new
memory under a taken id has to be told that it is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from graph.errors import (
    Conflict,
    InvalidInput,
    UnknownItem,
    UnknownMemory,
    UnknownRelation,
    UnknownUser,
)
from graph.planned_graph import PlannedGraph
from graph.schema import (
    MAX_RELATIONS,
    DeleteMemory,
    DeleteRelation,
    Memory,
    PutMemory,
    PutRelation,
    Relation,
    TargetKind,
    User,
)
from graph.validation import check_memory, check_relation


def put_memory(graph: PlannedGraph, operation: PutMemory, create_user: Callable[[str], User]) -> None:
    check_memory(operation)
    before = graph.memory(operation.memory_id)
    user = graph.user(operation.user_id)
    if before is not None and (user is None or before.user_row != user.row):
        raise Conflict(
            f"the memory id {operation.memory_id!r} is taken: choose another one", param="memory_id"
        )
    if user is None:
        user = create_user(operation.user_id)
    if before is None:
        row = graph.now.next_memory
        graph.now.next_memory += 1
    else:
        row = before.row
    memory = Memory(
        row,
        operation.memory_id,
        user.row,
        operation.text,
        graph.version,
        valid_at=operation.valid_at,
        invalid_at=operation.invalid_at,
        source=operation.source,
    )
    if before is not None and replace(memory, version=before.version) == before:
        return
    if before is not None and before.text != memory.text:
        # It is found by its words until the new text has one.
        graph.delete_text_vectors("memory", row)
    graph.now.memories[row] = graph.now.memory_ids[operation.memory_id] = memory


def delete_memory(graph: PlannedGraph, operation: DeleteMemory) -> None:
    drop_memory(graph, _own(graph, operation.user_id, operation.memory_id, "memory_id"))


def drop_memory(graph: PlannedGraph, memory: Memory) -> None:
    """Remove a memory with its relations, from and to it, and its vectors."""
    drop_relations(graph, "memory", memory.row)
    graph.delete_text_vectors("memory", memory.row)
    # A tombstone says that something was there, not what.
    graph.now.memories[memory.row] = Memory(
        memory.row, memory.memory_id, memory.user_row, "", graph.version, deleted=True
    )
    graph.now.memory_ids[memory.memory_id] = None


def drop_relations(graph: PlannedGraph, kind: TargetKind, row: int) -> None:
    """Remove every relation that leaves or leads to a node."""
    for relation in graph.relations_at(kind, row):
        graph.put_relation(replace(relation, version=graph.version, deleted=True))


def put_relation(graph: PlannedGraph, operation: PutRelation) -> None:
    check_relation(operation)
    relation = _relation(graph, operation)
    if (relation.target_kind, relation.target_row) == ("memory", relation.memory_row):
        raise InvalidInput(
            f"memory {operation.memory_id!r} cannot be related to itself", param="to_memory_id"
        )
    if _stored(graph, relation) is not None:
        return
    if graph.num_relations_of(relation.memory_row) >= MAX_RELATIONS:
        raise InvalidInput(
            f"memory {operation.memory_id!r} has {MAX_RELATIONS:,} relations, and no memory has more",
            param="memory_id",
        )
    graph.put_relation(relation)


def delete_relation(graph: PlannedGraph, operation: DeleteRelation) -> None:
    relation = _relation(graph, operation)
    if _stored(graph, relation) is None:
        raise UnknownRelation(
            f"memory {operation.memory_id!r} has no relation {operation.name!r} to {operation.target_kind} "
            f"{operation.target_id!r}"
        )
    graph.put_relation(replace(relation, deleted=True))


def _relation(graph: PlannedGraph, operation: PutRelation | DeleteRelation) -> Relation:
    """The relation an operation means, as of this version; raises for ends that are not there."""
    memory = _own(graph, operation.user_id, operation.memory_id, "memory_id")
    target: int
    if operation.target_kind == "item":
        item = graph.item(operation.target_id)
        if item is None:
            raise UnknownItem(
                f"no item {operation.target_id!r}: create the item before relating to it", param="item_id"
            )
        target = item.row
    elif operation.target_kind == "memory":
        target = _own(graph, operation.user_id, operation.target_id, "to_memory_id").row
    else:
        raise InvalidInput(f"a memory relates to an item or a memory, not to {operation.target_kind!r}")
    return Relation(memory.row, operation.name, operation.target_kind, target, graph.version)


def _stored(graph: PlannedGraph, relation: Relation) -> Relation | None:
    return graph.relation((relation.memory_row, relation.name, relation.target_kind, relation.target_row))


def _own(graph: PlannedGraph, user_id: str, memory_id: str, param: str) -> Memory:
    """A memory of that user; raises UnknownUser, UnknownMemory."""
    user = graph.user(user_id)
    if user is None:
        raise UnknownUser(f"no user {user_id!r}", param="user_id")
    memory = graph.memory(memory_id)
    if memory is None or memory.user_row != user.row:
        raise UnknownMemory(f"user {user_id!r} has no memory {memory_id!r}", param=param)
    return memory
