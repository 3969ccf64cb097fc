"""/v1/nodes: the vectors of users, items and a user's own memories"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from deployments.ingress.access import GuardedRoute
from deployments.ingress.exchange import answer, exchange_of
from deployments.ingress.identifiers import check_id
from deployments.ingress.queries import EMBEDDING
from deployments.ingress.schemas import EmbeddingAnswer
from graph.errors import InvalidInput

router = APIRouter(tags=["nodes"], route_class=GuardedRoute)


@router.get(
    "/v1/nodes/{node_id}/embedding", response_model=EmbeddingAnswer, openapi_extra=EMBEDDING.openapi()
)
async def node_embedding(request: Request, node_id: str) -> Response:
    """The structural embedding of a user or an item, or of a user's memory, by the encoder it names."""
    exchange = exchange_of(request)
    check_id(node_id, "node_id")
    # The id may be a user's or an item's: wait for what was acknowledged for either.
    values, min_version = exchange.read(EMBEDDING, user_id=node_id, item_id=node_id)
    kind, owner = values["kind"], values["user_id"]
    if (kind == "memory") != (owner is not None):
        raise InvalidInput(
            "user_id says whose memory it is: kind=memory needs it, and nothing else takes it",
            param="user_id",
        )
    if owner is not None:
        min_version = max(min_version, exchange.min_version(user_id=owner))
    found = await exchange.backend.node_embedding(node_id, kind, owner, min_version)
    return answer(
        {
            "node_id": found.node_id,
            "kind": found.kind,
            "embedding": found.vector,
            "encoder": found.encoder,
            "version": exchange.token(found.version),
        }
    )
