"""/v1/ratings and the ratings of a user"""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from deployments.ingress.access import GuardedRoute
from deployments.ingress.exchange import answer, exchange_of, written
from deployments.ingress.identifiers import check_id
from deployments.ingress.queries import IDEMPOTENT, PAGE
from deployments.ingress.schemas import RatingRow, RatingsAnswer, RatingWrite, WriteAnswer
from deployments.messages import RatingRecord
from graph.schema import DeleteRating, PutRating

router = APIRouter(tags=["ratings"], route_class=GuardedRoute)


@router.post("/v1/ratings", response_model=WriteAnswer, openapi_extra=IDEMPOTENT)
async def put_ratings(request: Request, body: Annotated[RatingWrite, Body()]) -> Response:
    """Rate one item, `{"user_id", "item_id", "value"}`, or many at once, `{"ratings": [...]}`.

    An unknown user is created, an unknown item refused. Many ratings become visible together or not at all.
    With an `Idempotency-Key` a repeated request is answered like the first and written once.
    """
    exchange = exchange_of(request)
    rows = [body] if isinstance(body, RatingRow) else body.ratings
    now = int(time.time())
    operations = [
        PutRating(row.user_id, row.item_id, row.value, now if row.timestamp is None else row.timestamp)
        for row in rows
    ]
    users, items = {row.user_id for row in rows}, {row.item_id for row in rows}
    return written(exchange, await exchange.write(operations, await request.body(), users=users, items=items))


@router.get("/v1/users/{user_id}/ratings", response_model=RatingsAnswer, openapi_extra=PAGE.openapi())
async def list_ratings(request: Request, user_id: str) -> Response:
    """What a user has rated."""
    exchange = exchange_of(request)
    values, min_version = exchange.read(PAGE, user_id=check_id(user_id, "user_id"))
    page = await exchange.backend.ratings(user_id, values["limit"], values["after"], min_version)
    ratings = [
        {"item_id": record.item_id, "value": record.value, "timestamp": record.timestamp}
        for record in page.records
        if isinstance(record, RatingRecord)
    ]
    version = exchange.token(page.version)
    return answer({"user_id": user_id, "ratings": ratings, "next": page.next, "version": version})


@router.delete("/v1/users/{user_id}/ratings/{item_id}", response_model=WriteAnswer, openapi_extra=IDEMPOTENT)
async def delete_rating(request: Request, user_id: str, item_id: str) -> Response:
    """Take a rating back."""
    exchange = exchange_of(request)
    operation = DeleteRating(check_id(user_id, "user_id"), check_id(item_id, "item_id"))
    return written(exchange, await exchange.write([operation], users=[user_id], items=[item_id]))
