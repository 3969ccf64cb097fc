"""/v1/adapters: versions of LoRA adapters, and which of them are active for whom"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from starlette.exceptions import HTTPException

from deployments.generation_messages import (
    ActivateAdapter,
    AdapterState,
    AdapterVersion,
    AdapterWritten,
    PutAdapter,
)
from deployments.ingress.access import GuardedRoute
from deployments.ingress.adapter_schemas import (
    PUT_BODY,
    ActivateBody,
    AdaptersAnswer,
    AdapterStateAnswer,
    AdapterWriteAnswer,
    HistoryAnswer,
    NothingBody,
    PutAdapterAnswer,
    PutAdapterBody,
    check_pointer,
)
from deployments.ingress.bodies import parsed_json
from deployments.ingress.exchange import Exchange, answer, exchange_of
from deployments.ingress.queries import ADAPTERS, READ
from deployments.ingress.uploads import TAR, media_type
from models.adapter_pointers import AdapterScope, check_version_label

router = APIRouter(tags=["adapters"], route_class=GuardedRoute)

_POINTER = "/v1/adapters/{scope}/{name}"
_VERSION = _POINTER + "/versions/{version}"


@router.get("/v1/adapters", response_model=AdaptersAnswer, openapi_extra=ADAPTERS.openapi())
async def list_adapters(request: Request) -> Response:
    """Versions that were put, what is active, and what waits in the inbox."""
    exchange = exchange_of(request)
    query = ADAPTERS.parse(exchange.scope["query_string"])
    scope, name = query.values["scope"], query.values["name"]
    found = await exchange.backend.adapters(
        query.values["limit"],
        query.values["after"],
        scope,
        name,
        exchange.min_version(query.token, adapters=[""]),
    )
    return answer(
        {
            "adapters": [_version(entry) for entry in found.versions],
            "states": [_state(exchange, entry) for entry in found.states],
            "candidates": [
                {"path": c.path, "digest": c.digest, "size_bytes": c.size_bytes, "problem": c.problem}
                for c in found.candidates
            ],
            "next": found.next,
            "version": exchange.token(found.version),
        }
    )


@router.put(_VERSION, response_model=PutAdapterAnswer, openapi_extra=PUT_BODY)
async def put_adapter(request: Request, scope: str, name: str, version: str) -> Response:
    """Check an adapter's files and keep them under a label; this activates nothing.

    They are sent as a tar, or named by their path in the inbox. A label keeps its files: the same ones again
    are fine, others are a 409.
    """
    exchange = exchange_of(request)
    exchange.refuse_query()
    checked = check_pointer(scope, name)
    check_version_label(version)
    min_version = _min_version(exchange, checked, name)
    kind = media_type(exchange.headers)
    if kind == TAR:
        async with exchange.service.uploads.received(request) as upload:
            what = PutAdapter(checked, name, version, upload=upload)
            written = await exchange.backend.put_adapter(what, min_version)
    elif kind == "application/json":
        body = parsed_json(PutAdapterBody, await request.body())
        what = PutAdapter(checked, name, version, path=body.path)
        written = await exchange.backend.put_adapter(what, min_version)
    else:
        raise HTTPException(415, f"send content-type: application/json with a path, or {TAR} with the files")
    assert written.put is not None
    return _written(exchange, checked, name, written, adapter=_version(written.put))


@router.delete(_VERSION, response_model=AdapterWriteAnswer)
async def delete_adapter(request: Request, scope: str, name: str, version: str) -> Response:
    """Forget a version; refused while it is active or the one to roll back to."""
    exchange = exchange_of(request)
    exchange.refuse_query()
    checked = check_pointer(scope, name)
    check_version_label(version)
    min_version = _min_version(exchange, checked, name)
    written = await exchange.backend.delete_adapter(checked, name, version, min_version)
    return _written(exchange, checked, name, written)


@router.post(_POINTER + "/activate", response_model=AdapterStateAnswer)
async def activate_adapter(request: Request, scope: str, name: str, body: ActivateBody) -> Response:
    """Make a version active, or several that users are divided among; what was active is kept for a rollback.

    Requests that carry the answered `version` are generated with it; those in flight finish on the old one.
    """
    exchange = exchange_of(request)
    exchange.refuse_query()
    checked = check_pointer(scope, name)
    what = ActivateAdapter(checked, name, body.shares())
    written = await exchange.backend.activate_adapter(what, _min_version(exchange, checked, name))
    return _moved(exchange, checked, name, written)


@router.post(_POINTER + "/rollback", response_model=AdapterStateAnswer)
async def roll_back_adapter(
    request: Request, scope: str, name: str, body: Annotated[NothingBody | None, Body()] = None
) -> Response:
    """Make what was active before active again."""
    exchange = exchange_of(request)
    exchange.refuse_query()
    checked = check_pointer(scope, name)
    written = await exchange.backend.roll_back_adapter(checked, name, _min_version(exchange, checked, name))
    return _moved(exchange, checked, name, written)


@router.get(_POINTER + "/history", response_model=HistoryAnswer, openapi_extra=READ.openapi())
async def adapter_history(request: Request, scope: str, name: str) -> Response:
    """Every state there was."""
    exchange = exchange_of(request)
    query = READ.parse(exchange.scope["query_string"])
    checked = check_pointer(scope, name)
    min_version = exchange.min_version(query.token, adapters=[f"{checked}/{name}"])
    states = await exchange.backend.adapter_history(checked, name, min_version)
    return answer({"history": [_state(exchange, state) for state in states]})


def _min_version(exchange: Exchange, scope: AdapterScope, name: str) -> int:
    """What a write has to have seen: at least the pointer's last change that was acknowledged here."""
    return exchange.min_version(adapters=[f"{scope}/{name}"])


def _moved(exchange: Exchange, scope: AdapterScope, name: str, written: AdapterWritten) -> Response:
    assert written.state is not None
    return _written(exchange, scope, name, written, state=_state(exchange, written.state))


def _written(
    exchange: Exchange, scope: AdapterScope, name: str, written: AdapterWritten, **more: object
) -> Response:
    exchange.remember_adapter(f"{scope}/{name}", written.version)
    return answer(
        {
            "version": exchange.token(written.version),
            "changed": int(not written.replayed),
            "replayed": written.replayed,
            **more,
        }
    )


def _version(entry: AdapterVersion) -> dict[str, Any]:
    return {
        "scope": entry.scope,
        "name": entry.name,
        "version": entry.version,
        "digest": entry.digest,
        "size_bytes": entry.size_bytes,
        "rank": entry.rank,
        "modules": list(entry.modules),
        "created_at": entry.created_at,
        "active": entry.active,
        "resident": entry.resident,
    }


def _state(exchange: Exchange, state: AdapterState) -> dict[str, Any]:
    return {
        "scope": state.scope,
        "name": state.name,
        "arms": [{"version": a.version, "digest": a.digest, "weight": a.weight} for a in state.arms],
        "previous": [{"version": a.version, "digest": a.digest, "weight": a.weight} for a in state.previous],
        "action": state.action,
        "version": exchange.token(state.version),
    }
