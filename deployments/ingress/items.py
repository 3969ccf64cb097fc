"""/v1/items"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from deployments.ingress.access import GuardedRoute
from deployments.ingress.exchange import answer, exchange_of, written
from deployments.ingress.identifiers import check_id
from deployments.ingress.queries import IDEMPOTENT, PAGE, READ, SIMILAR
from deployments.ingress.schemas import (
    ItemAnswer,
    ItemBody,
    ItemsAnswer,
    ItemsBody,
    SimilarItemsAnswer,
    WriteAnswer,
)
from deployments.messages import ItemRecord
from graph.schema import DeleteItem, PutItem

router = APIRouter(tags=["items"], route_class=GuardedRoute)


@router.get("/v1/items", response_model=ItemsAnswer, openapi_extra=PAGE.openapi())
async def list_items(request: Request) -> Response:
    """All items, in the order of their creation."""
    exchange = exchange_of(request)
    values, min_version = exchange.read(PAGE)
    page = await exchange.backend.items(values["limit"], values["after"], min_version)
    items = [_entry(record) for record in page.records if isinstance(record, ItemRecord)]
    return answer({"items": items, "next": page.next, "version": exchange.token(page.version)})


@router.post("/v1/items", response_model=WriteAnswer, openapi_extra=IDEMPOTENT)
async def put_items(request: Request, body: ItemsBody) -> Response:
    """Create or replace many items at once; they become visible together."""
    exchange = exchange_of(request)
    operations = [_operation(row.item_id, row) for row in body.items]
    item_ids = [row.item_id for row in body.items]
    return written(exchange, await exchange.write(operations, await request.body(), items=item_ids))


@router.get("/v1/items/{item_id}", response_model=ItemAnswer, openapi_extra=READ.openapi())
async def read_item(request: Request, item_id: str) -> Response:
    """One item."""
    exchange = exchange_of(request)
    _, min_version = exchange.read(READ, item_id=check_id(item_id, "item_id"))
    record = await exchange.backend.item(item_id, min_version)
    return answer(_entry(record) | {"version": exchange.token(record.version)})


@router.put("/v1/items/{item_id}", response_model=WriteAnswer, openapi_extra=IDEMPOTENT)
async def put_item(request: Request, item_id: str, body: ItemBody) -> Response:
    """Create an item or replace its metadata; its ratings stay."""
    exchange = exchange_of(request)
    operation = _operation(check_id(item_id, "item_id"), body)
    return written(exchange, await exchange.write([operation], await request.body(), items=[item_id]))


@router.delete("/v1/items/{item_id}", response_model=WriteAnswer, openapi_extra=IDEMPOTENT)
async def delete_item(request: Request, item_id: str) -> Response:
    """Remove an item with its ratings."""
    exchange = exchange_of(request)
    operation = DeleteItem(check_id(item_id, "item_id"))
    return written(exchange, await exchange.write([operation], items=[item_id]))


@router.get("/v1/items/{item_id}/similar", response_model=SimilarItemsAnswer, openapi_extra=SIMILAR.openapi())
async def similar_items(request: Request, item_id: str) -> Response:
    """The items closest to one item, by who rated them or by what they say."""
    exchange = exchange_of(request)
    values, min_version = exchange.read(SIMILAR, item_id=check_id(item_id, "item_id"))
    found = await exchange.backend.similar(
        item_id, values["n"], values["tags"], values["exclude"], min_version, by=values["by"]
    )
    return answer(
        {
            "item_id": found.item_id,
            "similar": [
                {"item_id": entry.item_id, "title": entry.title, "score": entry.score}
                for entry in found.similar
            ],
            "version": exchange.token(found.version),
            "item_version": exchange.token(found.item_version),
            "by": found.basis,
            "model": found.model,
            "encoder": found.model if found.basis == "graph" else None,
        }
    )


def _operation(item_id: str, body: ItemBody) -> PutItem:
    return PutItem(item_id, body.title, tuple(body.tags), body.year, body.text)


def _entry(record: ItemRecord) -> dict[str, Any]:
    item = record.item
    return {
        "item_id": item.item_id,
        "title": item.title,
        "tags": list(item.tags),
        "year": item.year,
        "text": item.text,
        "num_ratings": record.num_ratings,
    }
