"""Rows as planned writes will leave them, on top of a view."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TypeAlias

from graph.schema import ApiKey, Item, Memory, Pointer, Relation, TargetKind, TextKind, TextVector, User

RelationKey: TypeAlias = tuple[int, str, TargetKind, int]
"""(memory row, name, kind of the target, row of the target)"""
End: TypeAlias = tuple[TargetKind, int]
"""A node that a relation leaves or leads to."""


@dataclass
class PlannedRows:
    """Rows as they will be, on top of the view. None for an id means: no live node has it."""

    users: dict[int, User] = field(default_factory=dict)
    items: dict[int, Item] = field(default_factory=dict)
    memories: dict[int, Memory] = field(default_factory=dict)
    pointers: dict[tuple[str, str], Pointer] = field(default_factory=dict)
    api_keys: dict[str, ApiKey] = field(default_factory=dict)
    ratings: dict[tuple[int, int], tuple[float, int, int]] = field(
        default_factory=dict
    )  # value, time, version
    relations: dict[RelationKey, Relation] = field(default_factory=dict)
    relations_at: dict[End, set[RelationKey]] = field(default_factory=dict)  # those above, by either end
    relation_counts: Counter[int] = field(default_factory=Counter)  # by memory row: more than before
    text_vectors: dict[tuple[TextKind, int, str], TextVector] = field(default_factory=dict)
    text_counts: Counter[str] = field(default_factory=Counter)  # by model: live vectors more than before
    text_bytes: dict[str, int] = field(default_factory=dict)  # by model: length of a vector
    pointer_writes: list[Pointer] = field(default_factory=list)  # every one: pointers keep their history
    user_ids: dict[str, User | None] = field(default_factory=dict)
    item_ids: dict[str, Item | None] = field(default_factory=dict)
    memory_ids: dict[str, Memory | None] = field(default_factory=dict)
    next_user: int = 0
    next_item: int = 0
    next_memory: int = 0

    def __len__(self) -> int:
        nodes = len(self.users) + len(self.items) + len(self.memories)
        edges = len(self.ratings) + len(self.relations)
        return nodes + edges + len(self.pointers) + len(self.text_vectors) + len(self.api_keys)

    def put_relation(self, relation: Relation) -> None:
        """Set the state of one relation, a tombstone too."""
        key = relation_key(relation)
        self.relations[key] = relation
        for end in (("memory", key[0]), key[2:]):
            self.relations_at.setdefault(end, set()).add(key)

    def update(self, other: PlannedRows) -> None:
        """Take over what was planned on top of this."""
        for name in (
            "users",
            "items",
            "memories",
            "pointers",
            "api_keys",
            "ratings",
            "text_vectors",
            "text_counts",  # a Counter adds
            "relation_counts",
            "text_bytes",
            "user_ids",
            "item_ids",
            "memory_ids",
        ):
            getattr(self, name).update(getattr(other, name))
        for relation in other.relations.values():
            self.put_relation(relation)
        self.pointer_writes += other.pointer_writes
        self.next_user, self.next_item, self.next_memory = other.next_user, other.next_item, other.next_memory


def relation_key(relation: Relation) -> RelationKey:
    return relation.memory_row, relation.name, relation.target_kind, relation.target_row
