"""The graph in memory: ids <-> rows, node records and both directions of the ratings.

A view is brought forward by `apply(ChangeSet)` alone. It is not thread-safe: whoever owns it serialises
writes against reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from graph.adjacency import Adjacency, Int32, Int64
from graph.delta import Delta, RatingDeltas
from graph.errors import UnknownItem, UnknownUser
from graph.schema import ChangeSet, Item, Memory, Pointer, RatingArray, User

Float32 = npt.NDArray[np.float32]


class UserRatings(NamedTuple):
    """What one user rated, in the order the ratings were first written; views, valid until the next apply."""

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


class GraphView:
    """Users, items, ratings, memories and pointers of one store, at one version.

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
        self._pointers: dict[tuple[str, str], Pointer] = {}
        self._by_user = Adjacency({"value": np.float32, "timestamp": np.uint32})
        self._by_item = Adjacency({"value": np.float32})

    def contents(self) -> ViewContents:
        """Everything in the view, copied. O(nodes + ratings)."""
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
        )

    @classmethod
    def from_contents(cls, contents: ViewContents) -> GraphView:
        """A view that takes over the arrays of `contents`."""
        self = cls(contents.store_id)
        self._reserve_users(contents.user_rows)
        self._reserve_items(contents.item_rows)
        nodes = ChangeSet(
            0, contents.version, contents.users, contents.items, contents.memories, contents.pointers
        )
        self.apply(nodes)
        self._by_user = Adjacency.from_csr(*contents.by_user)
        self._by_item = Adjacency.from_csr(*contents.by_item)
        return self

    def copy(self) -> GraphView:
        """An independent view in the same state. O(nodes + ratings)."""
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
        return iter(self._memories.values())

    def find_memory(self, memory_id: str) -> Memory | None:
        row = self._memory_rows.get(memory_id)
        return None if row is None else self._memories[row]

    def memories_of(self, user_row: int) -> list[Memory]:
        """A user's own memories, oldest first."""
        return [self._memories[row] for row in sorted(self._memories_of.get(user_row, ()))]

    def pointer(self, scope: str, name: str) -> Pointer | None:
        return self._pointers.get((scope, name))

    def pointers(self) -> Iterator[Pointer]:
        return iter(self._pointers.values())

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
        ratings = self._apply_ratings(changes.ratings)
        for memory in changes.memories:
            self._apply_memory(memory)
        # Nodes go last: their ratings' tombstones, applied above, may need the rows.
        users += [self._drop_user(u) for u in changes.users if u.deleted]
        items += [self._drop_item(i) for i in changes.items if i.deleted]
        for pointer in changes.pointers:
            if pointer.deleted:
                self._pointers.pop((pointer.scope, pointer.name), None)
            else:
                self._pointers[pointer.scope, pointer.name] = pointer
        delta = Delta(self.version, changes.to_version, ratings, users, items, changes.pointers)
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
        if memory.deleted:
            self._memories.pop(memory.row, None)
            self._memories_of.get(memory.user_row, set()).discard(memory.row)
            if self._memory_rows.get(memory.memory_id) == memory.row:
                del self._memory_rows[memory.memory_id]
        else:
            self._memories[memory.row] = memory
            self._memory_rows[memory.memory_id] = memory.row
            self._memories_of.setdefault(memory.user_row, set()).add(memory.row)

    def _apply_ratings(self, ratings: RatingArray) -> RatingDeltas:
        if len(ratings) == 1:
            return self._apply_rating(ratings)
        ratings = ratings[np.argsort(ratings["user_row"], kind="stable")]
        old = np.full(len(ratings), np.nan, np.float32)
        if len(ratings):
            # A feed filtered by kind may bring ratings of nodes this view does not hold.
            self._by_user.ensure_rows(int(ratings["user_row"].max()) + 1)
            self._by_item.ensure_rows(int(ratings["item_row"].max()) + 1)
        for row, part in _groups(ratings["user_row"]):
            old[part] = self._apply_to(self._by_user, row, ratings[part], "item_row")
        order = np.argsort(ratings["item_row"], kind="stable")
        by_item = ratings[order]
        for row, part in _groups(by_item["item_row"]):
            self._apply_to(self._by_item, row, by_item[part], "user_row")
        new = np.where(ratings["deleted"], np.float32(np.nan), ratings["value"])
        return RatingDeltas(ratings["user_row"].copy(), ratings["item_row"].copy(), old, new)

    def _apply_rating(self, ratings: RatingArray) -> RatingDeltas:
        """A single record: the common live write, where the arrays' fixed costs would dominate."""
        user_row, item_row, value, timestamp, _, deleted = ratings[0].item()
        self._by_user.ensure_rows(user_row + 1)
        self._by_item.ensure_rows(item_row + 1)
        if deleted:
            before = self._by_user.drop(user_row, item_row)
            self._by_item.drop(item_row, user_row)
        else:
            before = self._by_user.put(user_row, item_row, {"value": value, "timestamp": timestamp})
            self._by_item.put(item_row, user_row, {"value": value})
        return RatingDeltas(
            np.array([user_row]),
            np.array([item_row]),
            np.array([np.nan if before is None else before["value"]], np.float32),
            np.array([np.nan if deleted else value], np.float32),
        )

    @staticmethod
    def _apply_to(side: Adjacency, row: int, ratings: RatingArray, key: str) -> Float32:
        """Apply records that share `row`; returns the values before, NaN where there was no rating."""
        keys = ratings[key].astype(np.int32)
        # Copied: the slice is a view into what is about to change.
        before = np.array(side.column("value", row), np.float32)
        gone = ratings["deleted"]
        places = np.full(len(ratings), -1, np.int64)
        if not gone.all():
            kept = ratings[~gone]
            places[~gone] = side.upsert(
                row, keys[~gone], {"value": kept["value"], "timestamp": kept["timestamp"]}
            )
        if gone.any():
            places[gone] = side.discard(row, keys[gone])
        if len(before) == 0:
            return np.full(len(ratings), np.nan, np.float32)
        return np.where(places >= 0, before[places], np.float32(np.nan)).astype(np.float32)

    def _reserve_users(self, count: int) -> None:
        self._users.extend([None] * (count - len(self._users)))
        self._by_user.ensure_rows(count)

    def _reserve_items(self, count: int) -> None:
        self._items.extend([None] * (count - len(self._items)))
        self._by_item.ensure_rows(count)


def _groups(sorted_rows: Int64) -> Iterator[tuple[int, slice]]:
    """Runs of equal values in a sorted array, as (value, slice)."""
    if len(sorted_rows) == 0:
        return
    bounds = np.flatnonzero(np.diff(sorted_rows)) + 1
    starts = np.concatenate([[0], bounds, [len(sorted_rows)]])
    for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        yield int(sorted_rows[first]), slice(first, last)
