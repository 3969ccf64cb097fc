"""The retriever deployment: item existence and metadata, candidate search, ranking, titles and reasons."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from deployments import metrics
from deployments.encoder_pointers import SCOPE
from deployments.following import Follower
from deployments.generations import Generations, load_generation
from deployments.graph_client import GraphStateClient
from deployments.messages import (
    Float32,
    Int64,
    ItemVectors,
    RecommendAnswer,
    RecommendQuery,
    SearchAnswer,
    SearchQuery,
    SimilarAnswer,
    UserQuery,
    UserVector,
)
from deployments.ranked_items import RankedItems
from deployments.results import named, ranked
from deployments.searchable_items import SearchableItems
from deployments.settings import Settings
from deployments.slow_calls import noted
from deployments.tagged_rows import TaggedRows
from graph.errors import NotYet, Unavailable, UnknownEncoder, WeftError
from graph.schema import ChangeSet
from graph.view import GraphView
from models.ranking import RankQuery, RankResult
from models.text_search import TextQuery

log = logging.getLogger(__name__)

_RETRY_S = 0.05
_INLINE_SCORES = 1_000_000
"""Scores per batch (queries * items) that are cheaper to compute at once than to hand to a thread."""


class EncoderClient(Protocol):
    """The calls of the graph encoder that a retriever makes."""

    async def user_vectors(self, queries: list[UserQuery]) -> list[UserVector | WeftError]: ...

    async def item_vectors(
        self,
        digest: str,
        since: int = -1,
        after_row: int = -1,
        rows: Int64 | None = None,
        min_version: int = 0,
    ) -> ItemVectors | WeftError: ...


class Retriever:
    """One replica. Lists are answered one entry per query, errors included."""

    def __init__(self, settings: Settings, source: GraphStateClient, encoder: EncoderClient) -> None:
        self._settings = settings
        self._encoder = encoder
        self._view = GraphView()
        self._tagged = TaggedRows()
        self._searchable = SearchableItems(self._view)
        self._generations: Generations[RankedItems] = Generations(self._build)
        self._follower = Follower(
            "retriever", self, source, settings.snapshot_dir, frozenset(("item", "text_vector", "pointer"))
        )
        self._pulling = asyncio.Lock()
        self._puller: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load everything; returns when the replica can answer."""
        await self._follower.start()
        self._puller = asyncio.create_task(self._pull_regularly())

    async def stop(self) -> None:
        if self._puller is not None:
            self._puller.cancel()
            await asyncio.gather(self._puller, return_exceptions=True)
        await self._follower.stop()

    # --------------------------------------------------------------------------------------- being a replica

    async def load(self, view: GraphView) -> None:
        # Titles of a whole catalogue take seconds, during which a replica that resynchronises answers from
        # what it had. Until it is given to the replica, nobody else touches the view.
        searchable = await asyncio.to_thread(SearchableItems, view)
        tagged = await asyncio.to_thread(TaggedRows, view.items())
        self._view, self._searchable, self._tagged = view, searchable, tagged
        await self._generations.restart(view)

    async def apply(self, changes: ChangeSet) -> None:
        # A new or changed item has its vector before its version is published: nobody finds it without.
        fresh = np.array(sorted(i.row for i in changes.items if not i.deleted), np.int64)
        vectors: dict[str, list[ItemVectors]] = {}
        # Again and again: another generation may be completed while this waits.
        while len(fresh) and (missing := [d for d in self._generations.loaded() if d not in vectors]):
            for digest in missing:
                vectors[digest] = await self._fetch_fresh(digest, fresh, changes.to_version)
        delta = self._view.apply(changes)
        self._tagged.apply(delta)
        for generation in self._generations.all():
            gone = np.array([i.row for i in changes.items if i.deleted], np.int64)
            if len(gone):
                generation.ranker.remove(gone)
            for piece in vectors.get(generation.digest, ()):
                generation.take(piece, self._view)
                # A pull may have overtaken this piece: have what changed since come again.
                generation.version = min(generation.version, piece.version)
        if any(p.scope == SCOPE for p in changes.pointers):
            self._generations.follow(self._view)
        # Last, because it waits: what is above must go on from a view that nothing has overtaken.
        await self._searchable.apply(changes)

    async def _fetch_fresh(self, digest: str, rows: Int64, version: int) -> list[ItemVectors]:
        try:
            return await self._fetch(digest, rows=rows, min_version=version)
        except UnknownEncoder:
            # The graph encoder is ahead and has retired it; this replica is about to learn of that.
            log.info("the graph encoder no longer has encoder %s", digest[:12])
            return []

    def generations(self) -> tuple[str, ...]:
        return self._generations.loaded()

    def failed(self) -> tuple[str, ...]:
        return self._generations.failed()

    # --------------------------------------------------------------------------------- following the vectors

    async def _build(self, digest: str) -> RankedItems:
        checkpoint = await asyncio.to_thread(load_generation, self._settings.encoder_dir, digest)
        generation = RankedItems(digest, checkpoint)
        # Not before the encoder knows of this generation: until then it cannot say whether there is one.
        await self._pull(generation, self._view.version)
        # Items that were applied while the pull was under way came too early for it: fetch them by name.
        while len(missing := generation.missing(self._view)):
            for piece in await self._fetch(digest, rows=missing, min_version=self._view.version):
                generation.take(piece, self._view)
        return generation

    async def _pull_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._settings.retriever.item_staleness_s)
            for generation in self._generations.all():
                try:
                    async with self._pulling:
                        await self._pull(generation, wait=False)
                except WeftError as error:
                    # Vectors lag, answers go on; the next round tries again.
                    log.warning("item vectors stay at version %d: %s", generation.version, error.message)

    async def _pull(self, generation: RankedItems, min_version: int = 0, wait: bool = True) -> None:
        """Take over what changed since the last pull, at least up to `min_version`."""
        since = generation.version
        pieces = await self._fetch(generation.digest, since=since, min_version=min_version, wait=wait)
        for piece in pieces:
            generation.take(piece, self._view)
        if pieces:
            # Rows changed between two pieces come again with the next pull.
            upto = max(since, min(p.version for p in pieces))
            # Lowered meanwhile: a commit brought older vectors, and what changed after them must come again.
            generation.version = min(generation.version, upto) if generation.version < since else upto

    async def _fetch(
        self,
        digest: str,
        *,
        since: int = -1,
        rows: Int64 | None = None,
        min_version: int = 0,
        wait: bool = True,
    ) -> list[ItemVectors]:
        """All pieces of one pull. With `wait`, an encoder that is away or behind is asked again.

        Raises UnknownEncoder where there is no such generation, and without `wait` Unavailable.
        """
        pieces: list[ItemVectors] = []
        while True:
            after_row = int(pieces[-1].rows[-1]) if pieces else -1
            try:
                piece = await self._encoder.item_vectors(digest, since, after_row, rows, min_version)
            except Unavailable as error:
                piece = error
            if isinstance(piece, ItemVectors):
                pieces.append(piece)
                if not piece.more:
                    return pieces
            elif wait and isinstance(piece, Unavailable):
                await asyncio.sleep(_RETRY_S)
            elif isinstance(piece, NotYet):
                return []
            else:
                raise piece

    # --------------------------------------------------------------------------------------------- answering

    @noted
    async def recommend(self, queries: list[RecommendQuery]) -> list[RecommendAnswer | WeftError]:
        answers: list[RecommendAnswer | WeftError | None] = [self._refusal(q) for q in queries]
        places = [n for n, answer in enumerate(answers) if answer is None]
        exact = [n for n in places if queries[n].exact_items]
        if exact:
            lag = await self._pull_exactly(max(queries[n].min_version for n in exact))
            if lag is not None:
                # Nobody else in this batch waits for it.
                answers = [lag if n in exact else a for n, a in enumerate(answers)]
                places = [n for n in places if n not in exact]
        try:
            users = await self._encoder.user_vectors(
                [UserQuery(q.user_id, q.session, q.min_version) for q in (queries[n] for n in places)]
            )
        except Unavailable as error:
            users = [error for _ in places]
        by_digest: dict[str, list[tuple[int, UserVector]]] = defaultdict(list)
        for place, user in zip(places, users, strict=True):
            if isinstance(user, UserVector):
                by_digest[user.encoder].append((place, user))
            else:
                answers[place] = user
        for digest, found in by_digest.items():
            generation = self._generations.get(digest)
            if generation is None:
                behind = NotYet(f"the retriever has not loaded encoder {digest[:12]} yet")
                answers = [behind if n in dict(found) else a for n, a in enumerate(answers)]
                continue
            results = await self._rank(generation, [self._rank_query(queries[n], user) for n, user in found])
            for (place, user), result in zip(found, results, strict=True):
                answers[place] = self._answer(queries[place], user, generation, result)
        return [a if a is not None else Unavailable("no answer") for a in answers]

    @noted
    async def similar(
        self, item_id: str, n: int, tags: tuple[str, ...], exclude: tuple[str, ...], by: str, min_version: int
    ) -> SimilarAnswer | WeftError:
        """Items whose vectors point the same way, by cosine: the encoder's vectors, or those of the texts."""
        try:
            self._check_version(min_version)
            row = self._view.item(item_id).row
            allowed, banned = self._allowed(tags, None), self._known_rows(exclude)
            if by == "text":
                return await self._similar_text(item_id, row, n, allowed, banned)
            generation = self._generations.active
            if generation is None:
                return self._generations.absence()
            result = generation.ranker.similar(row, n, allowed=allowed, exclude=banned)
        except WeftError as error:
            return error
        similar = ranked(self._view, result)
        return SimilarAnswer(
            item_id, similar, self._follower.version, generation.version, "graph", generation.digest
        )

    async def _similar_text(
        self, item_id: str, row: int, n: int, allowed: Int64 | None, banned: Int64
    ) -> SimilarAnswer:
        view, version, model = self._view, self._follower.version, self._searchable.active
        if model is None:
            raise Unavailable("no text model is active yet: its vectors are being made")
        found = await self._searchable.similar(model, row, n, allowed, banned)
        if found is None:
            raise NotYet(f"the text of item {item_id!r} has no vector yet: repeat the request a little later")
        return SimilarAnswer(item_id, named(view, found), version, version, "text", model)

    @noted
    async def search(
        self, queries: list[SearchQuery], vectors: Float32 | None, model: str | None
    ) -> list[SearchAnswer | WeftError]:
        """Items by text. `vectors` float32 [queries, d] are the queries' under `model`.

        Without them, or where this replica has none of that model to compare with, by words alone.
        """
        answers: list[SearchAnswer | WeftError | None] = [self._refusal(q) for q in queries]
        places = [n for n, answer in enumerate(answers) if answer is None]
        # The search may run while the next commit is applied: it counts as of before.
        view, version = self._view, self._follower.version
        asked = [
            TextQuery(q.text, q.n, self._allowed(q.tags, q.candidates), self._known_rows(q.exclude))
            for q in (queries[n] for n in places)
        ]
        began = time.perf_counter()
        searched = await self._searchable.search(asked, None if vectors is None else vectors[places], model)
        metrics.INFERENCE.observe(time.perf_counter() - began, "retriever")
        for place, found in zip(places, searched.results, strict=True):
            answers[place] = SearchAnswer(named(view, found), version, searched.text_model, searched.waiting)
        return [a if a is not None else Unavailable("no answer") for a in answers]

    async def wait_for(self, version: int, timeout_s: float) -> bool:
        """Long-poll: whether this replica reached `version` in time."""
        return await self._follower.wait_for(version, timeout_s)

    def measure(self) -> None:
        """Set the metrics that are not counted as they happen. Thread-safe."""
        self._follower.measure()
        self._generations.measure()
        if (active := self._generations.active) is not None:
            metrics.ITEM_VERSION.set(active.version)

    async def status(self) -> dict[str, Any]:
        active = self._generations.active
        return {
            "replica": self._follower.follower_id,
            "store_id": self._follower.store_id,
            "version": self._follower.version,
            "connected": self._follower.connected,
            "items": self._view.num_items,
            "indexed": 0 if active is None else len(active.ranker),
            "item_version": -1 if active is None else active.version,
            "encoder": None if active is None else active.digest,
            "generations": list(self.generations()),
            "text_model": self._searchable.active,
            "without_text_vector": self._searchable.num_without_vector(),
        }

    def check_health(self) -> None:
        """Called by Serve; raises to be replaced."""
        if not self._follower.alive or self._puller is None or self._puller.done():
            raise RuntimeError("the retriever no longer follows the feed")

    # --------------------------------------------------------------------------------------------- internals

    def _refusal(self, query: RecommendQuery | SearchQuery) -> WeftError | None:
        try:
            self._check_version(query.min_version)
        except NotYet as error:
            return error
        return None

    def _check_version(self, min_version: int) -> None:
        if self._follower.version < min_version:
            raise NotYet(f"the retriever is at version {self._follower.version}, not yet at {min_version}")

    async def _pull_exactly(self, min_version: int) -> WeftError | None:
        """Bring the item vectors to `min_version`, or say why they are not there."""
        generation = self._generations.active
        if generation is None:
            return None
        async with self._pulling:
            try:
                if generation.version < min_version:
                    await self._pull(generation, min_version, wait=False)
            except WeftError as error:
                return error if isinstance(error, Unavailable) else NotYet(error.message)
        if generation.version < min_version:
            return NotYet(f"item vectors are at version {generation.version}, not yet at {min_version}")
        return None

    async def _rank(self, generation: RankedItems, queries: list[RankQuery]) -> list[RankResult]:
        began = time.perf_counter()
        if len(queries) * len(generation.ranker) <= _INLINE_SCORES:
            found = generation.ranker.recommend(queries)
        else:
            found = await asyncio.to_thread(generation.ranker.recommend, queries)
        metrics.INFERENCE.observe(time.perf_counter() - began, "retriever")
        return found

    def _rank_query(self, query: RecommendQuery, user: UserVector) -> RankQuery:
        exclude = self._known_rows(query.exclude)
        if query.exclude_below is not None:
            exclude = np.union1d(exclude, user.seen_rows[user.seen_values < query.exclude_below])
        return RankQuery(
            user.vector,
            user.seen_rows,
            user.seen_weights,
            exclude,
            self._allowed(query.tags, query.candidates),
            query.n,
            query.exclude_seen,
            query.because,
        )

    def _allowed(self, tags: Sequence[str], candidates: Sequence[str] | None) -> Int64 | None:
        if not tags and candidates is None:
            return None
        sets = [self._tagged.of(tag) for tag in tags]
        if candidates is not None:
            sets.append(set(self._known_rows(candidates).tolist()))
        return np.array(sorted(set.intersection(*map(set, sets))), np.int64)

    def _known_rows(self, item_ids: Sequence[str]) -> Int64:
        if not item_ids:
            return _NO_ROWS
        found = (self._view.find_item(item_id) for item_id in item_ids)
        return np.array(sorted(item.row for item in found if item is not None), np.int64)

    def _answer(
        self, query: RecommendQuery, user: UserVector, generation: RankedItems, result: RankResult
    ) -> RecommendAnswer:
        return RecommendAnswer(
            query.user_id,
            ranked(self._view, result),
            "popular" if user.vector is None else "personal",
            user.version,
            generation.version,
            generation.digest,
        )


_NO_ROWS: Int64 = np.empty(0, np.int64)
