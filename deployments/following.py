"""Keeps a replica's local view level with the change feed."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from pathlib import Path
from typing import Protocol

from deployments import metrics
from deployments.graph_client import GraphStateClient
from deployments.graph_state import FollowerReport
from graph.errors import SnapshotRequired, Unavailable
from graph.schema import ALL_KINDS, ChangeSet, Kind
from graph.snapshot import newest_snapshot
from graph.view import GraphView

log = logging.getLogger(__name__)

_RETRY_S = 0.05
# Also how soon the keeper learns of a generation that was loaded while nothing was written.
_TAIL_TIMEOUT_S = 1.0
_SILENCE_S = 3.0
"""Without a word from the graph state for so long, a replica no longer knows whether it is level."""


class Replica(Protocol):
    """What follows: it owns the view it is given and everything derived from it."""

    async def load(self, view: GraphView) -> None:
        """Start over from `view`, which is complete."""
        ...

    async def apply(self, changes: ChangeSet) -> None:
        """Bring view and derived state to `changes.to_version`; called in order, never concurrently."""
        ...

    def generations(self) -> tuple[str, ...]:
        """Digests of the encoders this replica can answer with."""
        ...

    def failed(self) -> tuple[str, ...]:
        """Digests of the encoders it was asked to load and could not."""
        ...


class Follower:
    """Loads a replica, then applies every commit to it, through restarts of the writer."""

    def __init__(
        self,
        kind: str,
        replica: Replica,
        source: GraphStateClient,
        snapshot_dir: Path,
        kinds: frozenset[Kind] = ALL_KINDS,
        tail_timeout_s: float = _TAIL_TIMEOUT_S,
    ) -> None:
        """`tail_timeout_s`: how often, at least, it makes sure that it is level with the feed."""
        self.follower_id = f"{kind}-{uuid.uuid4().hex[:8]}"
        self.store_id = ""
        self.version = -1  # nothing loaded
        self.connected = False
        self._kind = kind
        self._replica = replica
        self._source = source
        self._snapshot_dir = snapshot_dir
        self._kinds = kinds
        self._tail_timeout_s = tail_timeout_s
        self._begun_at = time.monotonic()
        self._level_at = -math.inf  # when it last had everything that had been written; see `lag_s`
        self._level = False  # with the head that was last heard of
        self._levelled = asyncio.Event()
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the replica, waiting for the graph state if need be, and follow from then on."""
        await self._load()
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            await asyncio.wait_for(self._source.forget(self.follower_id), 1.0)
        except (Unavailable, TimeoutError) as error:
            log.info("%s could not take its leave: %s", self.follower_id, error)

    @property
    def alive(self) -> bool:
        """False once following has failed for good, which only a defect brings about."""
        return self._task is not None and not self._task.done()

    @property
    def seconds_behind(self) -> float:
        """Since the replica was last level with the head; 0 while it is, as far as it knows."""
        if self._level and self.lag_s < _SILENCE_S:
            return 0.0
        return min(self.lag_s, time.monotonic() - self._begun_at)

    def measure(self) -> None:
        """Set the metrics of whoever follows. Thread-safe."""
        metrics.REPLICA_VERSION.set(self.version)
        metrics.FEED_LAG.set(self.seconds_behind)

    async def wait_for(self, version: int, timeout_s: float) -> bool:
        """Whether the replica has reached `version` within `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.version < version:
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    @property
    def lag_s(self) -> float:
        """Seconds since the replica was last known to hold everything that had been written; at most that."""
        return time.monotonic() - self._level_at

    async def level(self, max_lag_s: float, timeout_s: float) -> bool:
        """Whether the replica is at most `max_lag_s` behind, be it only after a wait of up to `timeout_s`."""
        if self.lag_s <= max_lag_s:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                while self.lag_s > max_lag_s:
                    await self._levelled.wait()
        except TimeoutError:
            return False
        return True

    # ----------------------------------------------------------------------------------------- internals

    async def _follow(self) -> None:
        while True:
            report = self._report()
            asked_at = time.monotonic()
            try:
                tail = await self._source.tail(report, self._kinds, self._tail_timeout_s)
            except Unavailable as error:
                if self.connected:
                    log.warning("%s at version %d: %s", self.follower_id, self.version, error.message)
                self.connected = False
                await asyncio.sleep(_RETRY_S)
                continue
            if not self.connected:
                log.info("%s follows store %s from version %d", self.follower_id, self.store_id, self.version)
            self.connected = True
            self._level = not tail.gap and self.version >= tail.head
            if tail.gap:
                await self._resynchronise(tail.store_id, tail.head)
                continue
            for changes in tail.commits:
                # Calls to an actor may overtake each other: versions decide, not arrival.
                if changes.from_version != self.version:
                    break
                await self._replica.apply(changes)
                self._publish(changes.to_version)
            self._level = self.version >= tail.head
            if self._level:
                # Whatever was committed before the question is in the answer.
                self._level_at = asked_at
                levelled, self._levelled = self._levelled, asyncio.Event()
                levelled.set()

    async def _resynchronise(self, store_id: str, head: int) -> None:
        log.info("%s at version %d resynchronises to %d", self.follower_id, self.version, head)
        if store_id == self.store_id and self.version <= head:
            try:
                changes = await self._catch_up(self.version)
            except Unavailable as error:
                log.warning("%s cannot catch up yet: %s", self.follower_id, error.message)
                await asyncio.sleep(_RETRY_S)
                return
            if changes is not None:
                await self._replica.apply(changes)
                self._publish(changes.to_version)
                return
        await self._load()

    async def _catch_up(self, version: int) -> ChangeSet | None:
        """All changes since `version`, or None if only a snapshot reaches the head.

        As one change set: a page in the middle is no state the graph ever had.
        """
        pages: list[ChangeSet] = []
        async for page in self._source.changes_since(version, self._kinds):
            if isinstance(page, SnapshotRequired):
                return None
            pages.append(page)
        return ChangeSet.concatenate(pages)

    async def _load(self) -> None:
        told = ""
        while True:
            try:
                view = await self._fresh_view()
                break
            except Unavailable as error:
                if error.message != told:
                    log.info("%s waits: %s", self.follower_id, error.message)
                told = error.message
                await asyncio.sleep(_RETRY_S)
        await self._replica.load(view)
        self.store_id = view.store_id
        self.version = -1
        self._publish(view.version)

    async def _fresh_view(self) -> GraphView:
        store_id = (await self._source.status())["store_id"]
        view = changes = None
        if "rating" in self._kinds:  # without ratings the store itself is quicker to read than a snapshot
            view = await asyncio.to_thread(newest_snapshot, self._snapshot_dir, store_id)
        if view is not None:
            changes = await self._catch_up(view.version)
        # A snapshot ahead of the head tells of a future that a restored backup does not have.
        if view is None or changes is None or changes.to_version < view.version:
            view = GraphView(store_id)
            changes = await self._catch_up(0)
        if changes is not None:
            view.apply(changes)
        return view

    def _report(self) -> FollowerReport:
        replica = self._replica
        return FollowerReport(
            self.follower_id, self._kind, self.store_id, self.version, replica.generations(), replica.failed()
        )

    def _publish(self, version: int) -> None:
        self.version = version
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
