"""/v1/models: what `model` of a generation may name, in OpenAI's shape"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from deployments.generation_messages import LanguageModelInfo
from deployments.ingress.access import GuardedRoute
from deployments.ingress.exchange import answer, exchange_of
from deployments.ingress.generation_answers import ModelEntry, ModelsAnswer
from graph.errors import UnknownModel

router = APIRouter(tags=["generation"], route_class=GuardedRoute)


@router.get("/v1/models", response_model=ModelsAnswer)
async def list_models(request: Request) -> Response:
    """The base model, then every adapter that is active, as `scope/name`."""
    exchange = exchange_of(request)
    exchange.refuse_query()
    info = await exchange.backend.language_model()
    return answer({"object": "list", "data": [_entry(info, name) for name in (info.model, *info.adapters)]})


@router.get("/v1/models/{model_id:path}", response_model=ModelEntry)
async def read_model(request: Request, model_id: str) -> Response:
    """One of them."""
    exchange = exchange_of(request)
    exchange.refuse_query()
    info = await exchange.backend.language_model()
    if model_id != info.model and model_id not in info.adapters:
        shown = model_id[:80].encode("utf-8", "replace").decode()
        raise UnknownModel(f"there is no model {shown!r}; /v1/models lists them", param="model")
    return answer(_entry(info, model_id))


def _entry(info: LanguageModelInfo, name: str) -> dict[str, Any]:
    # Nobody knows when a model was made; OpenAI's clients expect a number.
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "weft",
    }
