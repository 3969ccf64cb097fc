"""/v1/keys: who may call the service"""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from deployments.ingress.access import GuardedRoute
from deployments.ingress.exchange import answer, exchange_of, written
from deployments.ingress.key_schemas import KeyBody, KeysAnswer, NewKeyAnswer
from deployments.ingress.queries import IDEMPOTENT, PAGE
from deployments.ingress.schemas import WriteAnswer
from graph.api_keys import is_key_id, new_key
from graph.errors import InvalidInput, UnknownApiKey
from graph.schema import ApiKey, DeleteApiKey, PutApiKey
from graph.times import iso_time

router = APIRouter(tags=["keys"], route_class=GuardedRoute)


@router.post("/v1/keys", response_model=NewKeyAnswer)
async def make_key(request: Request, body: KeyBody) -> Response:
    """Make a key. `key` is shown this once: what is stored opens nothing.

    In force on every replica within `auth_max_lag_s`. An unknown user of a user's key is created. Takes no
    `Idempotency-Key`: a repeated request makes another key.
    """
    exchange = exchange_of(request)
    if b"idempotency-key" in exchange.headers:
        raise InvalidInput("a key is shown once, so this cannot be repeated", param="Idempotency-Key")
    made, now = new_key(), int(time.time())
    if body.expires_at is not None and body.expires_at <= now:
        raise InvalidInput("expires_at lies in the past", param="expires_at")
    user_id = body.user_id or ""
    operation = PutApiKey(made.key_id, body.role, made.digest, now, user_id, body.label, body.expires_at)
    result = await exchange.write([operation], users=[user_id] if user_id else [])
    await exchange.service.keys_in_force(result.version)
    entry = ApiKey(made.key_id, body.role, user_id, "", body.label, now, body.expires_at, result.version)
    return answer({"key": made.text, **_entry(entry), "version": exchange.token(result.version)})


@router.get("/v1/keys", response_model=KeysAnswer, openapi_extra=PAGE.openapi())
async def list_keys(request: Request) -> Response:
    """Keys that were not revoked, by id; expired ones are among them."""
    exchange = exchange_of(request)
    values, min_version = exchange.read(PAGE)
    page = await exchange.backend.api_keys(values["limit"], values["after"], min_version)
    keys = [_entry(record) for record in page.records if isinstance(record, ApiKey)]
    return answer({"keys": keys, "next": page.next, "version": exchange.token(page.version)})


@router.delete("/v1/keys/{key_id}", response_model=WriteAnswer, openapi_extra=IDEMPOTENT)
async def revoke_key(request: Request, key_id: str) -> Response:
    """Revoke a key: within `auth_max_lag_s` no replica takes it any more. Answers under way go on."""
    exchange = exchange_of(request)
    if not is_key_id(key_id):  # not repeated: somebody may have put the whole key there
        raise UnknownApiKey("that is no key's id: GET /v1/keys lists them", param="key_id")
    result = await exchange.write([DeleteApiKey(key_id)])
    await exchange.service.keys_in_force(result.version)
    return written(exchange, result)


def _entry(key: ApiKey) -> dict[str, object]:
    return {
        "key_id": key.key_id,
        "role": key.role,
        "user_id": key.user_id or None,
        "label": key.label,
        "created_at": iso_time(key.created_at),
        "expires_at": None if key.expires_at is None else iso_time(key.expires_at),
        "expired": key.expires_at is not None and key.expires_at <= time.time(),
    }
