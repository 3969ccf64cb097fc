"""/v1/search and /v1/rerank: what is closest to a text, of the items or of documents sent along"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from deployments.ingress.access import GuardedRoute
from deployments.ingress.exchange import answer, exchange_of
from deployments.ingress.text_schemas import RerankAnswer, RerankBody, SearchAnswer, SearchBody
from deployments.messages import RerankQuery, SearchQuery

router = APIRouter(tags=["text"], route_class=GuardedRoute)


@router.post("/v1/search", response_model=SearchAnswer)
async def search(request: Request, body: SearchBody) -> Response:
    """The items whose title, tags and text mean what the query says."""
    exchange = exchange_of(request)
    exchange.refuse_query()
    query = SearchQuery(body.query, min_version=exchange.min_version(body.min_version), **body.options())
    found = await exchange.backend.search(query)
    return answer(
        {
            "query": body.query,
            "results": [{"item_id": e.item_id, "title": e.title, "score": e.score} for e in found.results],
            "version": exchange.token(found.version),
            "text_model": found.text_model,
            "waiting": found.waiting,
        }
    )


@router.post("/v1/rerank", response_model=RerankAnswer)
async def rerank(request: Request, body: RerankBody) -> Response:
    """Documents in the order of their closeness to a query, in the shape of Cohere and Jina."""
    exchange = exchange_of(request)
    exchange.refuse_query()
    documents = tuple(document.text for document in body.documents)
    top_n = None if body.top_n is None else min(body.top_n, len(documents))
    found = await exchange.backend.rerank(RerankQuery(body.query, documents, top_n))
    results: list[dict[str, object]] = [
        {"index": index, "relevance_score": score}
        for index, score in zip(found.order, found.scores, strict=True)
    ]
    if body.return_documents:
        for result, index in zip(results, found.order, strict=True):
            result["document"] = {"text": documents[index]}
    return answer({"model": found.text_model, "results": results, "usage": {"total_tokens": found.tokens}})
