"""The graph in memory: ids <-> rows, node records, both directions of ratings and relations, text vectors.

A view is brought forward by `apply(ChangeSet)` alone. It is not thread-safe: whoever owns it serialises
writes against reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from graph.adjacency import Adjacency, Int32, Int64
from graph.delta import Delta
from graph.errors import UnknownItem, UnknownUser
from graph.node_text import DIGEST_BYTES, item_text, memory_text, text_digest
from graph.rating_changes import apply_ratings
from graph.relation_index import RelationIndex
from graph.schema import (
    ApiKey,
    ChangeSet,
    Item,
    Memory,
    Pointer,
    Relation,
    TargetKind,
    TextKind,
    User,
    pointer_owner,
)
from graph.text_vectors import TextVectors, TextVectorTable
from graph.view_contents import ViewContents

Float32 = npt.NDArray[np.float32]


class UserRatings(NamedTuple):
    """What one user rated; views, valid until the next apply.

    The order says nothing: it is that of writing in a view that followed, and another one in a view that was
    built from the store. Whatever depends on an order sorts by what is stored.
    """

    item_rows: Int32  # [d]
    values: Float32  # [d]
    timestamps: npt.NDArray[np.uint32]  # [d] Unix seconds, 0 = unknown


class ItemRatings(NamedTuple):
    """Who rated one item; views, valid until the next apply."""

    user_rows: Int32  # [d]
    values: Float32  # [d]


class Edges(NamedTuple):
    """All ratings, sorted by user row."""

    user_rows: Int64  # [e]
    item_rows: Int32  # [e]
    values: Float32  # [e]


class GraphView:
    """Users, items, ratings, memories, relations, pointers, text vectors and API keys at one version.

    Arrays indexed by row have room for every row ever given out; rows of deleted nodes stay, without edges.
    """

    def __init__(self, store_id: str = "", version: int = 0) -> None:
        self.store_id = store_id
        self.version = version
        self._users: list[User | None] = []
        self._items: list[Item | None] = []
        self._user_rows: dict[str, int] = {}
        self._item_rows: dict[str, int] = {}
        self._memories: dict[int, Memory] = {}
        self._memory_rows: dict[str, int] = {}
        self._memories_of: dict[int, set[int]] = {}
        self._relations = RelationIndex()
        self._pointers: dict[tuple[str, str], Pointer] = {}
        self._pointers_of: dict[str, set[tuple[str, str]]] = {}
        self._api_keys: dict[str, ApiKey] = {}
        self._api_keys_of: dict[str, set[str]] = {}
        self._by_user = Adjacency({"value": np.float32, "timestamp": np.uint32})
        self._by_item = Adjacency({"value": np.float32})
        self._text_vectors = TextVectors()

    def contents(self) -> ViewContents:
        """Everything in the view, copied. O(nodes + edges + text vectors)."""
        return ViewContents(
            self.store_id,
            self.version,
            self.num_user_rows,
            self.num_item_rows,
            list(self.users()),
            list(self.items()),
            list(self.memories()),
            list(self.pointers()),
            self._by_user.csr(),
            self._by_item.csr(),
            self._text_vectors.contents(),
            list(self.relations()),
            list(self.api_keys()),
        )

    @classmethod
    def from_contents(cls, contents: ViewContents) -> GraphView:
        """A view that takes over the arrays of `contents`."""
        self = cls(contents.store_id)
        self._reserve_users(contents.user_rows)
        self._reserve_items(contents.item_rows)
        records = contents.users, contents.items, contents.memories, contents.pointers
        self.apply(
            ChangeSet(
                0,
                contents.version,
                *records,
                relations=contents.relations,
                api_keys=contents.api_keys,
            )
        )
        self._by_user = Adjacency.from_csr(*contents.by_user)
        self._by_item = Adjacency.from_csr(*contents.by_item)
        self._text_vectors = TextVectors(contents.text_vectors)
        return self

    def copy(self) -> GraphView:
        """An independent view in the same state. O(nodes + edges + text vectors)."""
        return GraphView.from_contents(self.contents())

    # --------------------------------------------------------------------------------------------- nodes

    @property
    def num_user_rows(self) -> int:
        """Length of anything indexed by user row (live and deleted rows)."""
        return len(self._users)

    @property
    def num_item_rows(self) -> int:
        return len(self._items)

    @property
    def num_users(self) -> int:
        """Live users."""
        return len(self._user_rows)

    @property
    def num_items(self) -> int:
        return len(self._item_rows)

    @property
    def num_ratings(self) -> int:
        return self._by_user.num_edges

    @property
    def num_memories(self) -> int:
        return len(self._memories)

    def find_user(self, user_id: str) -> User | None:
        row = self._user_rows.get(user_id)
        return None if row is None else self._users[row]

    def find_item(self, item_id: str) -> Item | None:
        row = self._item_rows.get(item_id)
        return None if row is None else self._items[row]

    def user(self, user_id: str) -> User:
        """The live user of that id; raises UnknownUser."""
        found = self.find_user(user_id)
        if found is None:
            raise UnknownUser(
                f"no user {user_id!r}: create it by rating an item or with PUT /v1/users/{{id}}"
            )
        return found

    def item(self, item_id: str) -> Item:
        """The live item of that id; raises UnknownItem."""
        found = self.find_item(item_id)
        if found is None:
            raise UnknownItem(f"no item {item_id!r}: create it first with PUT /v1/items/{{id}}")
        return found

    def user_at(self, row: int) -> User | None:
        """The live user in that row, if any."""
        return self._users[row] if 0 <= row < len(self._users) else None

    def item_at(self, row: int) -> Item | None:
        """The live item in that row, if any."""
        return self._items[row] if 0 <= row < len(self._items) else None

    def users(self) -> Iterator[User]:
        """Live users, by row."""
        return (u for u in self._users if u is not None)

    def items(self) -> Iterator[Item]:
        """Live items, by row."""
        return (i for i in self._items if i is not None)

    def memories(self) -> Iterator[Memory]:
        """Live memories of all users, in no order."""
        return iter(self._memories.values())

    def find_memory(self, memory_id: str) -> Memory | None:
        row = self._memory_rows.get(memory_id)
        return None if row is None else self._memories[row]

    def memory_at(self, row: int) -> Memory | None:
        """The live memory in that row, if any."""
        return self._memories.get(row)

    def memories_of(self, user_row: int) -> list[Memory]:
        """A user's own memories, oldest first."""
        return [self._memories[row] for row in sorted(self._memories_of.get(user_row, ()))]

    def num_memories_of(self, user_row: int) -> int:
        """How many memories a user has. O(1)."""
        return len(self._memories_of.get(user_row, ()))

    @property
    def num_relations(self) -> int:
        return len(self._relations)

    def relations(self) -> Iterator[Relation]:
        """Relations of all users' memories, in no order."""
        return iter(self._relations)

    def relation(self, memory_row: int, name: str, kind: TargetKind, row: int) -> Relation | None:
        """One live relation. O(log d) for d relations of the memory."""
        return self._relations.find(memory_row, name, kind, row)

    def relations_of(self, memory_row: int) -> Sequence[Relation]:
        """Relations that leave a memory, by name, kind and row of the target. O(1)."""
        return self._relations.of(memory_row)

    def relations_to(self, kind: TargetKind, row: int) -> Sequence[Relation]:
        """Relations that lead to a node, by memory row and name; those to an item are of all users' memories.

        O(k log k) for k relations.
        """
        return self._relations.to(kind, row)

    def pointer(self, scope: str, name: str) -> Pointer | None:
        return self._pointers.get((scope, name))

    def pointers(self) -> Iterator[Pointer]:
        return iter(self._pointers.values())

    def pointers_of(self, user_id: str) -> list[Pointer]:
        """Pointers that belong to a user, by scope and name; see `pointer_owner`."""
        return [self._pointers[key] for key in sorted(self._pointers_of.get(user_id, ()))]

    def api_key(self, key_id: str) -> ApiKey | None:
        """The key of that id, unless it was revoked; expired ones are there."""
        return self._api_keys.get(key_id)

    def api_keys(self) -> Iterator[ApiKey]:
        """Keys that were not revoked, by id. O(k log k)."""
        return (self._api_keys[key_id] for key_id in sorted(self._api_keys))

    def api_keys_of(self, user_id: str) -> list[ApiKey]:
        """A user's own keys, in no order."""
        return [self._api_keys[key_id] for key_id in self._api_keys_of.get(user_id, ())]

    # ------------------------------------------------------------------------------------------- ratings

    def ratings_of(self, user_row: int) -> UserRatings:
        """Ratings by a user. O(1)."""
        return UserRatings(
            self._by_user.keys(user_row),
            self._by_user.column("value", user_row),  # type: ignore[arg-type]
            self._by_user.column("timestamp", user_row),  # type: ignore[arg-type]
        )

    def ratings_of_many(self, user_rows: Int64) -> tuple[Int64, Int32, Float32]:
        """Ratings by several users as copies: indptr [n+1], item rows [e], values [e]. O(n + e)."""
        indptr, item_rows, columns = self._by_user.gather(user_rows)
        return indptr, item_rows, columns["value"]  # type: ignore[return-value]

    def raters_of(self, item_row: int) -> ItemRatings:
        """Ratings of an item. O(1)."""
        return ItemRatings(self._by_item.keys(item_row), self._by_item.column("value", item_row))  # type: ignore[arg-type]

    def rating(self, user_row: int, item_row: int) -> tuple[float, int] | None:
        """(value, timestamp) of one rating, or None. O(ratings of the user)."""
        place = self._by_user.position(user_row, item_row)
        if place is None:
            return None
        found = self.ratings_of(user_row)
        return float(found.values[place]), int(found.timestamps[place])

    @property
    def user_degrees(self) -> Int32:
        """Number of ratings by user row, int32 [num_user_rows]; a view."""
        return self._by_user.degrees

    @property
    def item_degrees(self) -> Int32:
        """Number of ratings by item row, int32 [num_item_rows]; a view."""
        return self._by_item.degrees

    def edges(self) -> Edges:
        """All ratings as flat copies. O(ratings)."""
        indptr, keys, columns = self._by_user.csr()
        rows = np.repeat(np.arange(len(indptr) - 1, dtype=np.int64), np.diff(indptr))
        return Edges(rows, keys, columns["value"])  # type: ignore[arg-type]

    @property
    def rating_bytes(self) -> tuple[int, int]:
        """Bytes held for the ratings, (by user, by item), slack and row headers included."""
        return self._by_user.nbytes, self._by_item.nbytes

    # -------------------------------------------------------------------------------------- text vectors

    @property
    def num_text_vectors(self) -> int:
        """Vectors of all kinds and models."""
        return len(self._text_vectors)

    @property
    def text_vector_bytes(self) -> int:
        """Bytes held for text vectors, room for further rows included."""
        return self._text_vectors.nbytes

    def text_vectors(self, kind: TextKind, model: str) -> TextVectorTable:
        """Vectors of the nodes of `kind` under `model`, by row; an empty table of dimension 0 without any.

        Valid until the next apply.
        """
        return self._text_vectors.table(kind, model)

    def text_models(self, kind: TextKind) -> tuple[str, ...]:
        """Models under which at least one node of `kind` has a vector, sorted."""
        return self._text_vectors.models(kind)

    def waiting_texts(self, kind: TextKind, model: str) -> Int64:
        """Rows of live nodes that have no vector under `model`, or one of an older text; ascending.

        O(nodes): it hashes every text.
        """
        texts = (
            [(i.row, item_text(i)) for i in self.items()]
            if kind == "item"
            else [(m.row, memory_text(m)) for m in sorted(self.memories(), key=lambda m: m.row)]
        )
        rows = np.array([row for row, _ in texts], np.int64)
        digests = bytes.fromhex("".join(text_digest(text) for _, text in texts))
        made_from = np.frombuffer(digests, np.uint8).reshape(len(texts), DIGEST_BYTES)
        return rows[self.text_vectors(kind, model).outdated(rows, made_from)]

    # --------------------------------------------------------------------------------------------- apply

    def apply(self, changes: ChangeSet) -> Delta:
        """Bring the view to `changes.to_version`. O(changes * degree of the rows touched).

        `changes.from_version` may lie before the view's own version (final states are idempotent), never
        after it: ValueError.
        """
        if changes.from_version > self.version:
            raise ValueError(f"changes from {changes.from_version} leave a gap after {self.version}")
        users = [self._put_user(u) for u in changes.users if not u.deleted]
        items = [self._put_item(i) for i in changes.items if not i.deleted]
        ratings = apply_ratings(self._by_user, self._by_item, changes.ratings)
        for memory in changes.memories:
            self._apply_memory(memory)
        self._relations.apply(changes.relations)
        # Nodes go last: their ratings' tombstones, applied above, may need the rows.
        users += [self._drop_user(u) for u in changes.users if u.deleted]
        items += [self._drop_item(i) for i in changes.items if i.deleted]
        for pointer in changes.pointers:
            self._apply_pointer(pointer)
        for key in changes.api_keys:
            self._apply_api_key(key)
        self._text_vectors.apply(changes.text_vectors)
        delta = Delta(
            self.version,
            changes.to_version,
            ratings,
            users,
            items,
            changes.pointers,
            changes.text_vectors,
        )
        self.version = max(self.version, changes.to_version)
        return delta

    def _put_user(self, user: User) -> tuple[User | None, User]:
        self._reserve_users(user.row + 1)
        before, self._users[user.row] = self._users[user.row], user
        self._user_rows[user.user_id] = user.row
        return before, user

    def _put_item(self, item: Item) -> tuple[Item | None, Item]:
        self._reserve_items(item.row + 1)
        before, self._items[item.row] = self._items[item.row], item
        self._item_rows[item.item_id] = item.row
        return before, item

    def _drop_user(self, user: User) -> tuple[User | None, User]:
        self._reserve_users(user.row + 1)
        before, self._users[user.row] = self._users[user.row], None
        # The id may already belong to a newer row.
        if self._user_rows.get(user.user_id) == user.row:
            del self._user_rows[user.user_id]
        return before, user

    def _drop_item(self, item: Item) -> tuple[Item | None, Item]:
        self._reserve_items(item.row + 1)
        before, self._items[item.row] = self._items[item.row], None
        if self._item_rows.get(item.item_id) == item.row:
            del self._item_rows[item.item_id]
        return before, item

    def _apply_memory(self, memory: Memory) -> None:
        own = self._memories_of.setdefault(memory.user_row, set())
        if memory.deleted:
            self._memories.pop(memory.row, None)
            own.discard(memory.row)
            if self._memory_rows.get(memory.memory_id) == memory.row:
                del self._memory_rows[memory.memory_id]
        else:
            self._memories[memory.row] = memory
            self._memory_rows[memory.memory_id] = memory.row
            own.add(memory.row)
        if not own:
            del self._memories_of[memory.user_row]

    def _apply_pointer(self, pointer: Pointer) -> None:
        key = (pointer.scope, pointer.name)
        owner = pointer_owner(*key)
        if pointer.deleted:
            self._pointers.pop(key, None)
        else:
            self._pointers[key] = pointer
        if owner is not None:
            own = self._pointers_of.setdefault(owner, set())
            own.discard(key) if pointer.deleted else own.add(key)
            if not own:
                del self._pointers_of[owner]

    def _apply_api_key(self, key: ApiKey) -> None:
        before = self._api_keys.pop(key.key_id, None)
        if before is not None:
            self._api_keys_of[before.user_id].discard(key.key_id)
            if not self._api_keys_of[before.user_id]:
                del self._api_keys_of[before.user_id]
        if not key.deleted:
            self._api_keys[key.key_id] = key
            self._api_keys_of.setdefault(key.user_id, set()).add(key.key_id)

    def _reserve_users(self, count: int) -> None:
        self._users.extend([None] * (count - len(self._users)))
        self._by_user.ensure_rows(count)

    def _reserve_items(self, count: int) -> None:
        self._items.extend([None] * (count - len(self._items)))
        self._by_item.ensure_rows(count)
