"""From write operations to the rows they change, validated against the view and what was planned before."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np

from graph.errors import InvalidInput, PointerMoved, UnknownItem, UnknownRating, UnknownUser
from graph.key_planning import delete_api_key, put_api_key, revoke
from graph.memory_planning import (
    delete_memory,
    delete_relation,
    drop_memory,
    drop_relations,
    put_memory,
    put_relation,
)
from graph.node_text import item_text, memory_text, text_digest
from graph.planned_graph import PlannedGraph
from graph.schema import (
    MAX_ROWS_PER_WRITE,
    RATING_DTYPE,
    RATING_HIGH,
    RATING_LOW,
    Attributes,
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
    Pointer,
    PutApiKey,
    PutItem,
    PutMemory,
    PutPointer,
    PutRating,
    PutRelation,
    PutTextVector,
    PutUser,
    TextVector,
    User,
    WriteRequest,
)
from graph.validation import check_item, check_text_vector, checked_attributes, checked_id
from graph.view import GraphView

_MAX_TIMESTAMP = 2**32 - 1


class Plan:
    """Plans requests one after the other; each sees what those before it will have changed.

    Nothing is written: `changes` is what a commit has to write and what the view then applies.
    """

    def __init__(self, view: GraphView, next_user: int, next_item: int, next_memory: int) -> None:
        self._graph = PlannedGraph(view, next_user, next_item, next_memory)

    @property
    def next_rows(self) -> tuple[int, int, int]:
        """First rows not given out: users, items, memories."""
        done = self._graph.done
        return done.next_user, done.next_item, done.next_memory

    def add(self, request: WriteRequest, version: int) -> int:
        """Plan a request as `version`; returns how many rows it changes.

        Text vectors count only where nothing else changes: they follow from what is counted.

        Raises InvalidInput, NotFound or Conflict; the request then leaves no trace in the plan.
        """
        if len(request.operations) > MAX_ROWS_PER_WRITE:
            raise InvalidInput(
                f"{len(request.operations)} operations in one write; at most {MAX_ROWS_PER_WRITE} fit"
            )
        self._graph.start(version)
        for operation in request.operations:
            self._plan(operation)
        now = self._graph.now
        self._graph.keep()
        return len(now) - len(now.text_vectors) or len(now)

    @property
    def pointer_writes(self) -> list[Pointer]:
        """Every value a pointer was given, in order, also those replaced within the plan."""
        return self._graph.done.pointer_writes

    def changes(self, to_version: int) -> ChangeSet:
        """Final states of every row planned so far."""
        done = self._graph.done
        ratings = np.zeros(len(done.ratings), RATING_DTYPE)
        if done.ratings:
            pairs = np.array(list(done.ratings), np.int64)
            states = np.array(list(done.ratings.values()), np.float64)
            ratings["user_row"], ratings["item_row"] = pairs[:, 0], pairs[:, 1]
            ratings["deleted"] = np.isnan(states[:, 0])
            ratings["value"] = np.nan_to_num(states[:, 0])
            ratings["timestamp"], ratings["version"] = states[:, 1], states[:, 2]
        return ChangeSet(
            self._graph.view.version,
            to_version,
            list(done.users.values()),
            list(done.items.values()),
            list(done.memories.values()),
            list(done.pointers.values()),
            ratings,
            list(done.text_vectors.values()),
            list(done.relations.values()),
            list(done.api_keys.values()),
        )

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
                put_memory(self._graph, operation, lambda user_id: self._put_user(user_id, {}))
            case DeleteMemory():
                delete_memory(self._graph, operation)
            case PutRelation():
                put_relation(self._graph, operation)
            case DeleteRelation():
                delete_relation(self._graph, operation)
            case PutPointer():
                self._check_version(operation)
                pointer = Pointer(operation.scope, operation.name, dict(operation.value), self._graph.version)
                self._graph.now.pointers[operation.scope, operation.name] = pointer
                self._graph.now.pointer_writes.append(pointer)
            case PutTextVector():
                self._put_text_vector(operation)
            case DeleteTextVector():
                self._graph.delete_text_vector(operation.kind, operation.row, operation.model)
            case PutApiKey():
                put_api_key(self._graph, operation, lambda user_id: self._put_user(user_id, {}))
            case DeleteApiKey():
                delete_api_key(self._graph, operation)

    def _check_version(self, operation: PutPointer) -> None:
        if operation.if_version is None:
            return
        found = self._graph.pointer(operation.scope, operation.name)
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
        item = self._graph.item(operation.item_id)
        if item is None:
            raise UnknownItem(
                f"no item {operation.item_id!r}: create the item before rating it", param="item_id"
            )
        user = self._graph.user(operation.user_id) or self._put_user(operation.user_id, {})
        pair = (user.row, item.row)
        old_value, old_timestamp = self._graph.rating(pair)
        value = float(np.float32(value))  # what the view and the store can hold
        timestamp = timestamp or old_timestamp
        if (value, timestamp) == (old_value, old_timestamp):
            return
        self._graph.now.ratings[pair] = (value, timestamp, self._graph.version)

    def _delete_rating(self, operation: DeleteRating) -> None:
        user, item = self._graph.user(operation.user_id), self._graph.item(operation.item_id)
        if user is None:
            raise UnknownUser(f"no user {operation.user_id!r}", param="user_id")
        if item is None:
            raise UnknownItem(f"no item {operation.item_id!r}", param="item_id")
        pair = (user.row, item.row)
        if math.isnan(self._graph.rating(pair)[0]):
            raise UnknownRating(f"user {operation.user_id!r} has not rated item {operation.item_id!r}")
        self._graph.now.ratings[pair] = (math.nan, 0, self._graph.version)

    def _put_user(self, user_id: str, attributes: Attributes) -> User:
        before = self._graph.user(user_id)
        if before is not None and _same(before.attributes, attributes):
            return before
        if before is None:
            row = self._graph.now.next_user
            self._graph.now.next_user += 1
        else:
            row = before.row
        user = User(row, checked_id(user_id, "user_id"), attributes, self._graph.version)
        self._graph.now.users[row] = self._graph.now.user_ids[user_id] = user
        return user

    def _put_item(self, operation: PutItem) -> None:
        check_item(operation)
        before = self._graph.item(operation.item_id)
        if before is None:
            row = self._graph.now.next_item
            self._graph.now.next_item += 1
        else:
            row = before.row
        tags = tuple(dict.fromkeys(operation.tags))
        item = Item(
            row, operation.item_id, operation.title, tags, operation.year, operation.text, self._graph.version
        )
        if before is not None and replace(item, version=before.version) == before:
            return
        self._graph.now.items[row] = self._graph.now.item_ids[operation.item_id] = item

    def _delete_user(self, user_id: str) -> None:
        user = self._graph.user(user_id)
        if user is None:
            raise UnknownUser(f"no user {user_id!r}", param="user_id")
        for pair in self._graph.rated_pairs(user_row=user.row):
            self._graph.now.ratings[pair] = (math.nan, 0, self._graph.version)
        for memory in self._graph.memories_of(user.row):
            drop_memory(self._graph, memory)
        for key in self._graph.api_keys_of(user_id):
            revoke(self._graph, key)
        for pointer in self._graph.pointers_of(user_id):
            gone = replace(pointer, value={}, version=self._graph.version, deleted=True)
            self._graph.now.pointers[pointer.scope, pointer.name] = gone
        self._graph.now.users[user.row] = replace(
            user, version=self._graph.version, attributes={}, deleted=True
        )
        self._graph.now.user_ids[user_id] = None

    def _delete_item(self, item_id: str) -> None:
        item = self._graph.item(item_id)
        if item is None:
            raise UnknownItem(f"no item {item_id!r}", param="item_id")
        for pair in self._graph.rated_pairs(item_row=item.row):
            self._graph.now.ratings[pair] = (math.nan, 0, self._graph.version)
        drop_relations(self._graph, "item", item.row)
        self._graph.delete_text_vectors("item", item.row)
        self._graph.now.items[item.row] = replace(item, version=self._graph.version, deleted=True)
        self._graph.now.item_ids[item_id] = None

    def _put_text_vector(self, operation: PutTextVector) -> None:
        check_text_vector(operation)
        model, vector = operation.model, operation.vector
        length = self._graph.text_vector_bytes(model)
        if length is not None and len(vector) != length:
            raise InvalidInput(
                f"a vector of {len(vector) // 2} values under text model {model!r}, whose vectors have "
                f"{length // 2}: use another name for another model",
                param="vector",
            )
        node = (
            self._graph.item(operation.node_id)
            if operation.kind == "item"
            else self._graph.memory(operation.node_id)
        )
        if node is None:
            return
        text = item_text(node) if isinstance(node, Item) else memory_text(node)
        if text_digest(text) != operation.text_digest:
            return
        before = self._graph.text_vector(operation.kind, node.row, model)
        if before == (operation.text_digest, vector):
            return
        self._graph.now.text_vectors[operation.kind, node.row, model] = TextVector(
            operation.kind, node.row, model, operation.text_digest, vector, self._graph.version
        )
        self._graph.now.text_counts[model] += before is None
        self._graph.now.text_bytes[model] = len(vector)


def _same(before: Attributes, after: Attributes) -> bool:
    # Python takes 1, 1.0 and True for equal; an encoder's features do not.
    return json.dumps(before, sort_keys=True) == json.dumps(after, sort_keys=True)
