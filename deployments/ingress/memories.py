"""What a user said (memories), how it hangs together (relations, graph) and what a prompt gets (context)"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response

from deployments.ingress.access import GuardedRoute
from deployments.ingress.exchange import Exchange, answer, exchange_of, written
from deployments.ingress.identifiers import check_id
from deployments.ingress.memory_queries import CONTEXT, GRAPH, RELATION
from deployments.ingress.memory_schemas import (
    ContextAnswer,
    MemoriesAnswer,
    MemoriesWrittenAnswer,
    MemoryAnswer,
    MemoryBody,
    MemoryRow,
    MemorySearchAnswer,
    MemorySearchBody,
    MemoryWrite,
    RelationRow,
    RelationWrite,
    UserGraphAnswer,
    target,
)
from deployments.ingress.queries import IDEMPOTENT, PAGE, READ
from deployments.ingress.schemas import WriteAnswer
from deployments.ingress.user_context import question_about, source_of
from deployments.memory_messages import MemoryQuery, MemoryRecord
from graph.errors import InvalidInput
from graph.schema import (
    MAX_ROWS_PER_WRITE,
    DeleteMemory,
    DeleteRelation,
    Operation,
    PutMemory,
    PutRelation,
)
from graph.times import iso_time

router = APIRouter(tags=["memories"], route_class=GuardedRoute)

_MEMORIES = "/v1/users/{user_id}/memories"
_MEMORY = _MEMORIES + "/{memory_id}"
_RELATIONS = "/v1/users/{user_id}/relations"


@router.post(_MEMORIES, response_model=MemoriesWrittenAnswer, openapi_extra=IDEMPOTENT)
async def put_memories(request: Request, user_id: str, body: Annotated[MemoryWrite, Body()]) -> Response:
    """Remember one fact, `{"text"}`, or many at once, `{"memories": [...]}`, with their relations.

    An unknown user is created. Many facts become visible together or not at all. A memory of this user that
    has the `memory_id` already is replaced. With an `Idempotency-Key` a repeated request is answered like the
    first one and written once.
    """
    exchange = exchange_of(request)
    check_id(user_id, "user_id")
    rows = [body] if isinstance(body, MemoryRow) else body.memories
    content = await request.body()
    memory_ids = [
        _made_id(exchange, content, place) if row.memory_id is None else row.memory_id
        for place, row in enumerate(rows)
    ]
    if len(set(memory_ids)) < len(memory_ids):
        raise InvalidInput("two of the memories have the same memory_id", param="memories")
    named = list(zip(memory_ids, rows, strict=True))
    # Relations last: they may lead to any memory of the request.
    operations: list[Operation] = [_operation(user_id, memory_id, row) for memory_id, row in named]
    for memory_id, row in named:
        for relation in row.relations:
            operations.append(PutRelation(user_id, memory_id, relation.name, *relation.target()))
    if len(operations) > MAX_ROWS_PER_WRITE:
        raise InvalidInput(
            f"{len(operations):,} memories and relations, allowed are {MAX_ROWS_PER_WRITE:,} together; "
            "send several smaller requests",
            param="memories",
        )
    result = await exchange.write(operations, content, users=[user_id])
    return written(exchange, result, memory_ids=memory_ids)


@router.get(_MEMORIES, response_model=MemoriesAnswer, openapi_extra=PAGE.openapi())
async def list_memories(request: Request, user_id: str) -> Response:
    """All that a user said, oldest first."""
    exchange = exchange_of(request)
    values, min_version = exchange.read(PAGE, user_id=check_id(user_id, "user_id"))
    page = await exchange.backend.memories(user_id, values["limit"], values["after"], min_version)
    now = int(time.time())
    return answer(
        {
            "user_id": user_id,
            "memories": [_entry(record, now) for record in page.records],
            "next": page.next,
            "version": exchange.token(page.version),
        }
    )


@router.post(_MEMORIES + "/search", response_model=MemorySearchAnswer)
async def search_memories(request: Request, user_id: str, body: MemorySearchBody) -> Response:
    """What of a user's own memories means what the query says."""
    exchange = exchange_of(request)
    exchange.refuse_query()
    min_version = exchange.min_version(body.min_version, user_id=check_id(user_id, "user_id"))
    query = MemoryQuery(user_id, body.query, body.n, valid_only=body.valid_only, min_version=min_version)
    found = await exchange.backend.search_memories(query)
    now = int(time.time())
    return answer(
        {
            "user_id": user_id,
            "memories": [_entry(entry.record, now) | {"score": entry.score} for entry in found.found],
            "text_model": found.text_model,
            "version": exchange.token(found.version),
        }
    )


@router.get(_MEMORY, response_model=MemoryAnswer, openapi_extra=READ.openapi())
async def read_memory(request: Request, user_id: str, memory_id: str) -> Response:
    """One memory of a user, with the relations that leave it."""
    exchange = exchange_of(request)
    _, min_version = exchange.read(READ, user_id=check_id(user_id, "user_id"))
    record = await exchange.backend.memory(user_id, check_id(memory_id, "memory_id"), min_version)
    return answer(_entry(record, int(time.time())) | {"version": exchange.token(record.version)})


@router.put(_MEMORY, response_model=WriteAnswer, openapi_extra=IDEMPOTENT)
async def put_memory(request: Request, user_id: str, memory_id: str, body: MemoryBody) -> Response:
    """Create a memory or replace what it says; its relations stay."""
    exchange = exchange_of(request)
    operation = _operation(check_id(user_id, "user_id"), check_id(memory_id, "memory_id"), body)
    return written(exchange, await exchange.write([operation], await request.body(), users=[user_id]))


