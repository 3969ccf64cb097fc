"""A view as plain data, for snapshots and copies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graph.adjacency import Int32, Int64
from graph.schema import ApiKey, Item, Memory, Pointer, Relation, User
from graph.text_vectors import TextVectorArrays

Side: TypeAlias = tuple[Int64, Int32, dict[str, npt.NDArray[np.generic]]]
"""One direction of the ratings in CSR form: indptr [rows + 1], keys [edges], columns [edges]."""


@dataclass(frozen=True, slots=True, eq=False)
class ViewContents:
    """A whole view as plain data that shares nothing with it."""

    store_id: str
    version: int
    user_rows: int
    item_rows: int
    users: list[User]
    items: list[Item]
    memories: list[Memory]
    pointers: list[Pointer]
    by_user: Side
    by_item: Side
    text_vectors: list[TextVectorArrays] = field(default_factory=list)
    relations: list[Relation] = field(default_factory=list)
    api_keys: list[ApiKey] = field(default_factory=list)
