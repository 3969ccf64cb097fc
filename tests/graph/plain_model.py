"""The graph as plain dicts: what any chain of writes has to come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from graph.errors import WeftError
from graph.node_text import item_text, text_digest
from graph.schema import (
    ChangeSet,
    DeleteApiKey,
    DeleteItem,
    DeleteMemory,
    DeleteRating,
    DeleteRelation,
    DeleteTextVector,
    DeleteUser,
    Item,
    Operation,
    PutApiKey,
    PutItem,
    PutMemory,
    PutPointer,
    PutRating,
    PutRelation,
    PutTextVector,
    PutUser,
    Relation,
    TargetKind,
    TextKind,
    WriteRequest,
    WriteResult,
)
from graph.store import GraphStore
from graph.view import GraphView
from graph.writer import GraphWriter

MemoryFacts: TypeAlias = tuple[str, str, int | None, int | None, str]
"""(user id, text, valid at, invalid at, source)"""
KeyFacts: TypeAlias = tuple[str, str, str, str, int, int | None]
"""(role, user id, digest, label, created at, expires at)"""
RelationIds: TypeAlias = tuple[str, str, TargetKind, str]
"""(memory id, name, kind of the target, id of the target)"""


@dataclass
class PlainModel:
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    items: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    ratings: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)
    memories: dict[str, MemoryFacts] = field(default_factory=dict)
    relations: dict[RelationIds, bool] = field(default_factory=dict)  # a set, in a form that copies
    pointers: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    api_keys: dict[str, KeyFacts] = field(default_factory=dict)
    rows: dict[tuple[TextKind, str], int] = field(default_factory=dict)
    text_vectors: dict[tuple[TextKind, str, str], tuple[str, bytes]] = field(default_factory=dict)
    given: dict[str, int] = field(default_factory=dict, compare=False)  # rows given out, by kind

    def copy(self) -> PlainModel:
        return PlainModel(**{name: dict(value) for name, value in self.__dict__.items()})

    def text_digest(self, kind: TextKind, node_id: str) -> str | None:
        """Digest of a node's text now; None for a node that is not there."""
        if kind == "memory":
            return text_digest(self.memories[node_id][1]) if node_id in self.memories else None
        if node_id not in self.items:
            return None
        return text_digest(item_text(Item(0, node_id, *self.items[node_id], 0)))

    def _create(self, kind: TextKind, node_id: str) -> None:
        if (kind, node_id) not in self.rows:
            self.rows[kind, node_id] = self.given.get(kind, 0)
            self.given[kind] = self.rows[kind, node_id] + 1

    def _forget(self, kind: TextKind, node_id: str) -> None:
        self.rows.pop((kind, node_id), None)
        self.text_vectors = {k: v for k, v in self.text_vectors.items() if k[:2] != (kind, node_id)}
        node = (kind, node_id)
        self.relations = {r: True for r in self.relations if node not in (("memory", r[0]), r[2:])}

    def _owns(self, user_id: str, memory_id: str) -> bool:
        return memory_id in self.memories and self.memories[memory_id][0] == user_id

    def _has_ends(self, operation: PutRelation | DeleteRelation) -> bool:
        """Whether the memory is the user's and may lead to the target."""
        if operation.target_kind == "item":
            reachable = operation.target_id in self.items
        else:
            reachable = self._owns(operation.user_id, operation.target_id)
        return reachable and self._owns(operation.user_id, operation.memory_id)

    def write(self, operations: Sequence[Operation]) -> bool:
        """Do all or nothing; whether they were acceptable."""
        trial = self.copy()
        if not all(trial._write(operation) for operation in operations):
            return False
        self.__dict__.update(trial.__dict__)
        return True

    def _write(self, operation: Operation) -> bool:
        match operation:
            case PutUser(user_id, attributes):
                self.users[user_id] = dict(attributes)
            case PutItem(item_id, title, tags, year, text):
                self.items[item_id] = (title, tuple(dict.fromkeys(tags)), year, text)
                self._create("item", item_id)
            case PutRating(user_id, item_id, value, timestamp):
                if item_id not in self.items:
                    return False
                self.users.setdefault(user_id, {})
                before = self.ratings.get((user_id, item_id))
                known = 0 if before is None else before[1]
                self.ratings[user_id, item_id] = (value, timestamp or known)
            case PutMemory(memory_id, user_id, text, valid_at, invalid_at, source):
                if memory_id in self.memories and not self._owns(user_id, memory_id):
                    return False
                if valid_at is not None and invalid_at is not None and invalid_at <= valid_at:
                    return False
                self.users.setdefault(user_id, {})
                if memory_id in self.memories and self.memories[memory_id][1] != text:
                    for key in [key for key in self.text_vectors if key[:2] == ("memory", memory_id)]:
                        del self.text_vectors[key]
                self.memories[memory_id] = (user_id, text, valid_at, invalid_at, source)
                self._create("memory", memory_id)
            case PutRelation(_, memory_id, name, kind, target_id):
                if not self._has_ends(operation) or (kind, target_id) == ("memory", memory_id):
                    return False
                self.relations[memory_id, name, kind, target_id] = True
            case DeleteRelation(_, memory_id, name, kind, target_id):
                if not self._has_ends(operation):
                    return False
                return self.relations.pop((memory_id, name, kind, target_id), False)
            case PutPointer(scope, name, value):
                self.pointers[scope, name] = dict(value)
            case PutApiKey(key_id, role, digest, created_at, user_id, label, expires_at):
                if key_id in self.api_keys or (role == "user") != bool(user_id):
                    return False
                if user_id:
                    self.users.setdefault(user_id, {})
                self.api_keys[key_id] = (role, user_id, digest, label, created_at, expires_at)
            case DeleteApiKey(key_id):
                return self.api_keys.pop(key_id, None) is not None
            case DeleteUser(user_id):
                self.api_keys = {k: facts for k, facts in self.api_keys.items() if facts[1] != user_id}
                if user_id in self.users:
                    owned = (f"user/{user_id}/v1", user_id)
                    self.pointers = {k: v for k, v in self.pointers.items() if k[1] not in owned}
                self.ratings = {pair: r for pair, r in self.ratings.items() if pair[0] != user_id}
                for memory_id in [m for m, owned in self.memories.items() if owned[0] == user_id]:
                    del self.memories[memory_id]
                    self._forget("memory", memory_id)
                return self.users.pop(user_id, None) is not None
            case DeleteItem(item_id):
                self.ratings = {pair: r for pair, r in self.ratings.items() if pair[1] != item_id}
                self._forget("item", item_id)
                return self.items.pop(item_id, None) is not None
            case DeleteRating(user_id, item_id):
                return self.ratings.pop((user_id, item_id), None) is not None
            case PutTextVector(kind, node_id, model, digest, vector):
                known_lengths = {len(v) for key, (_, v) in self.text_vectors.items() if key[2] == model}
                if known_lengths - {len(vector)}:
                    return False
                if digest == self.text_digest(kind, node_id):
                    self.text_vectors[kind, node_id, model] = (digest, vector)
            case DeleteTextVector(kind, row, model):
                gone = [key for key, found in self.rows.items() if (key[0], found) == (kind, row)]
                for _, node_id in gone:
                    self.text_vectors.pop((kind, node_id, model), None)
            case DeleteMemory(memory_id, owner):
                if not self._owns(owner, memory_id):
                    return False
                self._forget("memory", memory_id)
                return self.memories.pop(memory_id, None) is not None
        return True


