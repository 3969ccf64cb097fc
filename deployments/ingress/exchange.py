"""One request at the edge, and the service behind it: everything a route needs."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from deployments.ingress.access import ANYBODY, Caller, Gate, caller_of
from deployments.ingress.backend import Backend
from deployments.ingress.own_backend import OwnBackend
from deployments.ingress.queries import QuerySpec, refuse_query
from deployments.ingress.uploads import Uploads
from deployments.ingress.versions import Acknowledged, required_version
from deployments.setting_groups import ContextSettings
from graph.errors import InvalidInput
from graph.schema import Idempotency, Operation, WriteRequest, WriteResult

MAX_KEY_CHARS = 200


class Service:
    """What the replica holds: the backend, made when first needed, and the writes it acknowledged."""

    def __init__(
        self,
        backend_factory: Callable[[], Backend],
        remembered: int,
        upload_dir: Path | None = None,
        context: ContextSettings | None = None,
        gate: Gate | None = None,
    ) -> None:
        self._backend_factory = backend_factory
        self._backend: Backend | None = None
        self.users = Acknowledged(remembered)
        self.items = Acknowledged(remembered)
        self.adapters = Acknowledged(remembered)  # by `scope/name` of the pointer, and "" for all of them
        self.uploads = Uploads(upload_dir)
        self.context = context or ContextSettings()
        self._gate = gate
        self._readiness: tuple[float, tuple[bool, dict[str, object]]] | None = None
        self._asking = asyncio.Lock()

    @property
    def backend(self) -> Backend:
        if self._backend is None:
            self._backend = self._backend_factory()
        return self._backend

    async def caller_of(self, headers: dict[bytes, bytes], path: str) -> Caller | None:
        """Who sent a request: anybody, where there are no keys; None without a key where none is needed."""
        return ANYBODY if self._gate is None else await caller_of(self._gate, headers, path)

    async def readiness(self, max_age_s: float) -> tuple[bool, dict[str, object]]:
        """Whether every part answers, as `Backend.ready` says; by an answer at most that old, others' too."""
        if not max_age_s:
            return await self.backend.ready()
        async with self._asking:
            if self._readiness is None or time.monotonic() - self._readiness[0] > max_age_s:
                self._readiness = time.monotonic(), await self.backend.ready()
            return self._readiness[1]

    async def keys_in_force(self, version: int) -> None:
        """Wait until this replica knows the keys of `version`."""
        if self._gate is not None:
            await self._gate.wait_for(version)


class Exchange:
    """A request's identity, headers and versions. The edge puts one into every HTTP scope."""

    __slots__ = ("caller", "headers", "request_id", "scope", "service")

    def __init__(self, service: Service, scope: Scope, headers: dict[bytes, bytes], request_id: str) -> None:
        self.service = service
        self.scope = scope
        self.headers = headers
        self.request_id = request_id
        self.caller: Caller | None = None  # set by the edge before anything is answered

    @property
    def backend(self) -> Backend:
        """What the caller may see of the service."""
        if self.caller is not None and self.caller.user_id is not None:
            return cast("Backend", OwnBackend(self.service.backend, self.caller.user_id))
        return self.service.backend

    def token(self, version: int) -> str:
        return f"{self.backend.store_id}.{version}"

    def min_version(
        self,
        token: str | None = None,
        *,
        user_id: str | None = None,
        item_ids: Iterable[str] = (),
        adapters: Iterable[str] = (),
    ) -> int:
        """What the views must have reached before this read is answered.

        `adapters`: pointers it depends on, as `scope/name`; "" is all of them.
        """
        store_id = self.backend.store_id
        version = 0
        header = self.headers.get(b"x-weft-min-version")
        if header is not None or token is not None:
            sent = None if header is None else header.decode("latin-1")
            version = required_version(store_id, sent, token)
        if user_id is not None:
            version = max(version, self.service.users.version_of(store_id, user_id))
        for item_id in item_ids:
            version = max(version, self.service.items.version_of(store_id, item_id))
        for pointer in adapters:
            version = max(version, self.service.adapters.version_of(store_id, pointer))
        return version

    def remember_adapter(self, pointer: str, version: int) -> None:
        """A change of `scope/name` was acknowledged: what is read here from now on has it."""
        store_id = self.backend.store_id
        self.service.adapters.remember(store_id, pointer, version)
        self.service.adapters.remember(store_id, "", version)

    def read(
        self, spec: QuerySpec, *, user_id: str | None = None, item_id: str | None = None
    ) -> tuple[dict[str, Any], int]:
        """The query's values and the version to wait for."""
        query = spec.parse(self.scope["query_string"])
        item_ids = () if item_id is None else (item_id,)
        return dict(query.values), self.min_version(query.token, user_id=user_id, item_ids=item_ids)

    def refuse_query(self) -> None:
        refuse_query(self.scope["query_string"])

    async def write(
        self,
        operations: Iterable[Operation],
        body: bytes = b"",
        *,
        users: Iterable[str] = (),
        items: Iterable[str] = (),
        takes_query: bool = False,
    ) -> WriteResult:
        """Commit, then remember the version for the users and items it concerns.

        `takes_query`: the route has read the query string; otherwise there must be none.
        """
        if not takes_query:
            self.refuse_query()
        request = WriteRequest(tuple(operations), self.idempotency(body))
        backend = self.backend
        result = await backend.write(request)
        store_id = backend.store_id
        for user_id in users:
            self.service.users.remember(store_id, user_id, result.version)
        for item_id in items:
            self.service.items.remember(store_id, item_id, result.version)
        return result

    def idempotency(self, body: bytes) -> Idempotency | None:
        """What the request's Idempotency-Key stands for; raises InvalidInput for a key that cannot be one."""
        header = self.headers.get(b"idempotency-key")
        if header is None:
            return None
        key = header.decode("latin-1")
        if not key.isascii() or not key.isprintable() or not 1 <= len(key) <= MAX_KEY_CHARS:
            raise InvalidInput(
                f"Idempotency-Key has 1 to {MAX_KEY_CHARS} printable ASCII characters",
                param="Idempotency-Key",
            )
        # The scope holds the path, ids included: the digest covers the body alone, and one key used for two
        # users must not let the second write pass for a repetition of the first.
        scope = f"{self.scope['method']} {self.scope['path']}"
        if self.caller is not None and self.caller.user_id is not None:
            scope = f"{scope} as {self.caller.user_id}"  # one user's keys tell nothing about another's
        return Idempotency(scope=scope, key=key, digest=hashlib.sha256(body).hexdigest())


def exchange_of(request: Request) -> Exchange:
    exchange: Exchange = request.scope["weft"]
    return exchange


def encoded(payload: object) -> bytes:
    """JSON bytes; numpy arrays and dataclasses are written as they are, unknown types as text."""
    return orjson.dumps(payload, default=str, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def answer(payload: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encoded(payload), status, headers, media_type="application/json")


def written(exchange: Exchange, result: WriteResult, **more: object) -> Response:
    """The answer to a write: the token that a later read may hand back."""
    return answer(
        {
            "version": exchange.token(result.version),
            "changed": result.changed,
            "replayed": result.replayed,
            **more,
        }
    )
