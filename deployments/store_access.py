"""How commands reach the store: through the service when one holds it, under the store's lock otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

from deployments.client import WeftClient
from deployments.client_calls import Written
from deployments.client_memories import MemoriesWritten, MemoryInput, RelationInput
from deployments.encoder_pointers import ACTIVE, SCOPE, digest_of
from deployments.service_client import service_client
from deployments.settings import Settings
from graph.errors import Conflict, WeftError
from graph.lock import holder_of, lock_of
from graph.schema import (
    ApiKey,
    ChangeSet,
    Operation,
    PutItem,
    PutMemory,
    PutPointer,
    PutRating,
    PutRelation,
    PutUser,
    WriteRequest,
    WriteResult,
)
from graph.store import GraphStore
from graph.view import GraphView
from graph.writer import GraphWriter

Write = Callable[[WriteRequest], WriteResult]

_BODY_CHARS = 250_000
"""Texts in one request: in JSON a character takes 12 bytes at most, and a body has 4 MiB by default."""


@contextmanager
def open_writer(settings: Settings, command: str) -> Iterator[Write]:
    """A way to write to the store for as long as the context lasts; raises StoreLocked if neither works.

    Over HTTP a write carries operations of one kind, as the importers make them.
    """
    url = service_url(settings)
    if url is not None:
        with service_client(settings, url) as client:
            yield lambda request: _send(client, request)
        return
    with lock_of(settings.store_url, settings.data_dir, f"the command `{command}`"):
        store = GraphStore(settings.store_url)
        try:
            writer = GraphWriter(store)
            yield lambda request: _commit(writer, request)
        finally:
            store.close()


def service_url(settings: Settings) -> str | None:
    """Where the service that holds the store takes requests, or None when no service holds it."""
    holder = holder_of(settings.store_url, settings.data_dir)
    return None if holder is None else holder.get("url")


def read_view(settings: Settings) -> GraphView:
    """The graph as the store has it now; a running service is not disturbed."""
    store = GraphStore(settings.store_url)
    try:
        view = GraphView(store.store_id)
        view.apply(ChangeSet.concatenate(list(store.changes_since(0))))
        return view
    finally:
        store.close()


def item_ids_and_owners(settings: Settings) -> tuple[frozenset[str], dict[str, str]]:
    """Ids of the items in the store, and whose each memory is; a running service is not disturbed."""
    store = GraphStore(settings.store_url)
    try:
        pages = list(store.changes_since(0, frozenset({"user", "item", "memory"})))
    finally:
        store.close()
    users = {user.row: user.user_id for page in pages for user in page.users}
    owners = {memory.memory_id: users[memory.user_row] for page in pages for memory in page.memories}
    return frozenset(item.item_id for page in pages for item in page.items), owners


def read_api_keys(settings: Settings) -> list[ApiKey]:
    """Keys that were not revoked, as the store has them now."""
    store = GraphStore(settings.store_url)
    try:
        pages = list(store.changes_since(0, frozenset({"api_key"})))
    finally:
        store.close()
    return [key for page in pages for key in page.api_keys]


def active_encoder(settings: Settings) -> Path | None:
    """Directory of the encoder that the store names active, if it is there."""
    digest = digest_of(read_view(settings), ACTIVE)
    path = settings.encoder_dir / (digest or "")
    return path if digest and path.is_dir() else None


def activate(settings: Settings, digest: str) -> None:
    """Make an encoder the active one: on every replica of a running service, or for the next start."""
    url = service_url(settings)
    if url is not None:
        with service_client(settings, url, deadline_s=180, timeout_s=180) as client:
            client.activate_encoder(digest)
        return
    with open_writer(settings, "weft encoder activate") as write:
        write(WriteRequest((PutPointer(SCOPE, ACTIVE, {"digest": digest}),)))


def _commit(writer: GraphWriter, request: WriteRequest) -> WriteResult:
    (outcome,) = writer.commit([request]).outcomes
    if isinstance(outcome, WeftError):
        raise outcome
    return outcome


def _send(client: WeftClient, request: WriteRequest) -> WriteResult:
    operations = request.operations
    kinds = {type(operation) for operation in operations}
    if kinds == {PutItem}:
        written = client.put_items(
            {"item_id": o.item_id, "title": o.title, "tags": list(o.tags), "year": o.year, "text": o.text}
            for o in operations
            if isinstance(o, PutItem)
        )
        return _result(written)
    if kinds == {PutRating}:
        written = client.rate_many(
            {"user_id": o.user_id, "item_id": o.item_id, "value": o.value, "timestamp": o.timestamp}
            for o in operations
            if isinstance(o, PutRating)
        )
        return _result(written)
    if kinds == {PutUser}:
        results = [
            _result(client.put_user(o.user_id, o.attributes)) for o in operations if isinstance(o, PutUser)
        ]
        return _together(results)
    if kinds == {PutMemory}:
        return _together(_send_memories(client, operations))
    if kinds == {PutRelation}:
        return _together(_send_relations(client, operations))
    names = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise Conflict(
        f"a running service does not take {names} from a command: stop it and run the command again"
    )


def _send_memories(client: WeftClient, operations: Sequence[Operation]) -> Iterator[WriteResult]:
    for user_id, memories in _by_user(o for o in operations if isinstance(o, PutMemory)):
        rows: list[MemoryInput] = []
        size = 0
        for memory in memories:
            rows.append(
                {
                    "memory_id": memory.memory_id,
                    "text": memory.text,
                    "valid_at": memory.valid_at,
                    "invalid_at": memory.invalid_at,
                    "source": memory.source,
                }
            )
            size += len(memory.text)
            if size >= _BODY_CHARS:
                yield _result(client.put_memories(user_id, rows))
                rows, size = [], 0
        if rows:
            yield _result(client.put_memories(user_id, rows))


def _send_relations(client: WeftClient, operations: Sequence[Operation]) -> Iterator[WriteResult]:
    for user_id, relations in _by_user(o for o in operations if isinstance(o, PutRelation)):
        rows: list[RelationInput] = []
        for relation in relations:
            row: RelationInput = {"memory_id": relation.memory_id, "name": relation.name}
            row["item_id" if relation.target_kind == "item" else "to_memory_id"] = relation.target_id
            rows.append(row)
        yield _result(client.relate_many(user_id, rows))


T = TypeVar("T", PutMemory, PutRelation)


def _by_user(operations: Iterable[T]) -> Iterator[tuple[str, list[T]]]:
    """Runs of operations of one user; the routes take one user's at a time."""
    for user_id, run in groupby(operations, key=attrgetter("user_id")):
        yield user_id, list(run)


def _together(results: Iterable[WriteResult]) -> WriteResult:
    found = list(results)
    return WriteResult(found[-1].version, sum(result.changed for result in found))


def _result(written: Written | MemoriesWritten) -> WriteResult:
    return WriteResult(int(written.version.rpartition(".")[2]), written.changed, written.replayed)