def model_of(view: GraphView) -> PlainModel:
    """What a view says, both directions of the ratings checked against each other."""
    user_ids = {u.row: u.user_id for u in view.users()}
    item_ids = {i.row: i.item_id for i in view.items()}
    ratings = {}
    for row, user_id in user_ids.items():
        rated = view.ratings_of(row)
        for item_row, value, timestamp in zip(*(column.tolist() for column in rated), strict=True):
            ratings[user_id, item_ids[item_row]] = (value, timestamp)
    raters = {
        (user_ids[user_row], item_id): value
        for row, item_id in item_ids.items()
        for user_row, value in zip(*(column.tolist() for column in view.raters_of(row)), strict=True)
    }
    assert raters == {pair: value for pair, (value, _) in ratings.items()}
    assert view.num_ratings == len(ratings)
    memories = {
        m.memory_id: (user_ids[m.user_row], m.text, m.valid_at, m.invalid_at, m.source)
        for m in view.memories()
    }
    for row, user_id in user_ids.items():
        own = view.memories_of(row)
        assert {m.memory_id for m in own} == {m for m, facts in memories.items() if facts[0] == user_id}
        assert [m.row for m in own] == sorted(m.row for m in own)
        assert view.num_memories_of(row) == len(own)
    assert sum(view.num_memories_of(row) for row in range(view.num_user_rows)) == len(memories)
    for user_id in user_ids.values():
        assert view.user(user_id).user_id == user_id
    assert (view.num_users, view.num_items) == (len(user_ids), len(item_ids))
    api_keys = {
        k.key_id: (k.role, k.user_id, k.digest, k.label, k.created_at, k.expires_at) for k in view.api_keys()
    }
    for key_id, (_, user_id, *_rest) in api_keys.items():
        key = view.api_key(key_id)
        assert key is not None
        assert key in view.api_keys_of(user_id)
    for user_id in {"", *user_ids.values()}:
        assert {k.key_id for k in view.api_keys_of(user_id)} == {
            key_id for key_id, facts in api_keys.items() if facts[1] == user_id
        }
    for pointer in view.pointers():
        owner = {"adapter.user": pointer.name, "adapter_version": pointer.name.split("/")[-2:][0]}.get(
            pointer.scope
        )
        assert owner is None or pointer in view.pointers_of(owner)
    rows: dict[tuple[TextKind, str], int] = {("item", i.item_id): i.row for i in view.items()}
    rows |= {("memory", m.memory_id): m.row for m in view.memories()}
    return PlainModel(
        {u.user_id: dict(u.attributes) for u in view.users()},
        {i.item_id: (i.title, i.tags, i.year, i.text) for i in view.items()},
        ratings,
        memories,
        _relations(view, rows),
        {(p.scope, p.name): dict(p.value) for p in view.pointers()},
        api_keys,
        rows,
        _text_vectors(view, rows),
    )


