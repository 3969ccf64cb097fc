"""Changes as rows of the store's tables, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from sqlalchemy import Table

from graph import tables
from graph.schema import (
    RATING_DTYPE,
    ApiKey,
    ChangeSet,
    Item,
    Kind,
    Memory,
    Pointer,
    RatingArray,
    Relation,
    TextVector,
    User,
)


def rows_of(changes: ChangeSet) -> Iterator[tuple[Table, list[dict[str, Any]]]]:
    """The rows that every table has afterwards; columns have the names of the records' fields."""
    yield tables.users, [_values(user) for user in changes.users]
    yield tables.items, [_values(item) for item in changes.items]
    yield tables.memories, [_values(memory) for memory in changes.memories]
    yield tables.relations, [_values(relation) for relation in changes.relations]
    yield tables.pointers, [_values(pointer) for pointer in changes.pointers]
    yield tables.ratings, _rating_values(changes.ratings)
    yield tables.text_vectors, [_values(vector) for vector in changes.text_vectors]
    yield tables.api_keys, [_values(key) for key in changes.api_keys]


def _item(row: Any) -> Item:
    row_number, item_id, title, tags, year, text, version, deleted = row
    return Item(row_number, item_id, title, tuple(tags), year, text, version, deleted)


PAGES: tuple[tuple[Kind, Table, Callable[[Sequence[Any]], dict[str, Any]]], ...] = (
    ("user", tables.users, lambda rows: {"users": [User(*r) for r in rows]}),
    ("item", tables.items, lambda rows: {"items": [_item(r) for r in rows]}),
    ("rating", tables.ratings, lambda rows: {"ratings": np.array([tuple(r) for r in rows], RATING_DTYPE)}),
    ("memory", tables.memories, lambda rows: {"memories": [Memory(*r) for r in rows]}),
    ("relation", tables.relations, lambda rows: {"relations": [Relation(*r) for r in rows]}),
    ("text_vector", tables.text_vectors, lambda rows: {"text_vectors": [TextVector(*r) for r in rows]}),
    ("api_key", tables.api_keys, lambda rows: {"api_keys": [ApiKey(*r) for r in rows]}),
)
"""Kinds in the order of the feed, their tables, and rows as fields of a change set; pointers follow."""


def _values(record: User | Item | Memory | Relation | Pointer | TextVector | ApiKey) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _rating_values(ratings: RatingArray) -> list[dict[str, Any]]:
    names = RATING_DTYPE.names or ()
    return [dict(zip(names, record, strict=True)) for record in ratings.tolist()]
