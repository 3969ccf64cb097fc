"""A graph that tests write to the way the store does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from graph.schema import RATING_DTYPE, ChangeSet, Item, Memory, Relation, TargetKind, TextVector, User
from graph.view import GraphView
from models.graph_encoder.encoder import StructuralEncoder
from models.graph_encoder.state import EncoderState

MODEL = "model-a"
"""The text model whose vectors are features."""


class Writer:
    """Gives out rows and versions the way the store does, and keeps the graph as plain dicts."""

    def __init__(self) -> None:
        self.view = GraphView("test")
        self.users: dict[str, User] = {}
        self.items: dict[str, Item] = {}
        self.ratings: dict[tuple[int, int], float] = {}
        self.vectors: dict[tuple[int, str], np.ndarray] = {}
        """By item row and model."""
        self.memories: dict[str, Memory] = {}
        self.relations: dict[tuple[int, str, str, int], Relation] = {}
        """By memory row, name, kind and row of the target."""
        self.memory_vectors: dict[int, np.ndarray] = {}
        """Of `MODEL`, by memory row."""
        self.next_user = self.next_item = self.next_memory = 0
        self._users: list[User] = []
        self._items: list[Item] = []
        self._ratings: dict[tuple[int, int], tuple[float, bool]] = {}
        self._vectors: dict[tuple[int, str], bytes] = {}
        self._memories: dict[int, Memory] = {}
        self._relations: dict[tuple[int, str, str, int], Relation] = {}
        self._memory_vectors: dict[int, bytes] = {}

    @property
    def version(self) -> int:
        return self.view.version + 1

    def put_user(self, user_id: str, **attributes: object) -> User:
        row = self.users[user_id].row if user_id in self.users else self.next_user
        self.next_user = max(self.next_user, row + 1)
        user = User(row, user_id, attributes, self.version)  # type: ignore[arg-type]
        self.users[user_id] = user
        self._users = [u for u in self._users if u.row != row] + [user]
        return user

    def put_item(self, item_id: str, tags: Sequence[str] = (), year: int | None = None) -> Item:
        row = self.items[item_id].row if item_id in self.items else self.next_item
        self.next_item = max(self.next_item, row + 1)
        item = Item(row, item_id, "", tuple(tags), year, "", self.version)
        self.items[item_id] = item
        self._items = [i for i in self._items if i.row != row] + [item]
        return item

    def put_vector(self, item_id: str, vector: np.ndarray, model: str = MODEL) -> None:
        key = self.items[item_id].row, model
        half = vector.astype("<f2")
        self.vectors[key], self._vectors[key] = half.astype(np.float32), half.tobytes()

    def drop_vector(self, key: tuple[int, str]) -> None:
        del self.vectors[key]
        self._vectors[key] = b""

    def rate(self, user_id: str, item_id: str, value: float) -> None:
        user = self.users.get(user_id) or self.put_user(user_id)
        pair = user.row, self.items[item_id].row
        self.ratings[pair] = value
        self._ratings[pair] = value, False

    def delete_rating(self, pair: tuple[int, int]) -> None:
        self._ratings[pair] = self.ratings.pop(pair), True

    def delete_user(self, user_id: str) -> None:
        user = self.users.pop(user_id)
        for pair in [p for p in self.ratings if p[0] == user.row]:
            self.delete_rating(pair)
        for memory in [m for m in self.memories.values() if m.user_row == user.row]:
            self.delete_memory(memory.memory_id)
        gone = User(user.row, user_id, {}, self.version, deleted=True)
        self._users = [u for u in self._users if u.row != user.row] + [gone]

    def delete_item(self, item_id: str) -> None:
        item = self.items.pop(item_id)
        for pair in [p for p in self.ratings if p[1] == item.row]:
            self.delete_rating(pair)
        for key in [k for k in self.vectors if k[0] == item.row]:
            self.drop_vector(key)
        self._drop_relations(lambda r: (r.target_kind, r.target_row) == ("item", item.row))
        gone = Item(item.row, item_id, "", (), None, "", self.version, deleted=True)
        self._items = [i for i in self._items if i.row != item.row] + [gone]

    def put_memory(self, user_id: str, memory_id: str, text: str = "") -> Memory:
        user = self.users.get(user_id) or self.put_user(user_id)
        old = self.memories.get(memory_id)
        row = self.next_memory if old is None else old.row
        self.next_memory = max(self.next_memory, row + 1)
        memory = Memory(row, memory_id, user.row, text, self.version)
        self.memories[memory_id] = self._memories[row] = memory
        return memory

    def delete_memory(self, memory_id: str) -> None:
        memory = self.memories.pop(memory_id)
        self._drop_relations(
            lambda r: r.memory_row == memory.row or (r.target_kind, r.target_row) == ("memory", memory.row)
        )
        if self.memory_vectors.pop(memory.row, None) is not None:
            self._memory_vectors[memory.row] = b""
        self._memories[memory.row] = replace(memory, text="", version=self.version, deleted=True)

    def put_memory_vector(self, memory_id: str, vector: np.ndarray) -> None:
        row, half = self.memories[memory_id].row, vector.astype("<f2")
        self.memory_vectors[row], self._memory_vectors[row] = half.astype(np.float32), half.tobytes()

    def relate(self, memory_id: str, kind: TargetKind, target_id: str, name: str = "about") -> None:
        target = self.items[target_id] if kind == "item" else self.memories[target_id]
        row = self.memories[memory_id].row
        key = row, name, kind, target.row
        self.relations[key] = self._relations[key] = Relation(row, name, kind, target.row, self.version)

    def _drop_relations(self, gone: Callable[[Relation], bool]) -> None:
        for key, relation in [(k, r) for k, r in self.relations.items() if gone(r)]:
            self.delete_relation(key, relation)

    def delete_relation(self, key: tuple[int, str, str, int], relation: Relation) -> None:
        del self.relations[key]
        self._relations[key] = replace(relation, version=self.version, deleted=True)

    def commit(self, *states: EncoderState | StructuralEncoder) -> None:
        """One version with everything written since the last one."""
        rows = [(u, i, value, 0, self.version, gone) for (u, i), (value, gone) in self._ratings.items()]
        changes = ChangeSet(
            self.view.version,
            self.version,
            users=tuple(self._users),
            items=tuple(self._items),
            ratings=np.array(rows, RATING_DTYPE),
            text_vectors=[
                TextVector("item", row, model, "00" * 16 if vector else "", vector, self.version, not vector)
                for (row, model), vector in self._vectors.items()
            ]
            + [
                TextVector(
                    "memory", row, MODEL, "00" * 16 if vector else "", vector, self.version, not vector
                )
                for row, vector in self._memory_vectors.items()
            ],
            memories=list(self._memories.values()),
            relations=list(self._relations.values()),
        )
        self._users, self._items, self._ratings, self._vectors = [], [], {}, {}
        self._memories, self._relations, self._memory_vectors = {}, {}, {}
        delta = self.view.apply(changes)
        for state in states:
            if isinstance(state, StructuralEncoder):
                state.apply(delta)
            else:
                state.apply(delta, self.view)
