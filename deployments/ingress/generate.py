"""/v1/generate: an answer to a user, with everything that is known about how it came about"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from deployments.generation_messages import Delta, Ended, GenerateQuery, Started
from deployments.ingress.access import GuardedRoute
from deployments.ingress.bodies import parsed
from deployments.ingress.errors import failure_of
from deployments.ingress.event_stream import EVENT_STREAM, EventStream, event, until_gone
from deployments.ingress.exchange import Exchange, answer, exchange_of
from deployments.ingress.generation import asked, begun, chat_tokens, generated, query_of, timings
from deployments.ingress.generation_answers import GenerateBatchAnswer, GeneratedAnswer
from deployments.ingress.generation_schemas import GenerateBatchBody, GenerateBody
from deployments.ingress.user_context import context_facts
from graph.errors import InvalidInput
from models.language_model.protocol import TokenLogprob

router = APIRouter(tags=["generation"], route_class=GuardedRoute)


@router.post(
    "/v1/generate",
    response_model=GeneratedAnswer,
    responses={200: {"content": {EVENT_STREAM: {"schema": {"type": "string"}}}}},
)
async def generate(request: Request, body: GenerateBody) -> Response:
    """An answer to a text or a conversation, with what is known about the user.

    With `stream` as server-sent events: `{"started": {...}}`, `{"text": "..."}` as often as there is more of
    it, and last `{"finished": {...}}` with the whole answer, or `{"error": {...}}`.
    """
    exchange = exchange_of(request)
    exchange.refuse_query()
    query = await asked(request, exchange, body)
    if body.stream:
        started, events = await begun(request, exchange, query)
        return EventStream(exchange, _events(exchange, query, started, events), events)
    found = await generated(request, exchange, query)
    return answer(_payload(exchange, query, found.started, found.ended, found.text, found.logprobs))


@router.post("/v1/generate/batch", response_model=GenerateBatchAnswer)
async def generate_batch(request: Request, body: GenerateBatchBody) -> Response:
    """Up to 64 answers at once, in the order of the requests.

    Each request is checked and answered on its own; one that fails has `{"error": {...}}` in its place.
    """
    exchange = exchange_of(request)
    exchange.refuse_query()
    exchange.min_version()  # a bad token fails the request, not every item by itself
    work = asyncio.gather(*(_one(exchange, item, place) for place, item in enumerate(body.requests)))
    return answer({"results": await until_gone(request, work)})


async def _one(exchange: Exchange, item: Any, place: int) -> dict[str, Any]:
    try:
        body = parsed(GenerateBody, item)
        if body.stream:
            raise InvalidInput("a batch is not streamed: leave stream out", param="stream")
        query = await query_of(exchange, body, f"{exchange.request_id}-{place}")
        found = await exchange.backend.generate(query)
        return _payload(exchange, query, found.started, found.ended, found.text, found.logprobs)
    except Exception as exception:
        return {"error": failure_of(exception, exchange.request_id).error}


async def _events(
    exchange: Exchange, query: GenerateQuery, started: Started, events: AsyncIterator[Started | Delta | Ended]
) -> AsyncIterator[bytes]:
    texts: list[str] = []
    logprobs: list[TokenLogprob] = []
    yield event({"started": _beginning(exchange, query, started)})
    async for found in events:
        if isinstance(found, Delta):
            texts.append(found.text)
            logprobs.extend(found.logprobs)
            if found.text:
                yield event({"text": found.text})
        elif isinstance(found, Ended):
            whole = _payload(exchange, query, started, found, "".join(texts), logprobs)
            yield event({"finished": whole})


def _beginning(exchange: Exchange, query: GenerateQuery, started: Started) -> dict[str, Any]:
    return {
        "user_id": query.user_id,
        "model": started.model,
        "adapter": started.adapter,
        "digest": started.digest,
        "source": started.source,
        "why": started.why,
        "tokens": {"prompt": started.prompt_tokens, "cached": started.cached_tokens},
        "context": context_facts(exchange, query, started),
        "version": exchange.token(started.version),
    }


def _payload(
    exchange: Exchange,
    query: GenerateQuery,
    started: Started,
    ended: Ended,
    text: str,
    logprobs: Sequence[TokenLogprob],
) -> dict[str, Any]:
    payload = {
        "output": text,
        **_beginning(exchange, query, started),
        "finish_reason": ended.finish_reason,
        "tokens": {
            "prompt": ended.prompt_tokens,
            "completion": ended.completion_tokens,
            "cached": started.cached_tokens,
        },
        **timings(ended),
    }
    if query.sampling.logprobs is not None:
        payload["logprobs"] = chat_tokens(logprobs)
    return payload
