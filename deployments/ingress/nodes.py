"""/v1/nodes: the vectors of users and items"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from deployments.ingress.exchange import answer, exchange_of
from deployments.ingress.identifiers import check_id
from deployments.ingress.queries import EMBEDDING
from deployments.ingress.schemas import EmbeddingAnswer

router = APIRouter(tags=["nodes"])


@router.get(
    "/v1/nodes/{node_id}/embedding", response_model=EmbeddingAnswer, openapi_extra=EMBEDDING.openapi()
)
async def node_embedding(request: Request, node_id: str) -> Response:
    """The structural embedding of a user or an item, by the encoder it names."""
    exchange = exchange_of(request)
    check_id(node_id, "node_id")
    # The id may be a user's or an item's: wait for what was acknowledged for either.
    values, min_version = exchange.read(EMBEDDING, user_id=node_id, item_id=node_id)
    found = await exchange.backend.node_embedding(node_id, values["kind"], min_version)
    return answer(
        {
            "node_id": found.node_id,
            "kind": found.kind,
            "embedding": found.vector,
            "encoder": found.encoder,
            "version": exchange.token(found.version),
        }
    )
