"""What the routes of generation share: a query from a body, with context; the start of a stream; facts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request

from deployments.generation_messages import Delta, Ended, GenerateAnswer, GenerateQuery, Started
from deployments.ingress.event_stream import close, until_gone
from deployments.ingress.exchange import Exchange
from deployments.ingress.generation_schemas import AnyGenerationBody, GenerateBody
from deployments.ingress.user_context import candidates_for, context_facts, question_about, question_of
from models.adapter_pointers import GLOBAL_NAME
from models.language_model.protocol import Message, TokenLogprob


async def asked(request: Request, exchange: Exchange, body: AnyGenerationBody) -> GenerateQuery:
    """The query a body asks for, with its context; given up when the client goes away."""
    return await until_gone(request, query_of(exchange, body))


async def query_of(
    exchange: Exchange, body: AnyGenerationBody, request_id: str | None = None
) -> GenerateQuery:
    """The query a body asks for, with what is known about its user.

    Raises InvalidInput and ForeignToken, and UnknownItem for an item to explain.
    """
    query = _bare_query(exchange, body, request_id)
    wanted = body.context
    if wanted.explain_item is not None and isinstance(body, GenerateBody) and body.asks_nothing:
        question = Message("user", await question_about(exchange, wanted.explain_item))
        query = replace(query, prompt=(*body.prompt(), question))
    defaults = exchange.service.context
    if query.user_id is None or not wanted.is_wanted(defaults.enabled):
        return query
    lines = await candidates_for(exchange, query.user_id, question_of(query.prompt), wanted.explain_item)
    return replace(query, context=lines, max_context_tokens=wanted.max_context_tokens or defaults.max_tokens)


def _bare_query(exchange: Exchange, body: AnyGenerationBody, request_id: str | None) -> GenerateQuery:
    selection = body.selection
    # Who comes with a user's key and names nobody is that user.
    user_id = body.user_id
    if user_id is None and exchange.caller is not None:
        user_id = exchange.caller.user_id
    blend = tuple((part.adapter, part.weight) for part in selection.blend or ())
    named = [text for text in (body.model, selection.adapter, *(part[0] for part in blend)) if text]
    return GenerateQuery(
        prompt=body.prompt(),
        sampling=body.sampling(),
        user_id=user_id,
        domain=selection.domain,
        adapter=selection.adapter,
        blend=blend,
        model=body.model,
        min_version=exchange.min_version(
            user_id=user_id, adapters=pointers(user_id, selection.domain, named)
        ),
        request_id=exchange.request_id if request_id is None else request_id,
    )


def pointers(user_id: str | None, domain: str | None = None, named: Iterable[str] = ()) -> list[str]:
    """The pointers an answer may depend on, as `scope/name`."""
    found = [f"global/{GLOBAL_NAME}", *("/".join(reference.split("/")[:2]) for reference in named)]
    if user_id is not None:
        found.append(f"user/{user_id}")
    if domain is not None:
        found.append(f"domain/{domain}")
    return found


async def generated(request: Request, exchange: Exchange, query: GenerateQuery) -> GenerateAnswer:
    """A whole answer; given up when the client goes away."""
    return await until_gone(request, exchange.backend.generate(query))


async def begun(
    request: Request, exchange: Exchange, query: GenerateQuery
) -> tuple[Started, AsyncIterator[Started | Delta | Ended]]:
    """A stream whose first event is here: what fails before it is an ordinary error."""
    events = exchange.backend.stream(query)
    try:
        started = await until_gone(request, anext(events))
        if not isinstance(started, Started):
            raise TypeError(f"a stream began with {type(started).__name__} in place of Started")
    except BaseException:
        await close(events)
        raise
    return started, events


def chosen(exchange: Exchange, query: GenerateQuery, started: Started) -> dict[str, Any]:
    """Under `weft`: whose adapter answers, and why; what it is told about the user."""
    return {
        "user": query.user_id,
        "adapter": started.adapter,
        "digest": started.digest,
        "source": started.source,
        "why": started.why,
        "version": exchange.token(started.version),
        "cached_tokens": started.cached_tokens,
        "context": context_facts(exchange, query, started),
    }


def timings(ended: Ended) -> dict[str, float]:
    return {
        "queued_ms": ended.queued_ms,
        "first_token_ms": ended.first_token_ms,
        "latency_ms": ended.latency_ms,
    }


def usage(started: Started, ended: Ended) -> dict[str, Any]:
    return {
        "prompt_tokens": ended.prompt_tokens,
        "completion_tokens": ended.completion_tokens,
        "total_tokens": ended.prompt_tokens + ended.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": started.cached_tokens},
    }


def chat_tokens(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Tokens with their log-probabilities as OpenAI's chat has them."""
    return [
        {
            **_token(entry.token, entry.logprob),
            "top_logprobs": [_token(token, logprob) for token, _, logprob in entry.top],
        }
        for entry in logprobs
    ]


def _token(token: str, logprob: float) -> dict[str, Any]:
    # The replacement character stands for bytes that are no character by themselves: they are not known.
    known = "\ufffd" not in token
    return {"token": token, "bytes": list(token.encode()) if known else None, "logprob": logprob}
