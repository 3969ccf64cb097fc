"""The single writer, as plain code: validate, group-commit, apply. The Ray actor is a shim around it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy.exc import SQLAlchemyError

from graph.errors import Fenced, IdempotencyConflict, Unavailable, WeftError
from graph.planning import Plan
from graph.schema import ChangeSet, WriteRequest, WriteResult
from graph.store import GraphStore, Head, IdempotencyRecord, Remembered
from graph.view import GraphView

log = logging.getLogger(__name__)


class ApplyFailed(RuntimeError):
    """The store holds a commit that the view could not apply: only a restart from the store helps."""


@dataclass(frozen=True, slots=True)
class Committed:
    """What became of a group of requests: one outcome per request, in order, and what followers apply."""

    outcomes: tuple[WriteResult | WeftError, ...]
    changes: tuple[ChangeSet, ...]


class GraphWriter:
    """Owns the newest view and is the only one to change the store. Not thread-safe: one caller at a time.

    Creating one fences every writer before it.
    """

    def __init__(self, store: GraphStore, view: GraphView | None = None) -> None:
        """Take the store over and recover: `view` (from a snapshot) or an empty one, brought to the head."""
        self._store = store
        # Fence first: what is read afterwards can no longer be added to by anybody else.
        self._head = store.take_over()
        if view is None or not self._head.horizon <= view.version <= self._head.version:
            # Older than the feed reaches back, or from a future that a restored backup does not have.
            view = GraphView(store.store_id)
        view.apply(ChangeSet.concatenate(list(store.changes_since(view.version))))
        self.view = view

    @property
    def head(self) -> Head:
        return self._head

    def commit(self, requests: Sequence[WriteRequest]) -> Committed:
        """Commit requests together in one transaction, each with a version of its own.

        A request that fails validation fails alone. If the transaction fails, the requests are tried one by
        one. Raises Fenced when another writer took over and ApplyFailed when memory no longer matches disk;
        the writer is of no more use after either.
        """
        try:
            return self._commit(requests)
        except SQLAlchemyError as error:
            if len(requests) == 1:
                log.error("commit failed: %s", error)
                failed = Unavailable("the store could not write; nothing was changed, try again")
                return Committed((failed,), ())
            log.warning("a group of %d writes failed (%s): trying them one by one", len(requests), error)
        singles = [self.commit([request]) for request in requests]
        return Committed(
            tuple(o for s in singles for o in s.outcomes), tuple(c for s in singles for c in s.changes)
        )

    def _commit(self, requests: Sequence[WriteRequest]) -> Committed:
        head = self._head
        known = self._store.remembered([r.idempotency for r in requests if r.idempotency is not None])
        plan = Plan(self.view, head.next_user_row, head.next_item_row, head.next_memory_row)
        version = head.version
        outcomes: list[WriteResult | WeftError] = []
        records: list[IdempotencyRecord] = []
        for request in requests:
            try:
                replay = self._replay(request, known)
                if replay is not None:
                    outcomes.append(replay)
                    continue
                changed = plan.add(request, version + 1)
            except WeftError as error:
                outcomes.append(error)
                continue
            version += changed > 0
            outcomes.append(WriteResult(version, changed))
            key = request.idempotency
            if key is not None and (changed or key.keep_unchanged):
                records.append(IdempotencyRecord(key, version, changed, time.time() + key.ttl_s))
                known[key.scope, key.key] = Remembered(key.digest, version, changed)
        if version == head.version and not records:
            return Committed(tuple(outcomes), ())
        user, item, memory = plan.next_rows
        after = replace(head, version=version, next_user_row=user, next_item_row=item, next_memory_row=memory)
        changes = plan.changes(version)
        self._store.commit(head, changes, records, plan.pointer_writes, after=after)
        # From here on the writes are durable: failing to apply them is not an error of the requests.
        self._head = after
        if version == head.version:
            return Committed(tuple(outcomes), ())
        try:
            self.view.apply(changes)
        except Exception as error:
            raise ApplyFailed(f"version {version} is committed but could not be applied") from error
        return Committed(tuple(outcomes), (changes,))

    def purge(self, upto: int) -> int:
        """Drop tombstones up to a version that a snapshot on disk covers; returns rows dropped."""
        dropped = self._store.purge(self._head.epoch, upto)
        self._head = replace(self._head, horizon=upto)
        return dropped

    @staticmethod
    def _replay(request: WriteRequest, known: dict[tuple[str, str], Remembered]) -> WriteResult | None:
        key = request.idempotency
        found = None if key is None else known.get((key.scope, key.key))
        if key is None or found is None:
            return None
        if found.digest != key.digest:
            raise IdempotencyConflict(
                f"idempotency key {key.key!r} was used with another body; use a new key for a new write",
                param="Idempotency-Key",
            )
        return WriteResult(found.version, found.changed, replayed=True)


__all__ = ["ApplyFailed", "Committed", "Fenced", "GraphWriter"]
