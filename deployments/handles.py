"""Deployment handles behind the protocols that the rest of the code knows, with typed errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any, TypeVar

from grpc.aio import AioRpcError
from ray.exceptions import RayError, RayTaskError
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
from graph.errors import Overloaded, Unavailable, WeftError

T = TypeVar("T")

log = logging.getLogger(__name__)

_ALL_TIMEOUT_S = 5.0


async def call(handle: DeploymentHandle, method: str, *args: object) -> Any:
    """Call a deployment; raises Overloaded or Unavailable for what Serve and Ray raise on their own."""
    with _typed():
        return await getattr(handle, method).remote(*args)


def begun(handle: DeploymentHandle, method: str, *args: object) -> Any:
    """Start a call that Serve does not know as part of the HTTP request it is made for.

    The consistent-hash router takes all calls that wait at a time for one HTTP request for the same call: one
    of them would be made, and the others never end. Seen with Ray 2.60.
    """
    return Context().run(getattr(handle, method).remote, *args)


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
        found: list[Any] = await handle.broadcast(method, *args).results_async(timeout_s=timeout_s)
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
        found: list[UserVector | WeftError] = await call(self._handle, "user_vectors", queries)
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
