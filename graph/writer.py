"""The single writer, as plain code: validate, group-commit, apply. The Ray actor is a shim around it."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy.exc import SQLAlchemyError

from graph.errors import Fenced, IdempotencyConflict, OutcomeUnknown, Unavailable, WeftError
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
        self._uncertain: tuple[Head, ChangeSet] | None = None  # a commit that may have happened
        if view is None or not self._head.horizon <= view.version <= self._head.version:
            # Older than the feed reaches back, or from a future that a restored backup does not have.
            view = GraphView(store.store_id)
        view.apply(ChangeSet.concatenate(list(store.changes_since(view.version))))
        self.view = view

    @property
    def head(self) -> Head:
        return self._head

    @property
    def uncertain(self) -> bool:
        """Whether it is still unknown if the last commit happened; see `settle`."""
        return self._uncertain is not None

    def commit(self, requests: Sequence[WriteRequest]) -> Committed:
        """Commit requests together in one transaction, each with a version of its own.

        A request that fails validation fails alone. If the transaction fails, the requests are tried one by
        one; if the store does not answer, all that have not been committed are Unavailable. Where it broke
        off while it committed, they are OutcomeUnknown, and `uncertain` is set until the store has said what
        became of them; nothing else is written before that.

        Raises Fenced when another writer took over and ApplyFailed when memory no longer matches disk; the
        writer is of no more use after either.
        """
        outcomes: list[WriteResult | WeftError] = []
        changes: list[ChangeSet] = []
        groups = deque([requests])
        try:
            while groups:
                changes += self.settle()
                group = groups.popleft()
                try:
                    committed = self._commit(group)
                except OutcomeUnknown as error:
                    log.error("%s", error)
                    committed = Committed((error,) * len(group), ())
                except SQLAlchemyError as error:
                    if len(group) > 1:
                        log.warning(
                            "a group of %d writes failed (%s): trying them one by one", len(group), error
                        )
                        groups.extend([request] for request in group)
                        continue
                    log.error("commit failed: %s", error)
                    failed = Unavailable("the store could not write; nothing was changed, try again")
                    committed = Committed((failed,), ())
                outcomes += committed.outcomes
                changes += committed.changes
        except (Unavailable, SQLAlchemyError) as error:
            log.error("commit failed: %s", error)
            away = Unavailable("the store does not answer; nothing was changed, try again")
            outcomes += [away] * (len(requests) - len(outcomes))
        return Committed(tuple(outcomes), tuple(changes))

    def settle(self) -> tuple[ChangeSet, ...]:
        """Ask the store what became of a commit whose outcome is unknown, and apply it if it happened.

        Returns what followers then apply. Raises Unavailable while the store does not answer, and Fenced and
        ApplyFailed as `commit` does.
        """
        if self._uncertain is None:
            return ()
        after, changes = self._uncertain
        happened = self._store.committed(self._head, after)
        self._uncertain = None
        log.warning("version %d %s", after.version, "was committed" if happened else "was not committed")
        return self._apply(after, changes) if happened else ()

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
        try:
            self._store.commit(head, changes, records, plan.pointer_writes, after=after)
        except OutcomeUnknown:
            self._uncertain = after, changes
            raise
        return Committed(tuple(outcomes), self._apply(after, changes))

    def _apply(self, after: Head, changes: ChangeSet) -> tuple[ChangeSet, ...]:
        """Take over what is durable; failing to is not an error of the requests."""
        moved = after.version > self._head.version
        self._head = after
        if not moved:
            return ()
        try:
            self.view.apply(changes)
        except Exception as error:
            raise ApplyFailed(f"version {after.version} is committed but could not be applied") from error
        return (changes,)

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
