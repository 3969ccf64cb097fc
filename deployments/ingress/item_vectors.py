"""Text vectors that travel with the write of their items.

An item is then found by its text in the very version that made it. It is an attempt with a deadline: what it
does not achieve, the text indexer does a moment later, as a version of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

from ray.serve.handle import DeploymentHandle

from deployments.handles import answer
from deployments.messages import EmbedAnswer, EmbedQuery
from deployments.settings import TextEmbedderSettings
from graph.errors import WeftError
from graph.node_text import item_text, text_digest
from graph.schema import Item, PutItem, PutTextVector, WriteRequest
from graph.text_vectors import packed

logger = logging.getLogger("weft.ingress")

_PAUSE_S = 5.0
"""After a failure, writes do not try for so long: none of them should wait for what does not answer."""


class ItemVectors:
    """Adds vectors to requests that write few items."""

    def __init__(self, embedder: DeploymentHandle, limits: TextEmbedderSettings) -> None:
        self._embedder = embedder
        self._limits = limits
        self._paused_until = 0.0

    async def added_to(self, request: WriteRequest) -> WriteRequest:
        """The request with the vectors of its items, or as it is where they are not to be had in time."""
        items = [operation for operation in request.operations if isinstance(operation, PutItem)]
        if not 0 < len(items) <= self._limits.write_wait_items or time.monotonic() < self._paused_until:
            return request
        texts = tuple(
            item_text(Item(-1, put.item_id, put.title, put.tags, put.year, put.text, 0)) for put in items
        )
        try:
            async with asyncio.timeout(self._limits.write_wait_s):
                found: EmbedAnswer = await answer(self._embedder, "embed", EmbedQuery(texts))
        except (WeftError, TimeoutError) as error:
            self._paused_until = time.monotonic() + _PAUSE_S
            reason = error.message if isinstance(error, WeftError) else "no answer in time"
            logger.warning("items are written without their text vectors, which follow: %s", reason)
            return request
        vectors = (
            PutTextVector("item", put.item_id, found.text_model, text_digest(text), packed(vector))
            for put, text, vector in zip(items, texts, found.vectors, strict=True)
        )
        return replace(request, operations=(*request.operations, *vectors))
