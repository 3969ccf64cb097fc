"""/livez, /readyz, /v1/status"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from deployments.ingress.access import GuardedRoute
from deployments.ingress.errors import failure
from deployments.ingress.exchange import Exchange, answer, exchange_of
from deployments.ingress.schemas import LiveAnswer, ReadyAnswer

router = APIRouter(tags=["operations"], route_class=GuardedRoute)

_STRANGERS_S = 0.5
_ALIVE = b'{"status":"ok"}'


async def alive(exchange: Exchange) -> bytes:
    """The answer's JSON. `edge` calls this without going through FastAPI."""
    exchange.refuse_query()
    return _ALIVE


@router.get("/livez", response_model=LiveAnswer)
async def livez(request: Request) -> Response:
    """The process answers; nothing is said about the parts behind it."""
    return Response(await alive(exchange_of(request)), media_type="application/json")


@router.get("/readyz", response_model=ReadyAnswer)
async def readyz(request: Request) -> Response:
    """Every part answers at full speed; 503 until then. `parts`, the state of each, needs a key."""
    exchange = exchange_of(request)
    exchange.refuse_query()
    # How the service is built is nothing for those who only ask whether it runs; and every part is asked, so
    # that strangers share an answer.
    stranger = exchange.caller is None
    ready, parts = await exchange.service.readiness(_STRANGERS_S if stranger else 0.0)
    told = {} if exchange.caller is None or exchange.caller.role == "user" else {"parts": parts}
    if ready:
        return answer({"ready": True, **told})
    waiting = failure(503, "not_ready", "not ready", exchange.request_id, retryable=True)
    return answer({"ready": False, **told, "error": waiting.error}, 503, waiting.headers)


@router.get("/v1/status")
async def status(request: Request) -> Response:
    """Versions, sizes, followers and the running encoder, for operators."""
    exchange = exchange_of(request)
    exchange.refuse_query()
    return answer({"store_id": exchange.backend.store_id, **await exchange.backend.status()})
