"""The Ray actor that owns the graph: the single writer and the head of the change feed.

`GraphState` is an ordinary asyncio class; `deployments.graph_keeper` runs it as a named, detached actor.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from deployments import metrics, request_ids, slow_calls
from deployments.encoder_pointers import ACTIVE, CANDIDATE, digest_of
from deployments.replica_logging import log_to_stderr
from deployments.settings import Settings
from deployments.waiting_writes import WaitingWrites
from deployments.write_metrics import Outcome, count_group, count_writes, measure_rows
from graph.errors import Overloaded, SnapshotRequired, Unavailable, WeftError
from graph.lock import lock_of
from graph.schema import ALL_KINDS, ChangeSet, Kind, Pointer, WriteRequest, WriteResult
from graph.snapshot import (
    newest_snapshot,
    remove_snapshots_after,
    remove_snapshots_before,
    write_snapshot,
)
from graph.store import GraphStore
from graph.writer import ApplyFailed, Committed, Fenced, GraphWriter

log = logging.getLogger(__name__)

LOCK_WAIT_S = 20.0
STORE_WAIT_S = 20.0
_SETTLE_INTERVAL_S = 1.0
FOLLOWER_FORGOTTEN_S = 30.0
_APPLY_TIMEOUT_S = 5.0
_STORE_HANGS_S = 10.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FollowerReport:
    """What a follower says of itself whenever it asks for changes."""

    follower_id: str
    kind: str
    store_id: str
    version: int
    generations: tuple[str, ...] = ()  # digests of the encoders it can answer with
    failed: tuple[str, ...] = ()  # digests of the encoders it tried to load in vain


@dataclass(frozen=True, slots=True)
class Tail:
    """Commits that follow the version asked about, oldest first; `gap` if the ring no longer holds them."""

    store_id: str
    head: int
    commits: tuple[ChangeSet, ...] = ()
    gap: bool = False


class GraphState:
    """Validates, commits in groups, applies, and feeds followers."""

    def __init__(self, settings: Settings, code_version: str = "") -> None:
        """Take the store over and recover.

        Raises StoreLocked while another process holds it, Unavailable while it does not answer.
        """
        log_to_stderr(settings.log)
        self._settings = settings
        self._limits = settings.graph_state
        self.code_version = code_version
        started = time.monotonic()
        # Never past the lock: a stopped predecessor keeps it until the watchdog has killed it.
        self._lock = lock_of(settings.store_url, settings.data_dir, "the running service", settings.url)
        _patiently(lambda: self._lock.acquire(LOCK_WAIT_S))
        try:
            self._store = _patiently(lambda: GraphStore(settings.store_url))
            remove_snapshots_after(settings.snapshot_dir, self._store.head().version)
            view = newest_snapshot(settings.snapshot_dir, self._store.store_id)
            self._writer = GraphWriter(self._store, view)
        except BaseException:
            self._lock.release()
            raise
        self.store_id = self._store.store_id
        self._snapshot_version = self._writer.head.horizon
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="graph-writer")
        self._queue: deque[WaitingWrites] = deque()
        self._queued = 0
        self._draining: asyncio.Task[None] | None = None
        self._snapshotting: asyncio.Task[None] | None = None
        self._settling: asyncio.Task[None] | None = None
        self._ring: deque[ChangeSet] = deque()
        self._ring_rows = 0
        self._moved: asyncio.Event | None = None
        self._head = self._writer.head.version
        self._followers: dict[str, tuple[FollowerReport, float]] = {}
        self._closed = False
        self._commit_began: float | None = None  # of the group that is being committed; monotonic
        self._commits = self._written = 0
        metrics.STORE_UP.set(1)  # it has just been read
        log.info(
            "store %s recovered at version %d in %.2f s: %d users, %d items, %d ratings",
            self.store_id,
            self._head,
            time.monotonic() - started,
            self._writer.view.num_users,
            self._writer.view.num_items,
            self._writer.view.num_ratings,
        )

    # ------------------------------------------------------------------------------------------- writing

    async def write(self, requests: list[WriteRequest], ids: str = "") -> list[Outcome]:
        """One outcome per request, in order; returned when everything acknowledged is durable.

        `ids`: of the HTTP requests that they are for, see `request_ids`.
        """
        refusal: WeftError | None = None
        if self._closed:
            refusal = Unavailable("the service is shutting down; nothing was written")
        elif self._queued + len(requests) > self._limits.max_queued_writes:
            refusal = Overloaded(f"{self._queued} writes are waiting; nothing was written")
        if refusal is not None:
            refused: list[Outcome] = [refusal for _ in requests]
            count_writes(refused)
            return refused
        waiting = WaitingWrites(requests, ids)
        self._queue.append(waiting)
        self._queued += len(requests)
        if self._draining is None or self._draining.done():
            self._draining = asyncio.create_task(self._drain())
        return await waiting.done

    async def _drain(self) -> None:
        while self._queue:
            group = [self._queue.popleft()]
            operations = group[0].num_operations
            while (
                self._queue
                and operations + self._queue[0].num_operations <= self._limits.max_group_operations
            ):
                group.append(self._queue.popleft())
                operations += group[-1].num_operations
            requests = [r for waiting in group for r in waiting.requests]
            self._queued -= len(requests)
            with request_ids.about(request_ids.joined([waiting.ids for waiting in group])):
                committed = await self._commit(requests, group)
            if committed is None:
                continue
            self._publish(committed.changes)
            outcomes = iter(committed.outcomes)
            for waiting in group:
                answer = [next(outcomes) for _ in waiting.requests]
                self._written += sum(isinstance(o, WriteResult) for o in answer)
                if not waiting.done.done():  # the caller may have gone away
                    waiting.done.set_result(answer)
            self._commits += 1
        self._consider_settling()
        self._consider_snapshot()

    async def _commit(self, requests: list[WriteRequest], group: list[WaitingWrites]) -> Committed | None:
        """Commit a group, and measure it; None where its callers were told of a defect instead."""
        started = time.perf_counter()
        metrics.QUEUE.observe(started - group[0].since, "graph_state")
        self._commit_began = time.monotonic()
        try:
            committed: Committed = await self._on_writer_thread(self._writer.commit, requests)
        except (Fenced, ApplyFailed) as error:
            _leave(error)
        except Exception as error:
            # A defect, met before anything was committed: these callers learn of it, the writer lives on.
            log.exception("a group of %d writes could not be planned", len(requests))
            for waiting in group:
                if not waiting.done.done():
                    waiting.done.set_exception(error)
            return None
        finally:
            self._commit_began = None
        took_s = time.perf_counter() - started
        count_group(committed.outcomes, took_s)
        slow_calls.note(log, f"a group of {len(requests)} writes", took_s)
        return committed

    def measure(self) -> None:
        """Set the metrics that are not counted as they happen. Thread-safe."""
        metrics.HEAD_VERSION.set(self._head)
        metrics.WRITER_EPOCH.set(self._writer.head.epoch)
        began = self._commit_began
        if began is not None and time.monotonic() - began > _STORE_HANGS_S:
            metrics.STORE_UP.set(0)  # a database that hangs ends no commit that would say so
        metrics.WAITING.set(self._queued, "graph_state")
        measure_rows(self._writer.view)

    def _consider_settling(self) -> None:
        if self._writer.uncertain and (self._settling is None or self._settling.done()):
            self._settling = asyncio.create_task(self._settle())

    async def _settle(self) -> None:
        """Ask until the store says what became of a commit: whoever reads it is ahead of the tail so far."""
        while self._writer.uncertain and not self._closed:
            await asyncio.sleep(_SETTLE_INTERVAL_S)
            try:
                self._publish(await self._on_writer_thread(self._writer.settle))
            except (Fenced, ApplyFailed) as error:
                _leave(error)
            except (Unavailable, SQLAlchemyError) as error:
                log.warning("a commit is still uncertain: %s", error)

    def _publish(self, changes: tuple[ChangeSet, ...]) -> None:
        for change in changes:
            self._ring.append(change)
            self._ring_rows += len(change)
            self._head = change.to_version
        while self._ring and (
            len(self._ring) > self._limits.ring_versions or self._ring_rows > self._limits.ring_rows
        ):
            self._ring_rows -= len(self._ring.popleft())
        if changes and self._moved is not None:
            self._moved.set()
            self._moved = None

    def _on_writer_thread(self, call: Any, *args: Any) -> asyncio.Future[Any]:
        # In the caller's context, which knows the requests that a line in the log is about.
        return asyncio.get_running_loop().run_in_executor(self._thread, copy_context().run, call, *args)

    # -------------------------------------------------------------------------------------------- feed

    async def tail(
        self, report: FollowerReport, kinds: frozenset[Kind] = ALL_KINDS, timeout_s: float = 10.0
    ) -> Tail:
        """Commits after `report.version`, waiting up to `timeout_s` for one; none if nothing happened.

        `gap` asks the follower to resynchronise: the ring does not reach back, the version lies ahead of the
        head, or it belongs to another store.
        """
        self._followers[report.follower_id] = (report, time.monotonic())
        if report.store_id != self.store_id or report.version > self._head:
            return Tail(self.store_id, self._head, gap=True)
        if report.version == self._head and not await self._reached(self._head + 1, timeout_s):
            return Tail(self.store_id, self._head)
        commits: list[ChangeSet] = []
        for change in reversed(self._ring):
            if change.from_version < report.version:
                break
            commits.append(change)
        if not commits or commits[-1].from_version != report.version:
            return Tail(self.store_id, self._head, gap=True)
        return Tail(self.store_id, self._head, tuple(c.only(kinds) for c in reversed(commits)))

    async def changes_since(
        self, version: int, kinds: frozenset[Kind] = ALL_KINDS
    ) -> AsyncIterator[ChangeSet | SnapshotRequired]:
        """Catch-up pages of one read transaction; see `GraphStore.changes_since`.

        SnapshotRequired is yielded, not raised: an exception would reach the caller wrapped.
        """
        try:
            pages = await asyncio.to_thread(lambda: list(self._store.changes_since(version, kinds)))
        except SnapshotRequired as error:
            yield error
            return
        # The store may hold a commit that is still being applied. Whoever read it here must not be ahead of
        # the tail, which would have him start over.
        await self._reached(pages[-1].to_version)
        for page in pages:
            yield page

    async def _reached(self, version: int, timeout_s: float = _APPLY_TIMEOUT_S) -> bool:
        """Whether the head that followers see has reached `version` in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._head < version:
                    if self._moved is None:
                        self._moved = asyncio.Event()
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    def followers(self) -> list[FollowerReport]:
        """Followers that asked for changes lately."""
        oldest = time.monotonic() - FOLLOWER_FORGOTTEN_S
        self._followers = {k: v for k, v in self._followers.items() if v[1] >= oldest}
        return [report for report, _ in self._followers.values()]

    async def forget(self, follower_id: str) -> None:
        """Drop a follower that shuts down, so that nobody waits for it."""
        self._followers.pop(follower_id, None)

    # --------------------------------------------------------------------------------------- operations

    async def ping(self) -> int:
        """A sign of life: the epoch, which no two incarnations share."""
        return self._writer.head.epoch

    async def status(self) -> dict[str, Any]:
        view, head = self._writer.view, self._writer.head
        return {
            "store_id": self.store_id,
            "store": self._store.location,
            "version": self._head,
            "epoch": head.epoch,
            "horizon": head.horizon,
            "snapshot_version": self._snapshot_version,
            "code_version": self.code_version,
            "closed": self._closed,
            "pid": os.getpid(),
            "users": view.num_users,
            "items": view.num_items,
            "ratings": view.num_ratings,
            "memories": view.num_memories,
            "encoders": {name: digest_of(view, name) for name in (ACTIVE, CANDIDATE)},
            "queued_writes": self._queued,
            "group_commits": self._commits,
            "acknowledged_writes": self._written,
            "followers": [
                {
                    "id": f.follower_id,
                    "kind": f.kind,
                    "version": f.version,
                    "lag_versions": self._head - f.version,
                    "generations": list(f.generations),
                }
                for f in self.followers()
            ],
        }

    async def pointer_history(self, scope: str, name: str) -> list[Pointer]:
        """Every value the pointer ever had, oldest first."""
        return await asyncio.to_thread(self._store.pointer_history, scope, name)

    async def reports(self) -> list[FollowerReport]:
        return self.followers()

    async def snapshot(self) -> int:
        """Write a snapshot of the present state, then drop what it makes superfluous; returns its version."""
        contents = await self._on_writer_thread(lambda: self._writer.view.contents())
        await asyncio.to_thread(write_snapshot, self._settings.snapshot_dir, contents)
        # This order, always: a follower that finds no tombstones must find a snapshot.
        await asyncio.to_thread(remove_snapshots_before, self._settings.snapshot_dir, contents.version)
        dropped = await self._on_writer_thread(self._writer.purge, contents.version)
        self._snapshot_version = contents.version
        log.info("snapshot at version %d; %d rows purged", contents.version, dropped)
        return contents.version

    def _consider_snapshot(self) -> None:
        due = self._head - self._snapshot_version >= self._limits.snapshot_every_versions
        if due and not self._closed and (self._snapshotting is None or self._snapshotting.done()):
            self._snapshotting = asyncio.create_task(self._snapshot_logged())

    async def _snapshot_logged(self) -> None:
        try:
            await self.snapshot()
        except (OSError, SQLAlchemyError, WeftError) as error:
            # The store is complete without it; the next commit tries again.
            log.error("no snapshot could be written: %s", error)

    async def close(self) -> None:
        """Finish the writes that wait, write a snapshot and let go of the store."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._draining is not None:
                await self._draining
            if self._settling is not None:
                await self._settling
            if self._snapshotting is not None:
                await self._snapshotting
            if self._head > self._snapshot_version:
                await self._snapshot_logged()
        finally:
            self._thread.shutdown()
            self._store.close()
            self._lock.release()
        log.info("closed at version %d", self._head)


def _patiently(call: Callable[[], T]) -> T:
    """Repeat while the store does not answer: its server may be starting at the same time."""
    deadline = time.monotonic() + STORE_WAIT_S
    while True:
        try:
            return call()
        except Unavailable as error:
            if time.monotonic() >= deadline:
                raise
            log.warning("waiting for the store: %s", error)
        time.sleep(0.5)


def _leave(error: Exception) -> NoReturn:
    # Memory and disk may differ from here on. Nothing in this process can mend that; a new incarnation
    # recovers from the store, and callers repeat with their idempotency keys.
    log.critical("leaving: %s", error)
    os._exit(1)
