"""The part of the ingress' backend that knows a user: memories, their own graph, lines for a prompt."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from ray.serve.handle import DeploymentHandle

from deployments.handles import answer
from deployments.ingress.optional_embeddings import OptionalEmbeddings
from deployments.memory_messages import (
    ContextCandidates,
    ContextTimings,
    GraphAnswer,
    MemoryPage,
    MemoryQuery,
    MemoryRecord,
    MemorySearchAnswer,
)
from deployments.messages import (
    EmbedAnswer,
    EmbedQuery,
    ItemRecord,
    RecommendAnswer,
    Recommendation,
    RecommendQuery,
)
from deployments.settings import Settings
from graph.context import ContextQuery, Suggestion
from graph.errors import WeftError

logger = logging.getLogger("weft.ingress")

T = TypeVar("T")

_REASONS = 2
"""Of a recommendation: what contributes most. A line is to be read, and costs tokens."""


class Reading(Protocol):
    """Repeats a read until the replicas it waits for have reached a version; raises what it answers."""

    async def __call__(
        self, read: Callable[[], Awaitable[Any]], min_version: int, waits_for: Sequence[DeploymentHandle]
    ) -> Any: ...


class MemoryBackend:
    """Reads of the graph encoder's view, with what a question and recommendations add to them.

    Embedding and recommendations are what an answer can do without: each has `context.timeout_s`.
    """

    def __init__(
        self,
        settings: Settings,
        encoder: DeploymentHandle,
        embedder: DeploymentHandle,
        reading: Reading,
        recommend: Callable[[RecommendQuery], Awaitable[RecommendAnswer]],
        item: Callable[[str, int], Awaitable[ItemRecord]],
    ) -> None:
        self._context = settings.context
        self._question_prompt = settings.text_embedder.query_prompt
        self._memory_handle = encoder
        # Of its own: it gives up sooner than a search, and must not keep searches from their vectors.
        self._questions = OptionalEmbeddings(embedder)
        self._read_memories, self._recommended, self._found_item = reading, recommend, item

    async def memory(self, user_id: str, memory_id: str, min_version: int) -> MemoryRecord:
        found: MemoryRecord = await self._ask_memories("read_memory", min_version, user_id, memory_id)
        return found

    async def memories(self, user_id: str, limit: int, after: str | None, min_version: int) -> MemoryPage:
        found: MemoryPage = await self._ask_memories("list_memories", min_version, user_id, limit, after)
        return found

    async def search_memories(self, query: MemoryQuery) -> MemorySearchAnswer:
        """By words alone where the text's vector is not to be had in time."""
        if query.vector is None and (embedded := await self._embedded(query.text)) is not None:
            query = replace(query, vector=embedded.vectors[0], text_model=embedded.text_model)
        handle = self._memory_handle
        found: MemorySearchAnswer = await self._read_memories(
            lambda: answer(handle, "search_memories", query), query.min_version, (handle,)
        )
        return found

    async def user_graph(self, user_id: str, depth: int, limit: int, min_version: int) -> GraphAnswer:
        found: GraphAnswer = await self._ask_memories("user_graph", min_version, user_id, depth, limit)
        return found

    async def context_lines(
        self, user_id: str, query: str, min_version: int, explain_item: str | None = None
    ) -> ContextCandidates:
        """Lines for a prompt; what is away leaves its own out, and is in `missing`."""
        (
            (embedded, embedding_ms),
            (suggested, suggestions_ms),
            (explained, explained_ms),
        ) = await asyncio.gather(
            _timed(self._embedded(query)),
            _timed(self._suggested(user_id, min_version)),
            _timed(self._explained(user_id, explain_item, min_version)),
        )
        missing = [] if embedded is not None or not query.strip() else ["similarity"]
        suggestions = [_suggestion(r) for r in suggested or () if r.item_id != explain_item]
        if explained is not None:
            suggestions.insert(0, explained[0])
        if suggested is None or (explained is not None and not explained[1]):
            missing.append("suggestions")
        asked = ContextQuery(
            user_id,
            query,
            int(time.time()),
            None if embedded is None else embedded.vectors[0],
            None if embedded is None else embedded.text_model,
            tuple(suggestions),
            () if explain_item is None else (explain_item,),
            self._context.max_lines,
        )
        found: ContextCandidates
        found, selection_ms = await _timed(self._ask_memories("context", min_version, asked))
        timings = ContextTimings(embedding_ms, max(suggestions_ms, explained_ms), selection_ms)
        return replace(found, missing=(*found.missing, *missing), timings=timings)

    # ---------------------------------------------------------------------------------------------- internals

    async def _ask_memories(self, method: str, min_version: int, *args: object) -> Any:
        handle = self._memory_handle
        return await self._read_memories(
            lambda: answer(handle, method, *args, min_version), min_version, (handle,)
        )

    async def _embedded(self, text: str) -> EmbedAnswer | None:
        if not text.strip():
            return None
        query = EmbedQuery((text,), prompt=self._question_prompt)
        return await self._questions.ask(query, self._context.timeout_s)

    async def _suggested(self, user_id: str, min_version: int) -> Sequence[Recommendation] | None:
        """What to suggest next; None where nobody says so in time."""
        if not self._context.suggestions:
            return ()
        return await self._recommendations(
            RecommendQuery(user_id, n=self._context.suggestions, min_version=min_version)
        )

    async def _explained(
        self, user_id: str, item_id: str | None, min_version: int
    ) -> tuple[Suggestion, bool] | None:
        """The item with its reasons, and whether those could be had. Raises UnknownItem."""
        if item_id is None:
            return None
        # Also one that the user has rated, which recommendations leave out.
        query = RecommendQuery(
            user_id, n=1, exclude_seen=False, candidates=(item_id,), min_version=min_version
        )
        found = await self._recommendations(query)
        if found:
            return _suggestion(found[0]), True
        record = await self._found_item(item_id, min_version)
        return Suggestion(item_id, record.item.title), found is not None

    async def _recommendations(self, query: RecommendQuery) -> Sequence[Recommendation] | None:
        try:
            async with asyncio.timeout(self._context.timeout_s):
                return (await self._recommended(query)).recommendations
        except (WeftError, TimeoutError) as error:
            reason = error.message if isinstance(error, WeftError) else "no answer in time"
            logger.info("a context goes without suggestions: %s", reason)
            return None


async def _timed(work: Awaitable[T]) -> tuple[T, float]:
    """What it gives, and the milliseconds it took."""
    begun = time.perf_counter()
    found = await work
    return found, (time.perf_counter() - begun) * 1e3


def _suggestion(recommendation: Recommendation) -> Suggestion:
    reasons = tuple(reason.title for reason in recommendation.because[:_REASONS])
    return Suggestion(recommendation.item_id, recommendation.title, reasons)
