"""Deployment handles behind the protocols that the rest of the code knows, with typed errors.

Calls take the ids of the requests they are made for along, in the place where Serve has its own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from typing import Any, TypeVar

from grpc.aio import AioRpcError
from ray.exceptions import RayError, RayTaskError
from ray.serve import context as serve_context  # Serve has no public way to name a request
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.messages import (
    EmbedAnswer,
    EmbedQuery,
    Int64,
    ItemVectors,
    TextModelInfo,
    UserQuery,
    UserVector,
)
from deployments.request_ids import current
from graph.errors import Overloaded, Unavailable, WeftError

T = TypeVar("T")

log = logging.getLogger(__name__)

_ALL_TIMEOUT_S = 5.0


async def call(handle: DeploymentHandle, method: str, *args: object) -> Any:
    """Call a deployment; raises Overloaded or Unavailable for what Serve and Ray raise on their own."""
    with _typed():
        return await copy_context().run(_begin, handle, method, *args)


def serve_request_ids() -> str:
    """Ids that came with the call to this replica; empty outside of one."""
    return str(serve_context._get_serve_request_context().request_id)


def _begin(handle: DeploymentHandle, method: str, *args: object) -> Any:
    _name_request()
    return getattr(handle, method).remote(*args)


def _broadcast(handle: DeploymentHandle, method: str, *args: object) -> Any:
    _name_request()
    return handle.broadcast(method, *args)


def _name_request() -> None:
    """Put the ids of the work at hand where Serve has its own. Run it in a context to be thrown away."""
    if ids := current():
        known = serve_context._get_serve_request_context()
        if known.request_id != ids:
            serve_context._serve_request_context.set(dataclasses.replace(known, request_id=ids))


def begun(handle: DeploymentHandle, method: str, *args: object) -> Any:
    """Start a call that Serve does not know as part of the HTTP request it is made for.

    The consistent-hash router takes all calls that wait at a time for one HTTP request for the same call: one
    of them would be made, and the others never end. Seen with Ray 2.60. It knows requests by another id than
    the one that is logged, which goes along.
    """
    ids = current()

    def begin() -> Any:
        if ids:
            serve_context._serve_request_context.set(serve_context._RequestContext(request_id=ids))
        return getattr(handle, method).remote(*args)

    return Context().run(begin)


async def call_apart(handle: DeploymentHandle, method: str, *args: object) -> Any:
    """Like `call`, started with `begun`."""
    with _typed():
        return await begun(handle, method, *args)


async def cancelling(handle: DeploymentHandle, method: str, *args: object) -> Any:
    """Like `call_apart`; when it is cancelled, so is the work at the replica."""
    with _typed():
        response = begun(handle, method, *args)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise


async def streamed(response: AsyncIterator[T], timeout_s: float) -> AsyncIterator[T]:
    """What a streaming call yields, with errors as `call` has them; Unavailable after so long a silence."""
    while True:
        try:
            with _typed():
                async with asyncio.timeout(timeout_s):
                    item = await anext(response)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Unavailable(f"nothing came for {timeout_s:g} s; repeat the request") from None
        yield item


@contextmanager
def _typed() -> Iterator[None]:
    try:
        yield
    except BackPressureError as error:
        raise Overloaded("too many requests are waiting; try again shortly") from error
    except RayTaskError:
        raise  # a defect in the callee, not its absence
    except (RayServeException, RayError, AioRpcError) as error:
        raise Unavailable(f"a part of the service is restarting ({type(error).__name__})") from error


async def answer(handle: DeploymentHandle, method: str, *args: object) -> Any:
    """Like `call`, for methods that return their errors: raises them."""
    found = await call(handle, method, *args)
    if isinstance(found, WeftError):
        raise found
    return found


async def call_all(handle: DeploymentHandle, method: str, *args: object, timeout_s: float) -> list[Any]:
    """Call every replica there is; one answer each. Raises Unavailable when one of them does not answer."""
    try:
        asked = copy_context().run(_broadcast, handle, method, *args)
        found: list[Any] = await asked.results_async(timeout_s=timeout_s)
    except RayTaskError:
        raise
    except (RayServeException, RayError, AioRpcError, TimeoutError) as error:
        raise Unavailable(f"a part of the service is restarting ({type(error).__name__})") from error
    return found


async def answer_if_well(handle: DeploymentHandle, method: str, *args: object) -> Any:
    """Like `answer`, for callers that can do without: a defect in the callee is logged and is Unavailable."""
    try:
        return await answer(handle, method, *args)
    except RayTaskError as error:
        log.exception("%s failed on an unexpected error", method)
        raise Unavailable(f"{method} failed on an unexpected {type(error.cause).__name__}") from error


class EmbedderHandle:
    """The text embedder as the indexer sees it."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def models(self) -> list[TextModelInfo]:
        found = await call_all(self._handle, "model", timeout_s=_ALL_TIMEOUT_S)
        models = [info for info in found if isinstance(info, TextModelInfo)]
        if not models:
            raise next(iter(found), Unavailable("no replica of the text embedder runs"))
        return models

    async def embed(self, query: EmbedQuery) -> EmbedAnswer:
        found: EmbedAnswer = await answer_if_well(self._handle, "embed", query)
        return found


class EncoderHandle:
    """The graph encoder as the retriever sees it."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def user_vectors(self, queries: list[UserQuery]) -> list[UserVector | WeftError]:
        sent_at = time.time()
        found: list[UserVector | WeftError] = await call(self._handle, "user_vectors", queries, sent_at)
        return found

    async def item_vectors(
        self,
        digest: str,
        since: int = -1,
        after_row: int = -1,
        rows: Int64 | None = None,
        min_version: int = 0,
    ) -> ItemVectors | WeftError:
        found: ItemVectors | WeftError = await call(
            self._handle, "item_vectors", digest, since, after_row, rows, min_version
        )
        return found
