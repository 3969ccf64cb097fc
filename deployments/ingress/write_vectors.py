"""Text vectors that travel with the write of their items and memories.

A node is then found by its text in the very version that made it. It is an attempt with a deadline: what it
does not achieve, the text indexer does a moment later, as a version of its own.
"""

from __future__ import annotations

from dataclasses import replace

from deployments.ingress.optional_embeddings import OptionalEmbeddings
from deployments.messages import EmbedQuery, Float32
from deployments.setting_groups import TextEmbedderSettings
from graph.errors import InvalidInput
from graph.node_text import item_text, memory_text, text_digest
from graph.schema import (
    MAX_ROWS_PER_WRITE,
    Item,
    Memory,
    PutItem,
    PutMemory,
    PutTextVector,
    WriteRequest,
)
from graph.text_vectors import packed


class WriteVectors:
    """Adds vectors to requests that write few texts."""

    def __init__(self, embeddings: OptionalEmbeddings, limits: TextEmbedderSettings) -> None:
        self._embeddings = embeddings
        self._limits = limits

    async def added_to(self, request: WriteRequest) -> WriteRequest:
        """The request with the vectors of its texts, or as it is where they are not to be had in time."""
        puts = [operation for operation in request.operations if isinstance(operation, PutItem | PutMemory)]
        if not 0 < len(puts) <= self._limits.write_wait_items or not self._limits.write_wait_s:
            return request
        texts = tuple(map(_text, puts))
        found = await self._embeddings.ask(EmbedQuery(texts), self._limits.write_wait_s)
        if found is None:
            return request
        vectors = [
            _put_vector(put, text, vector, found.text_model)
            for put, text, vector in zip(puts, texts, found.vectors, strict=True)
        ]
        # A write has room for so many; the indexer brings the others.
        room = MAX_ROWS_PER_WRITE - len(request.operations)
        added = [vector for vector in vectors if vector is not None][: max(room, 0)]
        return replace(request, operations=(*request.operations, *added))


def _text(put: PutItem | PutMemory) -> str:
    """The text of the node that the writer makes of it."""
    if isinstance(put, PutMemory):
        return memory_text(Memory(-1, put.memory_id, -1, put.text, 0))
    return item_text(Item(-1, put.item_id, put.title, tuple(dict.fromkeys(put.tags)), put.year, put.text, 0))


def _put_vector(put: PutItem | PutMemory, text: str, vector: Float32, model: str) -> PutTextVector | None:
    try:
        raw = packed(vector)
    except InvalidInput:
        return None  # the indexer meets it again, and says so
    if isinstance(put, PutMemory):
        return PutTextVector("memory", put.memory_id, model, text_digest(text), raw)
    return PutTextVector("item", put.item_id, model, text_digest(text), raw)
