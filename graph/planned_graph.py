"""What the graph will say once planned writes are applied: a view with two layers of planned rows on top."""

from __future__ import annotations

import math

from graph.planned_rows import PlannedRows, RelationKey, relation_key
from graph.schema import (
    ApiKey,
    Item,
    Memory,
    Pointer,
    Relation,
    TargetKind,
    TextKind,
    TextVector,
    User,
    pointer_owner,
)
from graph.view import GraphView

_NO_RATING = (math.nan, 0)
_TEXT_KINDS: tuple[TextKind, ...] = ("item", "memory")


class PlannedGraph:
    """Reads go through `now` (the request being planned), `done` (requests before it) and the view.

    Writes go to `now`, with `version`; `keep` makes them part of `done` and `start` drops them.
    """

    def __init__(self, view: GraphView, next_user: int, next_item: int, next_memory: int) -> None:
        self.view = view
        self.version = view.version
        self.done = PlannedRows(next_user=next_user, next_item=next_item, next_memory=next_memory)
        self.now = self.done
        self.start(view.version)

    def start(self, version: int) -> None:
        """Begin a request that will be `version`, on top of what was kept."""
        done = self.done
        self.version = version
        self.now = PlannedRows(
            next_user=done.next_user, next_item=done.next_item, next_memory=done.next_memory
        )

    def keep(self) -> None:
        self.done.update(self.now)

    # --------------------------------------------------------------------------------------------- nodes

    def user(self, user_id: str) -> User | None:
        for layer in (self.now, self.done):
            if user_id in layer.user_ids:
                return layer.user_ids[user_id]
        return self.view.find_user(user_id)

    def item(self, item_id: str) -> Item | None:
        for layer in (self.now, self.done):
            if item_id in layer.item_ids:
                return layer.item_ids[item_id]
        return self.view.find_item(item_id)

    def memory(self, memory_id: str) -> Memory | None:
        for layer in (self.now, self.done):
            if memory_id in layer.memory_ids:
                return layer.memory_ids[memory_id]
        return self.view.find_memory(memory_id)

    def memories_of(self, user_row: int) -> list[Memory]:
        """A user's memories at this point of the plan, oldest first."""
        found = {m.row: m for m in self.view.memories_of(user_row)}
        for layer in (self.done, self.now):
            found |= {m.row: m for m in layer.memories.values() if m.user_row == user_row}
        return [found[row] for row in sorted(found) if not found[row].deleted]

    def pointer(self, scope: str, name: str) -> Pointer | None:
        for layer in (self.now, self.done):
            found = layer.pointers.get((scope, name))
            if found is not None:
                return None if found.deleted else found
        return self.view.pointer(scope, name)

    def pointers_of(self, user_id: str) -> list[Pointer]:
        """Pointers that belong to a user at this point of the plan."""
        keys = {(p.scope, p.name) for p in self.view.pointers_of(user_id)}
        for layer in (self.done, self.now):
            keys |= {key for key in layer.pointers if pointer_owner(*key) == user_id}
        return [found for key in sorted(keys) if (found := self.pointer(*key)) is not None]

    def api_key(self, key_id: str) -> ApiKey | None:
        """The key of that id, unless it was revoked."""
        for layer in (self.now, self.done):
            found = layer.api_keys.get(key_id)
            if found is not None:
                return None if found.deleted else found
        return self.view.api_key(key_id)

    def api_keys_of(self, user_id: str) -> list[ApiKey]:
        """A user's own keys at this point of the plan."""
        found = {key.key_id: key for key in self.view.api_keys_of(user_id)}
        for layer in (self.done, self.now):
            # A tombstone no longer says whose key it was.
            found |= {k.key_id: k for k in layer.api_keys.values() if k.deleted or k.user_id == user_id}
        return [found[key_id] for key_id in sorted(found) if not found[key_id].deleted]

    # --------------------------------------------------------------------------------------------- edges

    def rating(self, pair: tuple[int, int]) -> tuple[float, int]:
        """Value and time of the rating of (user row, item row); a value of NaN is none."""
        for layer in (self.now, self.done):
            if pair in layer.ratings:
                return layer.ratings[pair][:2]
        user_row, item_row = pair
        if user_row >= self.view.num_user_rows:
            return _NO_RATING
        return self.view.rating(user_row, item_row) or _NO_RATING

    def rated_pairs(self, user_row: int | None = None, item_row: int | None = None) -> list[tuple[int, int]]:
        """Pairs of a user or of an item that are rated at this point of the plan."""
        if user_row is not None and user_row < self.view.num_user_rows:
            found = {(user_row, int(i)) for i in self.view.ratings_of(user_row).item_rows}
        elif item_row is not None and item_row < self.view.num_item_rows:
            found = {(int(u), item_row) for u in self.view.raters_of(item_row).user_rows}
        else:
            found = set()
        for layer in (self.done, self.now):
            found |= {p for p in layer.ratings if user_row in (None, p[0]) and item_row in (None, p[1])}
        return [p for p in sorted(found) if not math.isnan(self.rating(p)[0])]

    def relation(self, key: RelationKey) -> Relation | None:
        """The live relation of that key."""
        for layer in (self.now, self.done):
            found = layer.relations.get(key)
            if found is not None:
                return None if found.deleted else found
        return self.view.relation(*key)

    def relations_at(self, kind: TargetKind, row: int) -> list[Relation]:
        """Live relations that leave or lead to a node."""
        leaving = self.view.relations_of(row) if kind == "memory" else ()
        keys = {relation_key(r) for r in (*leaving, *self.view.relations_to(kind, row))}
        for layer in (self.done, self.now):
            keys |= layer.relations_at.get((kind, row), set())
        return [found for key in sorted(keys) if (found := self.relation(key)) is not None]

    def num_relations_of(self, memory_row: int) -> int:
        """How many live relations leave a memory."""
        planned = sum(layer.relation_counts[memory_row] for layer in (self.done, self.now))
        return len(self.view.relations_of(memory_row)) + planned

    def put_relation(self, relation: Relation) -> None:
        """Add a relation that is not there, or a tombstone of one that is."""
        self.now.put_relation(relation)
        self.now.relation_counts[relation.memory_row] += -1 if relation.deleted else 1

    # -------------------------------------------------------------------------------------- text vectors

    def text_vector(self, kind: TextKind, row: int, model: str) -> tuple[str, bytes] | None:
        """Digest and bytes of a live vector."""
        for layer in (self.now, self.done):
            found = layer.text_vectors.get((kind, row, model))
            if found is not None:
                return None if found.deleted else (found.text_digest, found.vector)
        table = self.view.text_vectors(kind, model)
        digest, vector = table.digest(row), table.raw(row)
        return None if digest is None or vector is None else (digest, vector)

    def text_vector_bytes(self, model: str) -> int | None:
        """Length of the model's live vectors; None when there are none, hence any length will do."""
        tables = [self.view.text_vectors(kind, model) for kind in _TEXT_KINDS]
        planned = self.done.text_counts[model] + self.now.text_counts[model]
        if sum(map(len, tables)) + planned == 0:
            return None
        for layer in (self.now, self.done):
            if model in layer.text_bytes:
                return layer.text_bytes[model]
        return 2 * max(table.dim for table in tables)

    def delete_text_vector(self, kind: TextKind, row: int, model: str) -> None:
        """Remove a vector, if there is one."""
        if self.text_vector(kind, row, model) is None:
            return
        gone = TextVector(kind, row, model, "", b"", self.version, deleted=True)
        self.now.text_vectors[kind, row, model] = gone
        self.now.text_counts[model] -= 1

    def delete_text_vectors(self, kind: TextKind, row: int) -> None:
        """Remove a row's vectors of all models."""
        planned = {model for layer in (self.done, self.now) for model in layer.text_bytes}
        for model in sorted(planned.union(self.view.text_models(kind))):
            self.delete_text_vector(kind, row, model)
