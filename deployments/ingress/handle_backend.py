"""The `Backend` of the running service: deployment handles and the graph state actor."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, TypeVar

import numpy as np
from ray.serve.handle import DeploymentHandle

from deployments import metrics
from deployments.coalescing import Coalescer
from deployments.graph_client import RemoteGraphState
from deployments.graph_state import Outcome
from deployments.handles import answer, call, call_all
from deployments.ingress.generation_backend import GenerationBackend
from deployments.ingress.memory_backend import MemoryBackend
from deployments.ingress.optional_embeddings import OptionalEmbeddings
from deployments.ingress.text_status import combined, degraded, merged
from deployments.ingress.write_vectors import WriteVectors
from deployments.messages import (
    CacheInvalidation,
    EmbedAnswer,
    EmbedQuery,
    EncoderInfo,
    ItemRecord,
    NodeEmbedding,
    Page,
    RecommendAnswer,
    RecommendQuery,
    RerankAnswer,
    RerankQuery,
    SearchAnswer,
    SearchQuery,
    SimilarAnswer,
    UserRecord,
)
from deployments.settings import Settings
from graph.errors import NotYet, TextTooLong, Unavailable, WeftError
from graph.schema import RATING_HIGH, Idempotency, WriteRequest, WriteResult

T = TypeVar("T")

logger = logging.getLogger("weft.ingress")

_PLACE = re.compile(r"texts\[(\d+)\]")
_STATUS_TIMEOUT_S = 2.0
_EMBED_TEXTS = 192  # of 4,096 dimensions they stay under the 4 MiB that a message has by default
_QUERY_EMBED_S = 2.0  # beyond it a search goes by words alone
_RETRY_S = 0.01
_WARM_UP_ROUNDS = 3
_OWN_KEY_TTL_S = 600.0  # the ingress repeats a write for seconds, not for a day


@dataclass(frozen=True, slots=True)
class Parts:
    """Handles of the deployments behind the ingress."""

    graph_encoder: DeploymentHandle
    retriever: DeploymentHandle
    text_embedder: DeploymentHandle
    text_indexer: DeploymentHandle
    graph_keeper: DeploymentHandle
    language_model: DeploymentHandle | None = None


class HandleBackend(GenerationBackend, MemoryBackend):
    """One per ingress replica. Reads and writes that wait together share a call."""

    def __init__(self, settings: Settings, parts: Parts, state: RemoteGraphState, store_id: str) -> None:
        GenerationBackend.__init__(self, settings, parts.language_model)
        encoder, embedder = parts.graph_encoder, parts.text_embedder
        MemoryBackend.__init__(self, settings, encoder, embedder, self._reading, self.recommend, self.item)
        self.store_id = store_id
        self._warm, self._warming = False, asyncio.Lock()
        self._limits = settings.ingress
        self._query_prompt = settings.text_embedder.query_prompt
        self._parts, self._state = parts, state
        self._encoder, self._retriever, self._keeper = (
            parts.graph_encoder,
            parts.retriever,
            parts.graph_keeper,
        )
        self._embedder = parts.text_embedder
        # Two, since they pause apart: a write gives up much sooner than a search.
        self._embeddings = OptionalEmbeddings(parts.text_embedder)
        self._write_vectors = WriteVectors(OptionalEmbeddings(parts.text_embedder), settings.text_embedder)
        self._writes: Coalescer[WriteRequest, WriteResult] = Coalescer(
            self._send_writes,
            max_batch=self._limits.max_batch,
            waited=lambda seconds: metrics.QUEUE.observe(seconds, "graph_state"),
            name="the write",
        )
        self._recommends: Coalescer[RecommendQuery, RecommendAnswer] = Coalescer(
            self._send_recommends,
            max_batch=self._limits.max_batch,
            max_in_flight=2,
            waited=lambda seconds: metrics.QUEUE.observe(seconds, "retriever"),
            name="the recommendation",
        )
        self._searches: Coalescer[SearchQuery, SearchAnswer] = Coalescer(
            self._send_searches,
            max_batch=self._limits.max_batch,
            max_in_flight=2,
            waited=lambda seconds: metrics.QUEUE.observe(seconds, "retriever"),
            name="the search",
        )

    def measure(self) -> None:
        """Set the metrics that are not counted as they happen. Thread-safe."""
        metrics.WAITING.set(self._writes.num_waiting, "graph_state")
        metrics.WAITING.set(self._recommends.num_waiting + self._searches.num_waiting, "retriever")

    # ------------------------------------------------------------------------------------------- writing

    async def write(self, request: WriteRequest) -> WriteResult:
        request = await self._write_vectors.added_to(request)
        if request.idempotency is None:
            # So that the call can be repeated when the writer dies between commit and answer.
            key = Idempotency("ingress", uuid.uuid4().hex, "", ttl_s=_OWN_KEY_TTL_S, keep_unchanged=False)
            request = replace(request, idempotency=key)
        return await self._writes.call(request, timeout_s=self._limits.request_timeout_s)

    async def _send_writes(self, requests: list[WriteRequest]) -> list[Outcome]:
        return await self._state.write_through_restarts(requests, self._limits.request_timeout_s)

    # ------------------------------------------------------------------------------------------- reading

    async def recommend(self, query: RecommendQuery) -> RecommendAnswer:
        both = (self._encoder, self._retriever)
        return await self._reading(lambda: self._recommends.call(query), query.min_version, both)

    async def _send_recommends(self, queries: list[RecommendQuery]) -> list[RecommendAnswer | WeftError]:
        answers: list[RecommendAnswer | WeftError] = await call(self._retriever, "recommend", queries)
        return answers

    async def similar(
        self,
        item_id: str,
        n: int,
        tags: tuple[str, ...],
        exclude: tuple[str, ...],
        min_version: int,
        by: str = "graph",
    ) -> SimilarAnswer:
        found: SimilarAnswer = await self._ask(
            self._retriever, min_version, "similar", item_id, n, tags, exclude, by
        )
        return found

    # -------------------------------------------------------------------------------------------------- texts

    async def embed(self, query: EmbedQuery) -> EmbedAnswer:
        # In pieces: by default a message between replicas has 4 MiB.
        texts = query.texts
        places = range(0, len(texts), _EMBED_TEXTS)
        pieces = (replace(query, texts=texts[first : first + _EMBED_TEXTS]) for first in places)
        found = await asyncio.gather(*(map(self._embed, pieces, places)))
        if len(found) == 1:
            return found[0]
        if len({part.text_model for part in found}) > 1:
            raise Unavailable("the text model changed meanwhile; repeat the request")
        return replace(
            found[0],
            vectors=np.concatenate([part.vectors for part in found]),
            tokens=np.concatenate([part.tokens for part in found]),
            hits=sum(part.hits for part in found),
            truncated=sum(part.truncated for part in found),
        )

    async def _embed(self, query: EmbedQuery, first: int) -> EmbedAnswer:
        """Embed one piece of a request, that begins with its text `first`."""
        try:
            found: EmbedAnswer = await self._timed(answer(self._embedder, "embed", query))
        except TextTooLong as error:
            place = _PLACE.fullmatch(error.param or "")
            if place is None:
                raise
            at = first + int(place[1])
            message = error.message.replace(f"text {place[1]} ", f"text {at} ", 1)
            raise TextTooLong(message, param=f"input[{at}]") from error
        return found

    async def search(self, query: SearchQuery) -> SearchAnswer:
        parts = (self._retriever,)
        return await self._reading(lambda: self._searches.call(query), query.min_version, parts)

    async def _send_searches(self, queries: list[SearchQuery]) -> list[SearchAnswer | WeftError]:
        texts = tuple(query.text for query in queries)
        embedded = await self._embeddings.ask(EmbedQuery(texts, prompt=self._query_prompt), _QUERY_EMBED_S)
        # Without vectors letters still find titles; the answer says that no text model took part.
        vectors = None if embedded is None else embedded.vectors
        model = None if embedded is None else embedded.text_model
        found: list[SearchAnswer | WeftError] = await call(self._retriever, "search", queries, vectors, model)
        return found

    async def rerank(self, query: RerankQuery) -> RerankAnswer:
        found: RerankAnswer = await self._timed(answer(self._embedder, "rerank", query))
        return found

    async def cache_statistics(self) -> dict[str, object]:
        replicas = await call_all(self._embedder, "cache_statistics", timeout_s=_STATUS_TIMEOUT_S)
        return combined(replicas)

    async def invalidate_cache(self, what: CacheInvalidation) -> int:
        dropped = await call_all(self._embedder, "invalidate", what, timeout_s=self._limits.request_timeout_s)
        for entry in dropped:
            if isinstance(entry, WeftError):
                raise entry
        # All replicas share the store; each has its own memory of some of it.
        return max(dropped, default=0)

    async def _timed(self, asked: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._limits.embed_timeout_s):
                return await asked
        except TimeoutError:
            raise Unavailable(
                f"no answer within {self._limits.embed_timeout_s:g} s; repeat the request"
            ) from None

    # -------------------------------------------------------------------------------------------------- nodes

    async def user(self, user_id: str, min_version: int) -> UserRecord:
        found: UserRecord = await self._ask(self._encoder, min_version, "read_user", user_id)
        return found

    async def item(self, item_id: str, min_version: int) -> ItemRecord:
        found: ItemRecord = await self._ask(self._encoder, min_version, "read_item", item_id)
        return found

    async def api_keys(self, limit: int, after: str | None, min_version: int) -> Page:
        found: Page = await self._ask(self._encoder, min_version, "list_api_keys", limit, after)
        return found

    async def users(self, limit: int, after: str | None, min_version: int) -> Page:
        found: Page = await self._ask(self._encoder, min_version, "list_users", limit, after)
        return found

    async def items(self, limit: int, after: str | None, min_version: int) -> Page:
        found: Page = await self._ask(self._encoder, min_version, "list_items", limit, after)
        return found

    async def ratings(self, user_id: str, limit: int, after: str | None, min_version: int) -> Page:
        found: Page = await self._ask(self._encoder, min_version, "list_ratings", user_id, limit, after)
        return found

    async def node_embedding(
        self, node_id: str, kind: str | None, owner: str | None, min_version: int
    ) -> NodeEmbedding:
        found: NodeEmbedding = await self._ask(
            self._encoder, min_version, "node_embedding", node_id, kind, owner
        )
        return found

    async def _ask(self, handle: DeploymentHandle, min_version: int, method: str, *args: object) -> Any:
        waits_for = (handle,) if handle is self._encoder else (self._encoder, handle)
        return await self._reading(lambda: answer(handle, method, *args, min_version), min_version, waits_for)

    async def _reading(
        self,
        read: Callable[[], Awaitable[T]],
        min_version: int,
        waits_for: Sequence[DeploymentHandle],
    ) -> T:
        """Read until the replicas have reached `min_version`; raises NotYet after the deadline.

        Replicas never wait inside a shared call, so the waiting is a long-poll of its own.
        """
        deadline = time.monotonic() + self._limits.min_version_timeout_s
        for attempt in count():
            try:
                async with asyncio.timeout(self._limits.request_timeout_s):
                    return await read()
            except TimeoutError:
                raise Unavailable(
                    f"no answer within {self._limits.request_timeout_s:g} s; repeat the request"
                ) from None
            except NotYet:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
            await asyncio.gather(*(call(part, "wait_for", min_version, left) for part in waits_for))
            if attempt:
                # Another replica answers than waited, or a generation is being loaded.
                await asyncio.sleep(_RETRY_S)
        raise AssertionError("unreachable")

    # ---------------------------------------------------------------------------------------- operations

    async def encoders(self) -> list[EncoderInfo]:
        found: list[EncoderInfo] = await answer(self._keeper, "encoders")
        return found

    async def activate_encoder(self, digest: str) -> WriteResult:
        found: WriteResult = await answer(self._keeper, "activate", digest)
        return found

    async def ready(self) -> tuple[bool, dict[str, object]]:
        parts = await self._statuses()
        state, encoder, retriever = parts["graph_state"], parts["graph_encoder"], parts["retriever"]
        checks: dict[str, object] = {
            "graph_state": "error" not in state,
            "graph_encoder": encoder.get("encoder") is not None,
            "retriever": retriever.get("encoder") is not None,
            "index": retriever.get("indexed", 0) == retriever.get("items", -1),
        }
        # Without the language model everything else answers: what it lacks is under "degraded".
        reasons = {name: part["error"] for name, part in parts.items() if "error" in part}
        if encoder.get("encoder", "") is None:
            reasons["graph_encoder"] = "no encoder is active: train one with `weft train`"
        ready = all(checks.values())
        if ready and not self._warm:
            async with self._warming:
                if not self._warm:
                    await self._warm_up()
        return ready, {"checks": checks, "reasons": reasons, "degraded": degraded(parts)}

    async def _warm_up(self) -> None:
        """Go through every hop and the whole ranking, so that the first user does not pay for it."""
        page = await self.items(1, None, 0)
        items = [r.item.item_id for r in page.records if isinstance(r, ItemRecord)]
        for _ in range(_WARM_UP_ROUNDS):
            for item_id in items:
                await self.recommend(RecommendQuery(session=((item_id, RATING_HIGH),)))
                await self.similar(item_id, 1, (), (), 0)
                await self.search(SearchQuery(item_id, 1))
            await self.write(WriteRequest(()))  # changes nothing and leaves nothing
        self._warm = True

    async def status(self) -> dict[str, object]:
        return dict(await self._statuses())

    async def _embedder_status(self) -> dict[str, Any]:
        replicas = await call_all(self._embedder, "status", timeout_s=_STATUS_TIMEOUT_S)
        if not replicas:
            raise Unavailable("no replica of the text embedder runs")
        return merged(replicas)

    async def _statuses(self) -> dict[str, dict[str, Any]]:
        asked: dict[str, Awaitable[dict[str, Any]]] = {
            "graph_state": self._state.status(),
            "graph_encoder": call(self._encoder, "status"),
            "retriever": call(self._retriever, "status"),
            "text_embedder": self._embedder_status(),
            "text_indexer": call(self._parts.text_indexer, "status"),
            "language_model": self.language_model_status(),
            "graph_keeper": call(self._keeper, "status"),
        }
        found = await asyncio.gather(*(_or_error(a) for a in asked.values()))
        return dict(zip(asked, found, strict=True))


async def _or_error(asked: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    try:
        return await asyncio.wait_for(asked, _STATUS_TIMEOUT_S)
    except TimeoutError:
        return {"error": f"no answer within {_STATUS_TIMEOUT_S:g} s"}
    except Unavailable as error:
        return {"error": error.message}
