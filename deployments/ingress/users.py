"""/v1/users"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from deployments.ingress.access import GuardedRoute
from deployments.ingress.exchange import answer, exchange_of, written
from deployments.ingress.identifiers import check_id
from deployments.ingress.queries import IDEMPOTENT, PAGE, READ
from deployments.ingress.schemas import UserAnswer, UserBody, UsersAnswer, WriteAnswer
from deployments.messages import UserRecord
from graph.schema import DeleteUser, PutUser

router = APIRouter(tags=["users"], route_class=GuardedRoute)


@router.get("/v1/users", response_model=UsersAnswer, openapi_extra=PAGE.openapi())
async def list_users(request: Request) -> Response:
    """All users, in the order of their creation."""
    exchange = exchange_of(request)
    values, min_version = exchange.read(PAGE)
    page = await exchange.backend.users(values["limit"], values["after"], min_version)
    users = [_entry(record) for record in page.records if isinstance(record, UserRecord)]
    return answer({"users": users, "next": page.next, "version": exchange.token(page.version)})


@router.get("/v1/users/{user_id}", response_model=UserAnswer, openapi_extra=READ.openapi())
async def read_user(request: Request, user_id: str) -> Response:
    """One user."""
    exchange = exchange_of(request)
    _, min_version = exchange.read(READ, user_id=check_id(user_id, "user_id"))
    record = await exchange.backend.user(user_id, min_version)
    return answer(_entry(record) | {"version": exchange.token(record.version)})


@router.put("/v1/users/{user_id}", response_model=WriteAnswer, openapi_extra=IDEMPOTENT)
async def put_user(request: Request, user_id: str, body: UserBody) -> Response:
    """Create a user or replace its attributes; its ratings stay."""
    exchange = exchange_of(request)
    operation = PutUser(check_id(user_id, "user_id"), dict(body.attributes))
    result = await exchange.write([operation], await request.body(), users=[user_id])
    return written(exchange, result)


@router.delete("/v1/users/{user_id}", response_model=WriteAnswer, openapi_extra=IDEMPOTENT)
async def delete_user(request: Request, user_id: str) -> Response:
    """Remove a user with everything that is the user's own."""
    exchange = exchange_of(request)
    operation = DeleteUser(check_id(user_id, "user_id"))
    return written(exchange, await exchange.write([operation], users=[user_id]))


def _entry(record: UserRecord) -> dict[str, Any]:
    return {
        "user_id": record.user.user_id,
        "attributes": dict(record.user.attributes),
        "num_ratings": record.num_ratings,
    }
