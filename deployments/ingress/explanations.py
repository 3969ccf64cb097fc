"""A sentence of the language model for each of a user's first recommendations.

They are asked for together: the prompts begin alike, so they share a batch and its prefix. What cannot be had
never takes the recommendations with it: it is null, with the code of the error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from deployments.generation_messages import Delta, GenerateQuery, Started
from deployments.ingress.errors import failure_of
from deployments.ingress.event_stream import DONE, close, event
from deployments.ingress.exchange import Exchange
from deployments.ingress.generation import pointers
from deployments.ingress.user_context import source_of, why_suggested
from deployments.messages import Recommendation
from models.language_model.protocol import Message, Sampling


class Explanations:
    """Explanations of `entries`, items recommended to a user, from what is known about that user."""

    def __init__(
        self, exchange: Exchange, user_id: str, entries: Sequence[Recommendation], token: str | None
    ) -> None:
        self._exchange = exchange
        self._user_id = user_id
        self._entries = entries[: exchange.service.context.explained_items]
        self._context_version = exchange.min_version(token, user_id=user_id)
        self._version = exchange.min_version(token, user_id=user_id, adapters=pointers(user_id))

    async def added_to(self, payload: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request for recommendations, with the first of them explained."""
        first = payload["recommendations"][: len(self._entries)]
        rest = payload["recommendations"][len(self._entries) :]
        found = await asyncio.gather(*map(self._whole, range(len(self._entries))))
        explained = [entry | more for entry, more in zip(first, found, strict=True)]
        return payload | {"recommendations": [*explained, *rest]}

    async def events(self, payload: dict[str, Any]) -> AsyncIterator[bytes]:
        """The answer at once, then pieces of the explanations as they are made; closing it ends them all."""
        chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        tasks: list[asyncio.Task[None]] = []
        try:
            yield event(payload, "recommendations")
            tasks += [asyncio.create_task(self._tell(n, chunks)) for n in range(len(self._entries))]
            running = len(tasks)
            while running:
                chunk = await chunks.get()
                if chunk is None:
                    running -= 1
                else:
                    yield chunk
            yield DONE
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _whole(self, place: int) -> dict[str, Any]:
        try:
            found = await self._exchange.backend.generate(await self._query(place))
            return {"explanation": {"text": found.text, "sources": _sources(found.started)}}
        except Exception as exception:
            return {"explanation": None, "explanation_error": self._code(exception)}

    async def _tell(self, place: int, chunks: asyncio.Queue[bytes | None]) -> None:
        """Put events of one explanation, and None after the last."""
        item_id = self._entries[place].item_id
        try:
            texts: list[str] = []
            sources: list[dict[str, str]] = []
            events = self._exchange.backend.stream(await self._query(place))
            try:
                async for found in events:
                    if isinstance(found, Started):
                        sources = _sources(found)
                    elif isinstance(found, Delta) and found.text:
                        texts.append(found.text)
                        chunks.put_nowait(event({"item_id": item_id, "text": found.text}, "explanation"))
            finally:
                await close(events)
            last: dict[str, Any] = {"item_id": item_id, "text": "".join(texts), "sources": sources}
        except Exception as exception:
            last = {"item_id": item_id, "text": None, "explanation_error": self._code(exception)}
        chunks.put_nowait(event(last, "explained"))
        chunks.put_nowait(None)

    async def _query(self, place: int) -> GenerateQuery:
        """Without the user's context nothing would be explained: here its absence is an error."""
        entry, settings = self._entries[place], self._exchange.service.context
        question = why_suggested(entry.title)
        lines = await self._exchange.backend.context_lines(
            self._user_id, question, self._context_version, entry.item_id
        )
        return GenerateQuery(
            prompt=(Message("user", question),),
            sampling=Sampling(max_tokens=settings.explanation_tokens, temperature=0.0),
            user_id=self._user_id,
            min_version=self._version,
            request_id=f"{self._exchange.request_id}-{place}",
            context=lines,
            max_context_tokens=settings.max_tokens,
        )

    def _code(self, exception: Exception) -> object:
        return failure_of(exception, self._exchange.request_id).error["code"]


def _sources(started: Started) -> list[dict[str, str]]:
    return [] if started.context is None else [source_of(line) for line in started.context.lines]
