"""From write operations to the rows they change, validated against the view and what was planned before."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from graph.errors import InvalidInput, NotFound, PointerMoved, UnknownItem, UnknownRating, UnknownUser
from graph.node_text import item_text, memory_text, text_digest
from graph.planned_rows import PlannedRows
from graph.schema import (
    MAX_ROWS_PER_WRITE,
    MAX_TEXT_CHARS,
    RATING_DTYPE,
    RATING_HIGH,
    RATING_LOW,
    Attributes,
    ChangeSet,
    DeleteItem,
    DeleteMemory,
    DeleteRating,
    DeleteTextVector,
    DeleteUser,
    Item,
    Memory,
    Operation,
    Pointer,
    PutItem,
    PutMemory,
    PutPointer,
    PutRating,
    PutTextVector,
    PutUser,
    TextKind,
    TextVector,
    User,
    WriteRequest,
)
from graph.validation import check_item, check_text, check_text_vector, checked_attributes, checked_id
from graph.view import GraphView

_NO_RATING = (math.nan, 0)
_MAX_TIMESTAMP = 2**32 - 1
_TEXT_KINDS: tuple[TextKind, ...] = ("item", "memory")


class Plan:
    """Plans requests one after the other; each sees what those before it will have changed.

    Nothing is written: `changes` is what a commit has to write and what the view then applies.
    """

    def __init__(self, view: GraphView, next_user: int, next_item: int, next_memory: int) -> None:
        self._view = view
        self._done = PlannedRows(next_user=next_user, next_item=next_item, next_memory=next_memory)
        self._now = self._fresh()
        self._version = view.version

    @property
    def next_rows(self) -> tuple[int, int, int]:
        """First rows not given out: users, items, memories."""
        return self._done.next_user, self._done.next_item, self._done.next_memory

    def add(self, request: WriteRequest, version: int) -> int:
        """Plan a request as `version`; returns how many rows it changes.

        Text vectors count only where nothing else changes: they follow from what is counted.

        Raises InvalidInput or NotFound; the request then leaves no trace in the plan.
        """
        if len(request.operations) > MAX_ROWS_PER_WRITE:
            raise InvalidInput(
                f"{len(request.operations)} operations in one write; at most {MAX_ROWS_PER_WRITE} fit"
            )
        self._now = self._fresh()
        self._version = version
        for operation in request.operations:
            self._plan(operation)
        changed = len(self._now)
        own = changed - len(self._now.text_vectors)
        self._done.update(self._now)
        return own or changed

    @property
    def pointer_writes(self) -> list[Pointer]:
        """Every value a pointer was given, in order, also those replaced within the plan."""
        return self._done.pointer_writes

    def changes(self, to_version: int) -> ChangeSet:
        """Final states of every row planned so far."""
        done = self._done
        ratings = np.zeros(len(done.ratings), RATING_DTYPE)
        if done.ratings:
            pairs = np.array(list(done.ratings), np.int64)
            states = np.array(list(done.ratings.values()), np.float64)
            ratings["user_row"], ratings["item_row"] = pairs[:, 0], pairs[:, 1]
            ratings["deleted"] = np.isnan(states[:, 0])
            ratings["value"] = np.nan_to_num(states[:, 0])
            ratings["timestamp"], ratings["version"] = states[:, 1], states[:, 2]
        return ChangeSet(
            self._view.version,
            to_version,
            list(done.users.values()),
            list(done.items.values()),
            list(done.memories.values()),
            list(done.pointers.values()),
            ratings,
            list(done.text_vectors.values()),
        )

    def _fresh(self) -> PlannedRows:
        done = self._done
        return PlannedRows(next_user=done.next_user, next_item=done.next_item, next_memory=done.next_memory)

    # ------------------------------------------------------------------------------------------- look-up

    def _user(self, user_id: str) -> User | None:
        for layer in (self._now, self._done):
            if user_id in layer.user_ids:
                return layer.user_ids[user_id]
        return self._view.find_user(user_id)

    def _item(self, item_id: str) -> Item | None:
        for layer in (self._now, self._done):
            if item_id in layer.item_ids:
                return layer.item_ids[item_id]
        return self._view.find_item(item_id)

    def _memory(self, memory_id: str) -> Memory | None:
        for layer in (self._now, self._done):
            if memory_id in layer.memory_ids:
                return layer.memory_ids[memory_id]
        return self._view.find_memory(memory_id)

    def _text_vector(self, kind: TextKind, row: int, model: str) -> tuple[str, bytes] | None:
        """Digest and bytes of a live vector."""
        for layer in (self._now, self._done):
            found = layer.text_vectors.get((kind, row, model))
            if found is not None:
                return None if found.deleted else (found.text_digest, found.vector)
        table = self._view.text_vectors(kind, model)
        digest, vector = table.digest(row), table.raw(row)
        return None if digest is None or vector is None else (digest, vector)

    def _text_vector_bytes(self, model: str) -> int | None:
        """Length of the model's live vectors; None when there are none, hence any length will do."""
        tables = [self._view.text_vectors(kind, model) for kind in _TEXT_KINDS]
        planned = self._done.text_counts[model] + self._now.text_counts[model]
        if sum(map(len, tables)) + planned == 0:
            return None
        for layer in (self._now, self._done):
            if model in layer.text_bytes:
                return layer.text_bytes[model]
        return 2 * max(table.dim for table in tables)

    def _rating(self, pair: tuple[int, int]) -> tuple[float, int]:
        for layer in (self._now, self._done):
            if pair in layer.ratings:
                return layer.ratings[pair][:2]
        user_row, item_row = pair
        if user_row >= self._view.num_user_rows:
            return _NO_RATING
        return self._view.rating(user_row, item_row) or _NO_RATING

    def _pairs(self, user_row: int | None = None, item_row: int | None = None) -> Iterator[tuple[int, int]]:
        """Pairs of a user or of an item that are rated at this point of the plan."""
        if user_row is not None and user_row < self._view.num_user_rows:
            found = {(user_row, int(i)) for i in self._view.ratings_of(user_row).item_rows}
        elif item_row is not None and item_row < self._view.num_item_rows:
            found = {(int(u), item_row) for u in self._view.raters_of(item_row).user_rows}
        else:
            found = set()
        for layer in (self._done, self._now):
            found |= {p for p in layer.ratings if user_row in (None, p[0]) and item_row in (None, p[1])}
        return (p for p in sorted(found) if not math.isnan(self._rating(p)[0]))

    # ---------------------------------------------------------------------------------------- operations

    def _plan(self, operation: Operation) -> None:
        match operation:
            case PutRating():
                self._put_rating(operation)
            case DeleteRating():
                self._delete_rating(operation)
            case PutItem():
                self._put_item(operation)
            case PutUser():
                self._put_user(operation.user_id, checked_attributes(operation.attributes))
            case DeleteItem():
                self._delete_item(operation.item_id)
            case DeleteUser():
                self._delete_user(operation.user_id)
            case PutMemory():
                self._put_memory(operation)
            case DeleteMemory():
                self._delete_memory(operation.memory_id)
            case PutPointer():
                self._check_version(operation)
                pointer = Pointer(operation.scope, operation.name, dict(operation.value), self._version)
                self._now.pointers[operation.scope, operation.name] = pointer
                self._now.pointer_writes.append(pointer)
            case PutTextVector():
                self._put_text_vector(operation)
            case DeleteTextVector():
                self._delete_text_vector(operation.kind, operation.row, operation.model)

    def _check_version(self, operation: PutPointer) -> None:
        if operation.if_version is None:
            return
        key = (operation.scope, operation.name)
        found = self._now.pointers.get(key) or self._done.pointers.get(key) or self._view.pointer(*key)
        version = 0 if found is None else found.version
        if version != operation.if_version:
            raise PointerMoved(
                f"{operation.scope} {operation.name!r} was written by somebody else in the meantime (version "
                f"{version}, expected {operation.if_version}); read it again and repeat the change"
            )

    def _put_rating(self, operation: PutRating) -> None:
        value, timestamp = operation.value, operation.timestamp
        if not RATING_LOW <= value <= RATING_HIGH:  # NaN fails this too
            raise InvalidInput(
                f"rating {value!r} of item {operation.item_id!r}: a rating is a number from {RATING_LOW} to "
                f"{RATING_HIGH}",
                param="value",
            )
        if not 0 <= timestamp <= _MAX_TIMESTAMP:
            raise InvalidInput(
                f"timestamp {timestamp!r}: Unix seconds from 0 to {_MAX_TIMESTAMP}, 0 for unknown",
                param="timestamp",
            )
        item = self._item(operation.item_id)
        if item is None:
            raise UnknownItem(
                f"no item {operation.item_id!r}: create the item before rating it", param="item_id"
            )
        user = self._user(operation.user_id) or self._put_user(operation.user_id, {})
        pair = (user.row, item.row)
        old_value, old_timestamp = self._rating(pair)
        value = float(np.float32(value))  # what the view and the store can hold
        timestamp = timestamp or old_timestamp
        if (value, timestamp) == (old_value, old_timestamp):
            return
        self._now.ratings[pair] = (value, timestamp, self._version)

    def _delete_rating(self, operation: DeleteRating) -> None:
        user, item = self._user(operation.user_id), self._item(operation.item_id)
        if user is None:
            raise UnknownUser(f"no user {operation.user_id!r}", param="user_id")
        if item is None:
            raise UnknownItem(f"no item {operation.item_id!r}", param="item_id")
        pair = (user.row, item.row)
        if math.isnan(self._rating(pair)[0]):
            raise UnknownRating(f"user {operation.user_id!r} has not rated item {operation.item_id!r}")
        self._now.ratings[pair] = (math.nan, 0, self._version)

    def _put_user(self, user_id: str, attributes: Attributes) -> User:
        before = self._user(user_id)
        if before is not None and _same(before.attributes, attributes):
            return before
        if before is None:
            row = self._now.next_user
            self._now.next_user += 1
        else:
            row = before.row
        user = User(row, checked_id(user_id, "user_id"), attributes, self._version)
        self._now.users[row] = self._now.user_ids[user_id] = user
        return user

    def _put_item(self, operation: PutItem) -> None:
        check_item(operation)
        before = self._item(operation.item_id)
        if before is None:
            row = self._now.next_item
            self._now.next_item += 1
        else:
            row = before.row
        tags = tuple(dict.fromkeys(operation.tags))
        item = Item(
            row, operation.item_id, operation.title, tags, operation.year, operation.text, self._version
        )
        if before is not None and replace(item, version=before.version) == before:
            return
        self._now.items[row] = self._now.item_ids[operation.item_id] = item

    def _delete_user(self, user_id: str) -> None:
        user = self._user(user_id)
        if user is None:
            raise UnknownUser(f"no user {user_id!r}", param="user_id")
        for pair in list(self._pairs(user_row=user.row)):
            self._now.ratings[pair] = (math.nan, 0, self._version)
        planned = {m.memory_id for layer in (self._done, self._now) for m in layer.memories.values()}
        for memory_id in planned | {m.memory_id for m in self._view.memories_of(user.row)}:
            memory = self._memory(memory_id)
            if memory is not None and memory.user_row == user.row:
                self._delete_memory(memory_id)
        self._now.users[user.row] = replace(user, version=self._version, attributes={}, deleted=True)
        self._now.user_ids[user_id] = None

    def _delete_item(self, item_id: str) -> None:
        item = self._item(item_id)
        if item is None:
            raise UnknownItem(f"no item {item_id!r}", param="item_id")
        for pair in list(self._pairs(item_row=item.row)):
            self._now.ratings[pair] = (math.nan, 0, self._version)
        self._delete_text_vectors("item", item.row)
        self._now.items[item.row] = replace(item, version=self._version, deleted=True)
        self._now.item_ids[item_id] = None

    def _put_memory(self, operation: PutMemory) -> None:
        checked_id(operation.memory_id, "memory_id")
        if not 0 < len(operation.text) <= MAX_TEXT_CHARS:
            raise InvalidInput(
                f"a memory has 1 to {MAX_TEXT_CHARS} characters, got {len(operation.text)}", param="text"
            )
        check_text(operation.text, "text")
        user = self._user(operation.user_id)
        if user is None:
            raise UnknownUser(f"no user {operation.user_id!r}: create it first", param="user_id")
        before = self._memory(operation.memory_id)
        if before is not None and before.user_row != user.row:
            raise InvalidInput(f"memory {operation.memory_id!r} belongs to another user", param="memory_id")
        if before is not None and before.text == operation.text:
            return
        if before is None:
            row = self._now.next_memory
            self._now.next_memory += 1
        else:
            row = before.row
        memory = Memory(row, operation.memory_id, user.row, operation.text, self._version)
        self._now.memories[row] = self._now.memory_ids[operation.memory_id] = memory

    def _delete_memory(self, memory_id: str) -> None:
        memory = self._memory(memory_id)
        if memory is None:
            raise NotFound(f"no memory {memory_id!r}", param="memory_id")
        self._delete_text_vectors("memory", memory.row)
        # A tombstone says that something was there, not what.
        self._now.memories[memory.row] = replace(memory, text="", version=self._version, deleted=True)
        self._now.memory_ids[memory_id] = None

    def _put_text_vector(self, operation: PutTextVector) -> None:
        check_text_vector(operation)
        model, vector = operation.model, operation.vector
        length = self._text_vector_bytes(model)
        if length is not None and len(vector) != length:
            raise InvalidInput(
                f"a vector of {len(vector) // 2} values under text model {model!r}, whose vectors have "
                f"{length // 2}: use another name for another model",
                param="vector",
            )
        node = self._item(operation.node_id) if operation.kind == "item" else self._memory(operation.node_id)
        if node is None:
            return
        text = item_text(node) if isinstance(node, Item) else memory_text(node)
        if text_digest(text) != operation.text_digest:
            return
        before = self._text_vector(operation.kind, node.row, model)
        if before == (operation.text_digest, vector):
            return
        self._now.text_vectors[operation.kind, node.row, model] = TextVector(
            operation.kind, node.row, model, operation.text_digest, vector, self._version
        )
        self._now.text_counts[model] += before is None
        self._now.text_bytes[model] = len(vector)

    def _delete_text_vector(self, kind: TextKind, row: int, model: str) -> None:
        if self._text_vector(kind, row, model) is None:
            return
        gone = TextVector(kind, row, model, "", b"", self._version, deleted=True)
        self._now.text_vectors[kind, row, model] = gone
        self._now.text_counts[model] -= 1

    def _delete_text_vectors(self, kind: TextKind, row: int) -> None:
        """Remove a row's vectors of all models."""
        planned = {model for layer in (self._done, self._now) for model in layer.text_bytes}
        for model in sorted(planned.union(self._view.text_models(kind))):
            self._delete_text_vector(kind, row, model)


def _same(before: Attributes, after: Attributes) -> bool:
    # Python takes 1, 1.0 and True for equal; an encoder's features do not.
    return json.dumps(before, sort_keys=True) == json.dumps(after, sort_keys=True)
