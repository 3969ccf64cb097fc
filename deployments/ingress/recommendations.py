"""Recommendations: one user (the hot path, or explained), many users, an anonymous session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from deployments.ingress.access import GuardedRoute
from deployments.ingress.errors import failure_of
from deployments.ingress.event_stream import EVENT_STREAM, EventStream, until_gone
from deployments.ingress.exchange import Exchange, answer, encoded, exchange_of
from deployments.ingress.explanations import Explanations
from deployments.ingress.identifiers import check_id
from deployments.ingress.queries import RECOMMEND
from deployments.ingress.schemas import ManyAnswer, ManyBody, RecommendationsAnswer, SessionBody
from deployments.messages import RecommendAnswer, RecommendQuery

NDJSON = "application/x-ndjson"

router = APIRouter(tags=["recommendations"], route_class=GuardedRoute)


async def recommend_user(exchange: Exchange, user_id: str) -> bytes | None:
    """The answer's JSON, None if it is to be explained. `edge` calls this without going through FastAPI."""
    query = RECOMMEND.parse(exchange.scope["query_string"])
    if query.explain:
        return None
    min_version = exchange.min_version(query.token, user_id=check_id(user_id, "user_id"))
    found = await exchange.backend.recommend(
        RecommendQuery(user_id=user_id, min_version=min_version, **query.values)
    )
    return encoded(_payload(exchange, found))


@router.get(
    "/v1/users/{user_id}/recommendations",
    response_model=RecommendationsAnswer,
    openapi_extra=RECOMMEND.openapi(),
    responses={200: {"content": {EVENT_STREAM: {"schema": {"type": "string"}}}}},
)
async def recommendations(request: Request, user_id: str) -> Response:
    """What this user may like, with the rated items that speak for it.

    With `explain=true` the language model says of the first items why, in `explanation`; where it cannot,
    that is null and `explanation_error` has the code. With `Accept: text/event-stream` as well the answer
    comes as events: `recommendations` at once, `explanation` with a piece of a text as often as there is more
    of it, `explained` with the whole of one, and `[DONE]`.
    """
    exchange = exchange_of(request)
    body = await recommend_user(exchange, user_id)
    if body is not None:
        return Response(body, media_type="application/json")
    return await _explained(request, exchange, user_id)


async def _explained(request: Request, exchange: Exchange, user_id: str) -> Response:
    query = RECOMMEND.parse(exchange.scope["query_string"])
    min_version = exchange.min_version(query.token, user_id=check_id(user_id, "user_id"))
    asked = RecommendQuery(user_id=user_id, min_version=min_version, **query.values)
    found = await until_gone(request, exchange.backend.recommend(asked))
    payload = _payload(exchange, found)
    explanations = Explanations(exchange, user_id, found.recommendations, query.token)
    if EVENT_STREAM in exchange.headers.get(b"accept", b"").decode("latin-1"):
        return EventStream(exchange, explanations.events(payload))
    return answer(await until_gone(request, explanations.added_to(payload)))


@router.post(
    "/v1/recommendations",
    response_model=ManyAnswer,
    responses={200: {"content": {NDJSON: {"schema": {"type": "string"}}}}},
)
async def recommend_many(request: Request, body: ManyBody) -> Response:
    """Recommendations for many users, in the order asked for.

    A user that cannot be answered gets `{"user_id", "error"}` in its place. With
    `Accept: application/x-ndjson` each result is a line, sent as soon as it and all before it are known.
    """
    exchange = exchange_of(request)
    exchange.refuse_query()
    exchange.min_version(body.min_version)  # a bad token fails the request, not every user by itself
    if NDJSON in exchange.headers.get(b"accept", b"").decode("latin-1"):
        return StreamingResponse(_lines(exchange, body), media_type=NDJSON)
    results = await asyncio.gather(*(_one_of_many(exchange, body, user_id) for user_id in body.user_ids))
    return answer({"results": results})


@router.post("/v1/recommendations/session", response_model=RecommendationsAnswer)
async def recommend_session(request: Request, body: SessionBody) -> Response:
    """Recommendations for someone without an id, from what was liked just now; nothing is stored."""
    exchange = exchange_of(request)
    exchange.refuse_query()
    query = RecommendQuery(
        session=tuple((item.item_id, item.value) for item in body.items),
        min_version=exchange.min_version(body.min_version, item_ids=(item.item_id for item in body.items)),
        **body.options(),
    )
    return answer(_payload(exchange, await exchange.backend.recommend(query)))


async def _one_of_many(exchange: Exchange, body: ManyBody, user_id: str) -> dict[str, object]:
    try:
        query = RecommendQuery(
            user_id=user_id,
            min_version=exchange.min_version(body.min_version, user_id=user_id),
            **body.options(),
        )
        return _payload(exchange, await exchange.backend.recommend(query))
    except Exception as exception:
        return {"user_id": user_id, "error": failure_of(exception, exchange.request_id).error}


async def _lines(exchange: Exchange, body: ManyBody) -> AsyncIterator[bytes]:
    tasks = [asyncio.create_task(_one_of_many(exchange, body, user_id)) for user_id in body.user_ids]
    try:
        for task in tasks:
            yield encoded(await task) + b"\n"
    finally:
        # The client may have gone after the first lines.
        for task in tasks:
            task.cancel()


def _payload(exchange: Exchange, found: RecommendAnswer) -> dict[str, Any]:
    version = exchange.token(found.version)
    item_version = version if found.item_version == found.version else exchange.token(found.item_version)
    return {
        "user_id": found.user_id,
        "basis": found.basis,
        # orjson writes slotted dataclasses at half the speed of dicts, these included.
        "recommendations": [
            {
                "item_id": entry.item_id,
                "title": entry.title,
                "score": entry.score,
                "because": [
                    {"item_id": r.item_id, "title": r.title, "contribution": r.contribution}
                    for r in entry.because
                ],
            }
            for entry in found.recommendations
        ],
        "version": version,
        "item_version": item_version,
        "encoder": found.encoder,
    }