def _relations(view: GraphView, rows: dict[tuple[TextKind, str], int]) -> dict[RelationIds, bool]:
    """Every relation by ids, what is found from either end checked against the whole."""
    ids = {(kind, row): node_id for (kind, node_id), row in rows.items()}
    found = {}
    for relation in view.relations():
        name, target = relation.name, (relation.target_kind, relation.target_row)
        found[ids["memory", relation.memory_row], name, target[0], ids[target]] = True
        assert relation in view.relations_of(relation.memory_row)
        assert relation in view.relations_to(*target)
        assert view.relation(relation.memory_row, name, *target) is relation
    assert view.num_relations == len(found)
    for kind, row in ids:
        leading = view.relations_to(kind, row)
        assert list(leading) == sorted(leading, key=lambda r: (r.memory_row, r.name))
        assert all((r.target_kind, r.target_row) == (kind, row) for r in leading)
    assert sum(len(view.relations_to(kind, row)) for kind, row in ids) == len(found)
    leaving = [list(view.relations_of(row)) for kind, row in ids if kind == "memory"]
    assert all(own == sorted(own, key=relation_order) for own in leaving)
    assert sum(map(len, leaving)) == len(found)
    return found


def relation_order(relation: Relation) -> tuple[int, str, str, int]:
    return relation.memory_row, relation.name, relation.target_kind, relation.target_row


def _text_vectors(
    view: GraphView, rows: dict[tuple[TextKind, str], int]
) -> dict[tuple[TextKind, str, str], tuple[str, bytes]]:
    """Every vector by the id of its node, what is asked for at once checked against one at a time."""
    ids = {(kind, row): node_id for (kind, node_id), row in rows.items()}
    kinds: tuple[TextKind, ...] = ("item", "memory")
    found = {}
    for kind, model in [(k, model) for k in kinds for model in view.text_models(k)]:
        table = view.text_vectors(kind, model)
        assert len(table) > 0
        vectors, present = table.get(np.arange(-1, table.rows().max() + 3))
        assert (np.flatnonzero(present) - 1).tolist() == table.rows().tolist()
        assert not vectors[~present].any()
        for row, vector in zip(table.rows().tolist(), vectors[present], strict=True):
            digest, raw = table.digest(row), table.raw(row)
            assert digest is not None
            assert raw is not None
            assert np.array_equal(np.frombuffer(raw, "<f2"), vector)
            found[kind, ids[kind, row], model] = (digest, raw)
    assert view.num_text_vectors == len(found)
    return found


def assert_same_view(view: GraphView, other: GraphView) -> None:
    """Equal to the row and the version, not only in what they say."""
    assert view.version == other.version
    assert list(view.users()) == list(other.users())
    assert list(view.items()) == list(other.items())
    assert sorted(view.memories(), key=lambda m: m.row) == sorted(other.memories(), key=lambda m: m.row)
    assert sorted(view.relations(), key=relation_order) == sorted(other.relations(), key=relation_order)
    assert {(p.scope, p.name): p for p in view.pointers()} == {(p.scope, p.name): p for p in other.pointers()}
    assert list(view.api_keys()) == list(other.api_keys())
    assert model_of(view) == model_of(other)


def read_view(store: GraphStore) -> GraphView:
    """The store's whole state, from version 0."""
    view = GraphView(store.store_id)
    view.apply(ChangeSet.concatenate(list(store.changes_since(0))))
    return view


def open_store(folder: Path) -> GraphStore:
    return GraphStore(folder / "weft.sqlite")


def write(writer: GraphWriter, *operations: Operation) -> WriteResult:
    """One request; raises what it was refused with."""
    (outcome,) = writer.commit([WriteRequest(operations)]).outcomes
    if isinstance(outcome, WeftError):
        raise outcome
    return outcome
