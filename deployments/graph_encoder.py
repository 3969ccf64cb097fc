"""The graph encoder deployment: the view that answers reads, user vectors, item vectors for retrievers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from deployments import metrics
from deployments.cursors import read_cursor
from deployments.encoder_pointers import SCOPE
from deployments.following import Follower
from deployments.generations import Generations, load_generation
from deployments.graph_client import GraphStateClient
from deployments.long_reads import LongReads
from deployments.memory_reads import MemoryReads
from deployments.messages import (
    Float32,
    Int64,
    ItemRecord,
    ItemVectors,
    NodeEmbedding,
    Page,
    RatingRecord,
    UserQuery,
    UserRecord,
    UserVector,
)
from deployments.named_nodes import node_named
from deployments.setting_groups import GraphEncoderSettings
from deployments.settings import Settings
from deployments.slow_calls import noted
from graph.api_keys import is_key_id
from graph.errors import InvalidInput, NotYet, UnknownEncoder, WeftError
from graph.schema import ChangeSet, Item, User
from graph.view import GraphView
from models.graph_encoder.sage import SageState
from models.graph_encoder.state import EncoderState, build_state

log = logging.getLogger(__name__)

_PULL_BYTES = 3 << 20  # a message of the default gRPC settings has 4 MiB


@dataclass(slots=True)
class _Generation:
    """An encoder over a view of its own: while one is being built, the others must be free to move on."""

    digest: str
    view: GraphView
    state: EncoderState

    def apply(self, changes: ChangeSet) -> None:
        self.state.apply(self.view.apply(changes), self.view)

    def knows(self, user_row: int, weights: Float32) -> bool:
        """Whether there is anything personal about a user: something liked or, for `sage`, remembered."""
        remembered = isinstance(self.state, SageState) and self.view.num_memories_of(user_row) > 0
        return remembered or bool(weights.any())


class GraphEncoder(MemoryReads):
    """One replica. Methods that take lists answer one entry per query, errors included."""

    def __init__(self, settings: Settings, source: GraphStateClient) -> None:
        self._long_reads = LongReads()
        super().__init__(lambda: self.view, self._check_version, self._long_reads)
        self._settings = settings
        self._device = _device(settings.graph_encoder)
        self._generations: Generations[_Generation] = Generations(self._build)
        self._idle_view = GraphView()  # answers while there is no encoder
        self._backlogs: list[list[ChangeSet]] = []
        self._follower = Follower("graph_encoder", self, source, settings.snapshot_dir)

    async def start(self) -> None:
        """Load everything; returns when the replica can answer."""
        await self._follower.start()

    async def stop(self) -> None:
        await self._follower.stop()

    # --------------------------------------------------------------------------------------- being a replica

    @property
    def view(self) -> GraphView:
        active = self._generations.active
        return self._idle_view if active is None else active.view

    async def load(self, view: GraphView) -> None:
        self._idle_view = view
        await self._generations.restart(view)
        if self._generations.active is not None:
            self._idle_view = GraphView()  # every generation has its own

    async def apply(self, changes: ChangeSet) -> None:
        async with self._long_reads.none():
            self._apply(changes)

    def _apply(self, changes: ChangeSet) -> None:
        for backlog in self._backlogs:
            backlog.append(changes)
        active = self._generations.active
        for generation in self._generations.all():
            generation.apply(changes)
        if active is None:
            self._idle_view.apply(changes)
        elif self._idle_view.version:
            self._idle_view = GraphView()  # an encoder came: every generation has a view of its own
        if any(p.scope == SCOPE for p in changes.pointers):
            self._generations.follow(self.view)

    def generations(self) -> tuple[str, ...]:
        return self._generations.loaded()

    def failed(self) -> tuple[str, ...]:
        return self._generations.failed()

    async def _build(self, digest: str) -> _Generation:
        backlog: list[ChangeSet] = []
        self._backlogs.append(backlog)
        contents = self.view.contents()

        def build() -> _Generation:
            checkpoint = load_generation(self._settings.encoder_dir, digest)
            view = GraphView.from_contents(contents)
            return _Generation(digest, view, build_state(checkpoint.parameters, view, self._device))

        try:
            generation = await asyncio.to_thread(build)
        finally:
            # By identity: equal backlogs of two builds are still two.
            self._backlogs = [b for b in self._backlogs if b is not backlog]
        for changes in backlog:
            generation.apply(changes)
        return generation

    # ----------------------------------------------------------------------------------------------- vectors

    @noted
    async def user_vectors(
        self, queries: list[UserQuery], sent_at: float | None = None
    ) -> list[UserVector | WeftError]:
        """What each query's user is like, in this replica's version; NotYet where that is too old.

        `sent_at`: Unix seconds at the caller, for the time it took until here. Between two nodes it is as
        exact as their clocks are alike.
        """
        began = time.perf_counter()
        if sent_at is not None:
            metrics.QUEUE.observe(max(0.0, time.time() - sent_at), "graph_encoder")
        answers = self._user_vectors(queries)
        metrics.INFERENCE.observe(time.perf_counter() - began, "graph_encoder")
        return answers

    def _user_vectors(self, queries: list[UserQuery]) -> list[UserVector | WeftError]:
        active = self._generations.active
        if active is None:
            return [self._generations.absence() for _ in queries]
        answers: list[UserVector | WeftError] = []
        rows: list[int] = []
        for query in queries:
            try:
                if query.user_id is None:
                    answers.append(self._session(active, query))
                    continue
                self._check_version(query.min_version)
                rows.append(active.view.user(query.user_id).row)
                answers.append(self._seen(active, rows[-1]))
            except WeftError as error:
                answers.append(error)
        if rows:
            vectors = iter(zip(rows, active.state.user_vectors(rows), strict=True))
            for place, (query, answer) in enumerate(zip(queries, answers, strict=True)):
                if query.user_id is not None and isinstance(answer, UserVector):
                    row, vector = next(vectors)
                    if active.knows(row, answer.seen_weights):
                        answers[place] = answer.with_vector(vector)
        return answers

    def _seen(self, active: _Generation, row: int) -> UserVector:
        ratings = active.view.ratings_of(row)
        order = np.argsort(ratings.timestamps, kind="stable")
        values = ratings.values[order]
        weights = active.state.weights(values)
        return UserVector(
            None,
            ratings.item_rows[order].astype(np.int64),
            weights,
            values,
            active.view.version,
            active.digest,
        )

    def _session(self, active: _Generation, query: UserQuery) -> UserVector:
        self._check_version(query.min_version)
        session = dict(query.session)  # of repeated items the last counts, as it would in the store
        rows = np.array([active.view.item(item_id).row for item_id in session], np.int64)
        values = np.array(list(session.values()), np.float32)
        weights = active.state.weights(values)
        vector = active.state.session_vector(rows, values) if weights.any() else None
        return UserVector(vector, rows, weights, values, active.view.version, active.digest)

    async def item_vectors(
        self,
        digest: str,
        since: int = -1,
        after_row: int = -1,
        rows: Int64 | None = None,
        min_version: int = 0,
    ) -> ItemVectors | WeftError:
        """Rows changed after version `since`, or the named `rows`, beyond `after_row`; in bounded pieces."""
        # In this order: a replica that is behind cannot know which encoders there are to be.
        if self._follower.version < max(min_version, since):
            return NotYet(
                f"the graph encoder is at version {self._follower.version}, not yet at {min_version}"
            )
        generation = self._generations.get(digest)
        if generation is None:
            if self._generations.awaits(digest):
                return NotYet(f"the graph encoder is loading encoder {digest[:12]!r}")
            return UnknownEncoder(f"this replica has no encoder {digest[:12]!r}")
        state = generation.state
        changed = state.changed_since(since) if rows is None else rows[rows < state.num_item_rows]
        changed = changed[changed > after_row]
        limit = min(self._settings.retriever.pull_rows, _PULL_BYTES // (8 * state.parameters.dim + 16))
        part = changed[:limit]
        return ItemVectors(
            part,
            state.source[part],
            state.target[part],
            state.bias[part],
            state.degree[part].astype(np.float32),
            generation.view.version,
            len(changed) > limit,
        )

    @noted
    async def node_embedding(
        self, node_id: str, kind: str | None, owner: str | None, min_version: int
    ) -> NodeEmbedding | WeftError:
        """The vector of a user, an item (without the items' bias) or, where the encoder has it, a memory.

        `owner` is whose memory it is: another user's counts as unknown.
        """
        active = self._generations.active
        if active is None:
            return self._generations.absence()
        try:
            self._check_version(min_version)
            found = node_named(active.view, node_id, kind, owner)
            if isinstance(found, User):
                vector = active.state.user_vector(found.row)
            elif isinstance(found, Item):
                vector = active.state.target[found.row].copy()
            else:
                vector = active.state.memory_vectors([found.row])[0]
        except WeftError as error:
            return error
        kind = type(found).__name__.lower()
        return NodeEmbedding(node_id, kind, vector, active.digest, active.view.version)

    # ------------------------------------------------------------------------------------------------- reads

    @noted
    async def read_user(self, user_id: str, min_version: int) -> UserRecord | WeftError:
        try:
            self._check_version(min_version)
            return self._user_record(self.view.user(user_id))
        except WeftError as error:
            return error

    @noted
    async def read_item(self, item_id: str, min_version: int) -> ItemRecord | WeftError:
        try:
            self._check_version(min_version)
            return self._item_record(self.view.item(item_id))
        except WeftError as error:
            return error

    @noted
    async def list_users(self, limit: int, after: str | None, min_version: int) -> Page | WeftError:
        view = self.view
        return self._page(view.user_at, view.num_user_rows, self._user_record, limit, after, min_version)

    @noted
    async def list_items(self, limit: int, after: str | None, min_version: int) -> Page | WeftError:
        view = self.view
        return self._page(view.item_at, view.num_item_rows, self._item_record, limit, after, min_version)

    @noted
    async def list_ratings(
        self, user_id: str, limit: int, after: str | None, min_version: int
    ) -> Page | WeftError:
        """A user's ratings by item row: the one order that every replica has, whatever way it came here."""
        try:
            self._check_version(min_version)
            start = read_cursor(after)
            user = self.view.user(user_id)
        except WeftError as error:
            return error
        ratings = self.view.ratings_of(user.row)
        order = np.argsort(ratings.item_rows)
        order = order[np.searchsorted(ratings.item_rows, start, sorter=order) :]
        records = [
            RatingRecord(item.item_id, float(ratings.values[n]), int(ratings.timestamps[n]))
            for n in order[:limit].tolist()
            if (item := self.view.item_at(int(ratings.item_rows[n]))) is not None
        ]
        following = str(int(ratings.item_rows[order[limit]])) if len(order) > limit else None
        return Page(tuple(records), following, self.view.version)

    async def list_api_keys(self, limit: int, after: str | None, min_version: int) -> Page | WeftError:
        """Keys that were not revoked, by id, from the cursor `after`, the id of the last page's last."""
        try:
            self._check_version(min_version)
            if after is not None and not is_key_id(after):
                raise InvalidInput(f"cursor {after[:40]!r}: use the `next` of the page before", param="after")
        except WeftError as error:
            return error
        found = (
            replace(key, digest="") for key in self.view.api_keys() if after is None or key.key_id > after
        )
        keys = list(islice(found, limit + 1))
        following = keys[limit - 1].key_id if len(keys) > limit else None
        return Page(tuple(keys[:limit]), following, self.view.version)

    async def wait_for(self, version: int, timeout_s: float) -> bool:
        """Long-poll: whether this replica reached `version` in time."""
        return await self._follower.wait_for(version, timeout_s)

    def measure(self) -> None:
        """Set the metrics that are not counted as they happen. Thread-safe."""
        self._follower.measure()
        self._generations.measure()

    async def status(self) -> dict[str, Any]:
        active = self._generations.active
        view = self.view
        by_user, by_item = view.rating_bytes
        return {
            "replica": self._follower.follower_id,
            "store_id": self._follower.store_id,
            "version": self._follower.version,
            "connected": self._follower.connected,
            "users": view.num_users,
            "items": view.num_items,
            "ratings": view.num_ratings,
            "memories": view.num_memories,
            "relations": view.num_relations,
            "rating_bytes": by_user + by_item,
            "text_vectors": view.num_text_vectors,
            "text_vector_bytes": view.text_vector_bytes,
            "encoder": None if active is None else active.digest,
            "generations": list(self.generations()),
            "dim": None if active is None else active.state.parameters.dim,
        }

    def check_health(self) -> None:
        """Called by Serve; raises to be replaced."""
        if not self._follower.alive:
            raise RuntimeError("the graph encoder no longer follows the feed")

    # --------------------------------------------------------------------------------------------- internals

    def _check_version(self, min_version: int) -> None:
        if self._follower.version < min_version:
            raise NotYet(
                f"the graph encoder is at version {self._follower.version}, not yet at {min_version}"
            )

    def _user_record(self, user: User) -> UserRecord:
        return UserRecord(user, int(self.view.user_degrees[user.row]), self.view.version)

    def _item_record(self, item: Item) -> ItemRecord:
        return ItemRecord(item, int(self.view.item_degrees[item.row]), self.view.version)

    def _page(
        self,
        node_at: Callable[[int], Any],
        num_rows: int,
        record: Callable[[Any], UserRecord | ItemRecord],
        limit: int,
        after: str | None,
        min_version: int,
    ) -> Page | WeftError:
        """Live nodes in the order of their rows, from the cursor `after`."""
        try:
            self._check_version(min_version)
            start = read_cursor(after)
        except WeftError as error:
            return error
        found = (node for row in range(start, num_rows) if (node := node_at(row)) is not None)
        nodes = list(islice(found, limit + 1))
        page = nodes[:limit]
        following = str(page[-1].row + 1) if len(nodes) > limit else None
        return Page(tuple(record(n) for n in page), following, self.view.version)


def _device(settings: GraphEncoderSettings) -> str:
    """Where graphs are added up, as torch names it; raises InvalidInput for a device that is not there."""
    if not settings.num_gpus:
        return "cpu"
    from models.devices import choose_device  # not at the top: torch takes seconds, and nothing else needs it

    return str(choose_device(settings.device))
