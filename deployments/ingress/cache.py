"""/v1/cache: the embedding cache, for operators"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from deployments.ingress.access import GuardedRoute
from deployments.ingress.exchange import answer, exchange_of
from deployments.ingress.text_schemas import CacheStatisticsAnswer, InvalidateAnswer, InvalidateBody
from deployments.messages import CacheInvalidation

router = APIRouter(tags=["cache"], route_class=GuardedRoute)


@router.get("/v1/cache/stats", response_model=CacheStatisticsAnswer)
async def cache_statistics(request: Request) -> Response:
    """Hits, misses, tiers and the store behind them."""
    exchange = exchange_of(request)
    exchange.refuse_query()
    return answer(await exchange.backend.cache_statistics())


@router.post("/v1/cache/invalidate", response_model=InvalidateAnswer)
async def invalidate_cache(request: Request, body: InvalidateBody) -> Response:
    """Drop entries. Vectors of items are in the store and stay."""
    exchange = exchange_of(request)
    exchange.refuse_query()
    what = CacheInvalidation(everything=body.all is True, model=body.model, texts=tuple(body.texts or ()))
    return answer({"dropped": await exchange.backend.invalidate_cache(what)})
