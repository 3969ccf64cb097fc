"""Recommendations: one user (the hot path), many users, an anonymous session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from deployments.ingress.errors import failure_of
from deployments.ingress.exchange import Exchange, answer, encoded, exchange_of
from deployments.ingress.identifiers import check_id
from deployments.ingress.queries import RECOMMEND
from deployments.ingress.schemas import ManyAnswer, ManyBody, RecommendationsAnswer, SessionBody
from deployments.messages import RecommendAnswer, RecommendQuery

NDJSON = "application/x-ndjson"

router = APIRouter(tags=["recommendations"])


async def recommend_user(exchange: Exchange, user_id: str) -> bytes:
    """The answer's JSON. `edge` calls this without going through FastAPI."""
    query = RECOMMEND.parse(exchange.scope["query_string"])
    min_version = exchange.min_version(query.token, user_id=check_id(user_id, "user_id"))
    found = await exchange.backend.recommend(
        RecommendQuery(user_id=user_id, min_version=min_version, **query.values)
    )
    return encoded(_payload(exchange, found))


@router.get(
    "/v1/users/{user_id}/recommendations",
    response_model=RecommendationsAnswer,
    openapi_extra=RECOMMEND.openapi(),
)
async def recommendations(request: Request, user_id: str) -> Response:
    """What this user may like, with the rated items that speak for it."""
    body = await recommend_user(exchange_of(request), user_id)
    return Response(body, media_type="application/json")


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


def _payload(exchange: Exchange, found: RecommendAnswer) -> dict[str, object]:
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