@router.delete(_MEMORY, response_model=WriteAnswer, openapi_extra=IDEMPOTENT)
async def delete_memory(request: Request, user_id: str, memory_id: str) -> Response:
    """Forget a memory, with the relations that leave it and those that lead to it."""
    exchange = exchange_of(request)
    operation = DeleteMemory(check_id(memory_id, "memory_id"), check_id(user_id, "user_id"))
    return written(exchange, await exchange.write([operation], users=[user_id]))


@router.post(_RELATIONS, response_model=WriteAnswer, openapi_extra=IDEMPOTENT)
async def put_relations(request: Request, user_id: str, body: Annotated[RelationWrite, Body()]) -> Response:
    """Relate a memory to an item or to another memory of the user; many with `{"relations": [...]}`."""
    exchange = exchange_of(request)
    check_id(user_id, "user_id")
    rows = [body] if isinstance(body, RelationRow) else body.relations
    operations = [PutRelation(user_id, row.memory_id, row.name, *row.target()) for row in rows]
    return written(exchange, await exchange.write(operations, await request.body(), users=[user_id]))


@router.delete(_RELATIONS, response_model=WriteAnswer, openapi_extra=RELATION.openapi())
async def delete_relation(request: Request, user_id: str) -> Response:
    """Take a relation back; what it joined stays."""
    exchange = exchange_of(request)
    query_string: bytes = exchange.scope["query_string"]
    values = RELATION.parse(query_string).values
    try:
        kind, node_id = target(values["item_id"], values["to_memory_id"], "item_id and to_memory_id")
    except ValueError as error:
        raise InvalidInput(str(error), param="item_id") from None
    operation = DeleteRelation(
        check_id(user_id, "user_id"), values["memory_id"], values["name"], kind, node_id
    )
    # The query says which relation, as bodies do elsewhere: one key must not stand for two relations.
    result = await exchange.write([operation], query_string, users=[user_id], takes_query=True)
    return written(exchange, result)


@router.get("/v1/users/{user_id}/graph", response_model=UserGraphAnswer, openapi_extra=GRAPH.openapi())
async def read_graph(request: Request, user_id: str) -> Response:
    """A user's own part of the graph: ratings, memories and what these are related to."""
    exchange = exchange_of(request)
    values, min_version = exchange.read(GRAPH, user_id=check_id(user_id, "user_id"))
    found = await exchange.backend.user_graph(user_id, values["depth"], values["limit"], min_version)
    return answer(
        {
            "user_id": found.user_id,
            "nodes": [
                {"kind": node.kind, "id": node.node_id, "label": node.label, "depth": node.depth}
                for node in found.graph.nodes
            ],
            "edges": [
                {
                    "source": {"kind": edge.source_kind, "id": edge.source_id},
                    "name": edge.name,
                    "target": {"kind": edge.target_kind, "id": edge.target_id},
                    "value": edge.value,
                }
                for edge in found.graph.edges
            ],
            "complete": found.graph.complete,
            "version": exchange.token(found.version),
        }
    )


@router.get("/v1/users/{user_id}/context", response_model=ContextAnswer, openapi_extra=CONTEXT.openapi())
async def read_context(request: Request, user_id: str) -> Response:
    """What a prompt with this question would hold about the user, line by line with its sources."""
    exchange = exchange_of(request)
    explain_item = CONTEXT.parse(exchange.scope["query_string"]).values["explain_item"]
    values, min_version = exchange.read(CONTEXT, user_id=check_id(user_id, "user_id"), item_id=explain_item)
    question, max_tokens = values["query"], values["max_tokens"]
    if max_tokens is None:
        max_tokens = exchange.service.context.max_tokens
    if question is None:
        question = "" if explain_item is None else await question_about(exchange, explain_item, min_version)
    lines = await exchange.backend.context_lines(user_id, question, min_version, explain_item)
    fitted = await exchange.backend.fit_context(lines, max_tokens)
    return answer(
        {
            "user_id": user_id,
            "text": fitted.text,
            "tokens": fitted.tokens,
            "max_tokens": max_tokens,
            "counted_by": fitted.counted_by,
            "lines": [
                {
                    "kind": line.kind,
                    "source": source_of(line),
                    "text": line.text,
                    "score": line.score,
                    "why": line.why,
                }
                for line in fitted.lines
            ],
            "missing": list(fitted.missing),
            "timings_ms": asdict(fitted.timings),
            "version": exchange.token(fitted.version),
        }
    )


def _operation(user_id: str, memory_id: str, body: MemoryBody) -> PutMemory:
    return PutMemory(memory_id, user_id, body.text, body.valid_at, body.invalid_at, body.source)


def _made_id(exchange: Exchange, content: bytes, place: int) -> str:
    """An id for the memory at a place of a request: random, or the same whenever the request is repeated."""
    key = exchange.idempotency(content)
    if key is None:
        return f"mem_{secrets.token_hex(10)}"
    # The scope holds the user's id. And the digest: long after it was forgotten that the key was used,
    # another body under it must not replace what the first one wrote.
    parts = "\n".join((key.scope, key.key, key.digest, str(place)))
    return f"mem_{hashlib.sha256(parts.encode()).hexdigest()[:20]}"


def _entry(record: MemoryRecord, now: int) -> dict[str, Any]:
    memory = record.memory
    return {
        "memory_id": memory.memory_id,
        "user_id": record.user_id,
        "text": memory.text,
        "valid_at": _iso_time(memory.valid_at),
        "invalid_at": _iso_time(memory.invalid_at),
        "source": memory.source,
        "valid": memory.holds_at(now),
        "relations": [
            {"name": edge.name, "kind": edge.target_kind, "id": edge.target_id, "title": edge.title}
            for edge in record.relations
        ],
    }


def _iso_time(seconds: int | None) -> str | None:
    return None if seconds is None else iso_time(seconds)
