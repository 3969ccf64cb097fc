"""/v1/completions: a text to continue as it is, in OpenAI's old shape"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from deployments.generation_messages import Delta, Ended, GenerateQuery, Started
from deployments.ingress.access import GuardedRoute
from deployments.ingress.event_stream import DONE, EVENT_STREAM, EventStream, event
from deployments.ingress.exchange import Exchange, answer, exchange_of
from deployments.ingress.generation import asked, begun, chosen, generated, timings, usage
from deployments.ingress.generation_answers import CompletionAnswer
from deployments.ingress.generation_schemas import CompletionBody
from models.language_model.protocol import TokenLogprob

router = APIRouter(tags=["generation"], route_class=GuardedRoute)


@router.post(
    "/v1/completions",
    response_model=CompletionAnswer,
    responses={200: {"content": {EVENT_STREAM: {"schema": {"type": "string"}}}}},
)
async def complete(request: Request, body: CompletionBody) -> Response:
    """What follows a text, with the adapter of `user`; as server-sent events with `stream`."""
    exchange = exchange_of(request)
    exchange.refuse_query()
    query = await asked(request, exchange, body)
    if body.stream:
        started, events = await begun(request, exchange, query)
        return EventStream(exchange, _chunks(exchange, query, body, started, events), events)
    found = await generated(request, exchange, query)
    logprobs = _Logprobs(query).of(found.logprobs)
    return answer(
        {
            **_head(exchange, found.started),
            "choices": [_choice(found.text, found.ended.finish_reason, logprobs)],
            "usage": usage(found.started, found.ended),
            "weft": chosen(exchange, query, found.started) | timings(found.ended),
        }
    )


async def _chunks(
    exchange: Exchange,
    query: GenerateQuery,
    body: CompletionBody,
    started: Started,
    events: AsyncIterator[Started | Delta | Ended],
) -> AsyncIterator[bytes]:
    head = _head(exchange, started)
    if body.wants_usage:
        head["usage"] = None
    logprobs = _Logprobs(query)
    yield event(head | {"choices": [_choice("")], "weft": chosen(exchange, query, started)})
    async for found in events:
        if isinstance(found, Delta):
            choice = _choice(found.text, logprobs=logprobs.of(found.logprobs))
            yield event({**head, "choices": [choice]})
        elif isinstance(found, Ended):
            choice = _choice("", found.finish_reason)
            yield event(head | {"choices": [choice], "weft": timings(found)})
            if body.wants_usage:
                yield event({**head, "choices": [], "usage": usage(started, found)})
    yield DONE


def _head(exchange: Exchange, started: Started) -> dict[str, Any]:
    return {
        "id": f"cmpl-{exchange.request_id}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": started.model,
    }


def _choice(text: str, reason: str | None = None, logprobs: object = None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}


class _Logprobs:
    """Log-probabilities in the old shape, four lists. Offsets count characters of the answer from 0."""

    def __init__(self, query: GenerateQuery) -> None:
        self._wanted = query.sampling.logprobs
        self._offset = 0

    def of(self, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """Of the tokens that follow those asked for before."""
        if self._wanted is None:
            return None
        offsets = []
        for entry in entries:
            offsets.append(self._offset)
            self._offset += len(entry.token)
        return {
            "tokens": [entry.token for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": (
                [{token: logprob for token, _, logprob in entry.top} for entry in entries]
                if self._wanted
                else None
            ),
            "text_offset": offsets,
        }
