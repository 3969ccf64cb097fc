"""The part of the ingress' backend that generates and manages adapters: calls to the language model."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from typing import Any, TypeVar, cast

from ray.serve.handle import DeploymentHandle

from deployments.context_fitting import BYTES, fitted, num_bytes
from deployments.generation_messages import (
    ActivateAdapter,
    AdapterListing,
    AdapterState,
    AdapterWritten,
    Delta,
    Ended,
    GenerateAnswer,
    GenerateQuery,
    LanguageModelInfo,
    PutAdapter,
    Started,
)
from deployments.handles import begun, call_all, call_apart, cancelling, streamed
from deployments.memory_messages import ContextCandidates, FittedContext
from deployments.settings import Settings
from graph.errors import ModelUnavailable, NotYet, Unavailable, WeftError
from models.adapter_pointers import AdapterScope

T = TypeVar("T")

logger = logging.getLogger("weft.ingress")

_STATUS_TIMEOUT_S = 2.0
_ADAPTER_TIMEOUT_S = 120.0  # a large upload is checked in that
_GRACE_S = 5.0  # a replica ends what takes too long itself; this is for one that does not answer at all
_RETRY_S = 0.01


class GenerationBackend:
    """Generation and adapters over a handle; None where the language model is switched off.

    A user's calls carry the user as session, so that they meet the replica that has the user's adapter.
    """

    def __init__(self, settings: Settings, handle: DeploymentHandle | None) -> None:
        self._handle_or_none = handle
        self._wait_s = settings.ingress.min_version_timeout_s
        self._timeout_s = settings.language_model.timeout_s + _GRACE_S
        self._count_s = settings.context.timeout_s

    async def generate(self, query: GenerateQuery) -> GenerateAnswer:
        handle = self._of(query.user_id)
        found: GenerateAnswer = await self._asking(
            handle, query.min_version, self._timeout_s, lambda: cancelling(handle, "generate", query)
        )
        return found

    async def stream(self, query: GenerateQuery) -> AsyncIterator[Started | Delta | Ended]:
        """Events as they come; closing it cancels the generation at the replica."""
        handle = self._of(query.user_id)
        deadline = time.monotonic() + self._wait_s
        for attempt in count():
            response = begun(handle.options(stream=True), "stream", query)
            ended = False
            try:
                async for events in streamed(response, self._timeout_s):
                    last = events[-1]
                    ended = isinstance(last, Ended | WeftError)
                    if isinstance(last, NotYet):
                        break
                    for event in events:
                        if isinstance(event, WeftError):
                            raise event
                        yield event
                else:
                    if not ended:
                        raise Unavailable("a part of the service is restarting; the answer is cut off")
                    return
            finally:
                if not ended:
                    response.cancel()
            left = deadline - time.monotonic()
            if left <= 0:
                raise last
            await call_apart(handle, "wait_for", query.min_version, left)
            if attempt:
                await asyncio.sleep(_RETRY_S)  # another replica answers than waited

    async def language_model(self) -> LanguageModelInfo:
        found: LanguageModelInfo = await self._manage("info", 0)
        return found

    async def fit_context(self, lines: ContextCandidates, max_tokens: int) -> FittedContext:
        """The lines as a prompt would have them; counted in bytes where no model here counts tokens."""
        try:
            async with asyncio.timeout(self._count_s):
                found = await call_apart(self._of(None), "fit_context", lines, max_tokens)
        except (WeftError, TimeoutError) as error:
            found = error if isinstance(error, WeftError) else Unavailable("no answer in time")
        if not isinstance(found, WeftError):
            return cast("FittedContext", found)
        logger.info("a context is counted in bytes: %s", found.message)
        return fitted(lines, max_tokens, num_bytes, BYTES)

    async def adapters(
        self, limit: int, after: str | None, scope: AdapterScope | None, name: str | None, min_version: int
    ) -> AdapterListing:
        found: AdapterListing = await self._manage("list_adapters", min_version, limit, after, scope, name)
        return found

    async def put_adapter(self, what: PutAdapter, min_version: int) -> AdapterWritten:
        found: AdapterWritten = await self._manage("put_adapter", min_version, what)
        return found

    async def activate_adapter(self, what: ActivateAdapter, min_version: int) -> AdapterWritten:
        found: AdapterWritten = await self._manage("activate_adapter", min_version, what)
        return found

    async def roll_back_adapter(self, scope: AdapterScope, name: str, min_version: int) -> AdapterWritten:
        found: AdapterWritten = await self._manage("roll_back_adapter", min_version, scope, name)
        return found

    async def delete_adapter(
        self, scope: AdapterScope, name: str, version: str, min_version: int
    ) -> AdapterWritten:
        found: AdapterWritten = await self._manage("delete_adapter", min_version, scope, name, version)
        return found

    async def adapter_history(
        self, scope: AdapterScope, name: str, min_version: int
    ) -> tuple[AdapterState, ...]:
        found: tuple[AdapterState, ...] = await self._manage("adapter_history", min_version, scope, name)
        return found

    async def language_model_status(self) -> dict[str, Any]:
        """Of every replica: the first one's with the others behind it, and what is wrong with any of them."""
        if self._handle_or_none is None:
            return {"enabled": False}
        replicas = await call_all(self._handle_or_none, "status", timeout_s=_STATUS_TIMEOUT_S)
        if not replicas:
            raise Unavailable("no replica of the language model runs")
        failures = (replica["failure"] for replica in replicas)
        return {
            "enabled": True,
            **replicas[0],
            "failure": next(filter(None, failures), None),
            "replicas": replicas if len(replicas) > 1 else [replicas[0]["replica"]],
        }

    # ---------------------------------------------------------------------------------------------- internals

    def _of(self, user_id: str | None) -> DeploymentHandle:
        if self._handle_or_none is None:
            raise ModelUnavailable(
                "the language model is switched off: set WEFT_LANGUAGE_MODEL__ENABLED=true to generate"
            )
        return self._handle_or_none.options(session_id=user_id) if user_id else self._handle_or_none

    async def _manage(self, method: str, min_version: int, *args: object) -> Any:
        handle = self._of(None)
        everything = args if method == "info" else (*args, min_version)
        return await self._asking(
            handle, min_version, _ADAPTER_TIMEOUT_S, lambda: call_apart(handle, method, *everything)
        )

    async def _asking(
        self, handle: DeploymentHandle, min_version: int, timeout_s: float, ask: Callable[[], Awaitable[Any]]
    ) -> Any:
        """Ask until the replica has reached `min_version`; raises what it answers."""
        deadline = time.monotonic() + self._wait_s
        for attempt in count():
            try:
                async with asyncio.timeout(timeout_s):
                    found = await ask()
            except TimeoutError:
                raise Unavailable(f"no answer within {timeout_s:g} s; repeat the request") from None
            if not isinstance(found, WeftError):
                return found
            left = deadline - time.monotonic()
            if not isinstance(found, NotYet) or left <= 0:
                raise found
            await call_apart(handle, "wait_for", min_version, left)
            if attempt:
                await asyncio.sleep(_RETRY_S)  # another replica answers than waited
        raise AssertionError("unreachable")
