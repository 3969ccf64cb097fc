"""/v1/encoders: the generations of the structural encoder"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from deployments.ingress.access import GuardedRoute
from deployments.ingress.exchange import answer, exchange_of, written
from deployments.ingress.identifiers import check_id
from deployments.ingress.schemas import ActivateAnswer, EncodersAnswer

router = APIRouter(tags=["encoders"], route_class=GuardedRoute)


@router.get("/v1/encoders", response_model=EncodersAnswer)
async def list_encoders(request: Request) -> Response:
    """Every encoder in the data directory and which one is active."""
    exchange = exchange_of(request)
    exchange.refuse_query()
    encoders = [
        {"digest": e.digest, "state": e.state, "dim": e.dim, "metadata": e.metadata}
        for e in await exchange.backend.encoders()
    ]
    return answer({"encoders": encoders, "next": None})


@router.post("/v1/encoders/{digest}/activate", response_model=ActivateAnswer)
async def activate_encoder(request: Request, digest: str) -> Response:
    """Make an encoder the running one; answers when every replica uses it."""
    exchange = exchange_of(request)
    exchange.refuse_query()
    result = await exchange.backend.activate_encoder(check_id(digest, "digest"))
    return written(exchange, result, encoder=digest)
