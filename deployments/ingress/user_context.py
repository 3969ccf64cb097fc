"""What of a user's own graph goes into an answer: asked for before it is generated, told with it."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from deployments.generation_messages import GenerateQuery, Started
from deployments.ingress.exchange import Exchange
from deployments.memory_messages import ContextCandidates
from graph.context_lines import EXPLAIN_QUESTION, ContextLine
from graph.errors import NotYet, Unavailable, UnknownUser
from graph.schema import MAX_TEXT_CHARS
from models.language_model.protocol import Prompt

logger = logging.getLogger("weft.ingress")


def why_suggested(title: str) -> str:
    """The question that is asked where nothing but an item is named."""
    return EXPLAIN_QUESTION.format(title=title)


async def question_about(exchange: Exchange, item_id: str, min_version: int = 0) -> str:
    """The question why an item is suggested. Raises UnknownItem."""
    min_version = max(min_version, exchange.min_version(item_ids=[item_id]))
    found = await exchange.backend.item(item_id, min_version)
    return why_suggested(found.item.title)


def question_of(prompt: Prompt) -> str:
    """The last thing that a user says in a conversation; empty where nobody says anything."""
    if isinstance(prompt, str):
        return prompt[:MAX_TEXT_CHARS]
    said = (turn.content for turn in reversed(prompt) if turn.role == "user")
    return next(said, "")[:MAX_TEXT_CHARS]


async def candidates_for(
    exchange: Exchange, user_id: str, question: str, explain_item: str | None
) -> ContextCandidates:
    """Lines for a prompt. A user nobody knows and a service that is away give none, and `missing` says so.

    Waits for what this user was last known to have written; where that is not there in time, what was there
    before goes in, unless the client asks for a version of its own. Raises UnknownItem, InvalidInput, NotYet.
    """
    min_version = exchange.min_version(
        user_id=user_id, item_ids=() if explain_item is None else (explain_item,)
    )
    lines = partial(exchange.backend.context_lines, user_id, question, explain_item=explain_item)
    promised = exchange.min_version() > 0
    try:
        try:
            return await lines(min_version=min_version)
        except NotYet:
            if promised:
                raise
            found = await lines(min_version=0)
            return replace(found, missing=(*found.missing, "writes"))
    except UnknownUser:
        return ContextCandidates((), 0, ("user",))
    except Unavailable as error:
        if promised and isinstance(error, NotYet):
            raise
        logger.warning("request %s is answered without context: %s", exchange.request_id, error.message)
        return ContextCandidates((), 0, ("context",))


def context_facts(exchange: Exchange, query: GenerateQuery, started: Started) -> dict[str, Any] | None:
    """Whose lines the prompt holds, in its order; None where no context was wanted.

    `version` is null where nothing could be read.
    """
    if query.context is None:
        return None
    fitted = started.context
    read = not {"user", "context"} & set(query.context.missing)
    return {
        "sources": [] if fitted is None else [source_of(line) for line in fitted.lines],
        "tokens": 0 if fitted is None else fitted.tokens,
        "missing": list(query.context.missing if fitted is None else fitted.missing),
        "timings_ms": asdict((fitted or query.context).timings),
        "version": exchange.token((fitted or query.context).version) if read else None,
    }


def source_of(line: ContextLine) -> dict[str, str]:
    return {"kind": line.source_kind, "id": line.source_id}
