"""Small graphs with memories, written down as plain data and made into views in any order of writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from graph.node_text import text_digest
from graph.schema import (
    RATING_DTYPE,
    ChangeSet,
    Item,
    Memory,
    Relation,
    TargetKind,
    TextKind,
    TextVector,
    User,
)
from graph.view import GraphView

MODEL = "test-model"
NOW = 1_750_000_000


@dataclass(frozen=True)
class Fact:
    memory_id: str
    user_id: str
    text: str
    valid_at: int | None = None
    invalid_at: int | None = None
    vector: Sequence[float] | None = None
    about: Sequence[str] = ()  # item ids
    joined: Sequence[str] = ()  # memory ids


@dataclass
class World:
    """Items by id to (title, tags); ratings as (user, item, value), in the order of writing."""

    items: dict[str, tuple[str, Sequence[str]]] = field(default_factory=dict)
    ratings: list[tuple[str, str, float]] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    item_vectors: dict[str, Sequence[float]] = field(default_factory=dict)
    users: list[str] = field(default_factory=list)

    def view(self) -> GraphView:
        users = list(
            dict.fromkeys([*self.users, *(r[0] for r in self.ratings), *(f.user_id for f in self.facts)])
        )
        user_rows = {user_id: row for row, user_id in enumerate(users)}
        item_rows = {item_id: row for row, item_id in enumerate(self.items)}
        fact_rows = {fact.memory_id: row for row, fact in enumerate(self.facts)}
        latest = {(user, item): value for user, item, value in self.ratings}
        ratings = np.array(
            [(user_rows[u], item_rows[i], value, 0, 1, False) for (u, i), value in latest.items()],
            RATING_DTYPE,
        )
        vectors = [_vector("item", item_rows[i], "", values) for i, values in self.item_vectors.items()]
        vectors += [
            _vector("memory", row, fact.text, fact.vector)
            for row, fact in enumerate(self.facts)
            if fact.vector is not None
        ]
        view = GraphView("world")
        view.apply(
            ChangeSet(
                0,
                1,
                users=[User(row, user_id, {}, 1) for user_id, row in user_rows.items()],
                items=[
                    Item(row, item_id, *_item_fields(self.items[item_id]), None, "", 1)
                    for item_id, row in item_rows.items()
                ],
                memories=[
                    Memory(
                        row,
                        fact.memory_id,
                        user_rows[fact.user_id],
                        fact.text,
                        1 + row,
                        valid_at=fact.valid_at,
                        invalid_at=fact.invalid_at,
                    )
                    for row, fact in enumerate(self.facts)
                ],
                ratings=ratings,
                text_vectors=vectors,
                relations=[
                    relation
                    for row, fact in enumerate(self.facts)
                    for relation in (
                        *_relations(row, "item", [item_rows[i] for i in fact.about]),
                        *_relations(row, "memory", [fact_rows[m] for m in fact.joined]),
                    )
                ],
            )
        )
        return view


def _item_fields(item: tuple[str, Sequence[str]]) -> tuple[str, tuple[str, ...]]:
    return item[0], tuple(item[1])


def _relations(row: int, kind: TargetKind, targets: Sequence[int]) -> list[Relation]:
    return [Relation(row, "about", kind, target, 1) for target in dict.fromkeys(targets)]


def _vector(kind: TextKind, row: int, text: str, values: Sequence[float]) -> TextVector:
    stored = np.asarray(values, "<f2").tobytes()
    return TextVector(kind, row, MODEL, text_digest(text), stored, 1)
