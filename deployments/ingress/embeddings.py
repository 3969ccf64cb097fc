"""/v1/embeddings: texts to vectors, in OpenAI's shape"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from deployments.ingress.access import GuardedRoute
from deployments.ingress.exchange import answer, exchange_of
from deployments.ingress.text_schemas import EmbeddingsAnswer, EmbeddingsBody
from deployments.messages import EmbedAnswer, EmbedQuery

router = APIRouter(tags=["text"], route_class=GuardedRoute)


@router.post("/v1/embeddings", response_model=EmbeddingsAnswer)
async def embed(request: Request, body: EmbeddingsBody) -> Response:
    """Vectors of texts, in their order."""
    exchange = exchange_of(request)
    exchange.refuse_query()
    query = EmbedQuery(
        texts=tuple(body.input),
        model=body.model,
        prompt=body.weft.prompt,
        dimensions=body.dimensions,
        truncate=body.weft.truncate,
    )
    return answer(_payload(await exchange.backend.embed(query), body.encoding_format == "base64"))


def _payload(found: EmbedAnswer, as_base64: bool) -> dict[str, Any]:
    # Rows of it are contiguous, as the JSON writer wants them: others it would write as text.
    vectors = np.ascontiguousarray(found.vectors, dtype="<f4")
    rows = (base64.b64encode(row).decode() for row in vectors) if as_base64 else vectors
    tokens = int(found.tokens[found.tokens > 0].sum(dtype=np.int64))
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": n, "embedding": row} for n, row in enumerate(rows)],
        "model": found.model_name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "weft": {"text_model": found.text_model, "cached": found.hits, "truncated": found.truncated},
    }
