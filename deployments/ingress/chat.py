"""/v1/chat/completions, in OpenAI's shape"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from deployments.generation_messages import Delta, Ended, GenerateQuery, Started
from deployments.ingress.access import GuardedRoute
from deployments.ingress.event_stream import DONE, EVENT_STREAM, EventStream, event
from deployments.ingress.exchange import Exchange, answer, exchange_of
from deployments.ingress.generation import asked, begun, chat_tokens, chosen, generated, timings, usage
from deployments.ingress.generation_answers import ChatAnswer
from deployments.ingress.generation_schemas import ChatBody
from models.language_model.protocol import TokenLogprob

router = APIRouter(tags=["generation"], route_class=GuardedRoute)


@router.post(
    "/v1/chat/completions",
    response_model=ChatAnswer,
    responses={200: {"content": {EVENT_STREAM: {"schema": {"type": "string"}}}}},
)
async def complete_chat(request: Request, body: ChatBody) -> Response:
    """The next turn of a conversation, with the adapter of `user`; as server-sent events with `stream`."""
    exchange = exchange_of(request)
    exchange.refuse_query()
    query = await asked(request, exchange, body)
    if body.stream:
        started, events = await begun(request, exchange, query)
        return EventStream(exchange, _chunks(exchange, query, body, started, events), events)
    found = await generated(request, exchange, query)
    return answer(
        {
            **_head(exchange, "chat.completion", found.started),
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": found.text, "refusal": None},
                    "logprobs": _logprobs(query, found.logprobs),
                    "finish_reason": found.ended.finish_reason,
                }
            ],
            "usage": usage(found.started, found.ended),
            "weft": chosen(exchange, query, found.started) | timings(found.ended),
        }
    )


async def _chunks(
    exchange: Exchange,
    query: GenerateQuery,
    body: ChatBody,
    started: Started,
    events: AsyncIterator[Started | Delta | Ended],
) -> AsyncIterator[bytes]:
    head = _head(exchange, "chat.completion.chunk", started)
    if body.wants_usage:
        head["usage"] = None

    def chunk(delta: dict[str, Any], reason: str | None = None, logprobs: object = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**head, "choices": [choice]}

    first = chunk({"role": "assistant", "content": ""})
    yield event(first | {"weft": chosen(exchange, query, started)})
    async for found in events:
        if isinstance(found, Delta):
            yield event(chunk({"content": found.text}, logprobs=_logprobs(query, found.logprobs)))
        elif isinstance(found, Ended):
            yield event(chunk({}, found.finish_reason) | {"weft": timings(found)})
            if body.wants_usage:
                yield event({**head, "choices": [], "usage": usage(started, found)})
    yield DONE


def _head(exchange: Exchange, kind: str, started: Started) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{exchange.request_id}",
        "object": kind,
        "created": int(time.time()),
        "model": started.model,
    }


def _logprobs(query: GenerateQuery, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if query.sampling.logprobs is None:
        return None
    return {"content": chat_tokens(logprobs), "refusal": None}
