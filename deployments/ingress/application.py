"""create_app: the HTTP side of the service, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.ingress import (
    adapters,
    cache,
    chat,
    completions,
    embeddings,
    encoders,
    generate,
    items,
    keys,
    memories,
    models,
    nodes,
    operations,
    ratings,
    recommendations,
    search,
    users,
)
from deployments.ingress.access import PUBLIC_PATHS, Gate
from deployments.ingress.backend import Backend
from deployments.ingress.edge import Edge
from deployments.ingress.exchange import Service
from deployments.ingress.schemas import ErrorAnswer
from deployments.ingress.uploads import SLACK_BYTES
from deployments.setting_groups import ContextSettings

MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_UPLOAD_BYTES = 256 * 1024 * 1024

# OpenAPI does not say that a parameter may hold slashes.
_PATHS = {"/v1/models/{model_id}": "/v1/models/{model_id:path}"}
_DESCRIPTION = """
A live recommender: what was written is visible in the next read.

Every answer carries a `version`. Hand the highest one you have seen back as the header `x-weft-min-version`,
and no read is older than what you know. Every error has one shape, `{"error": {"code", "message", "type",
"param", "request_id", "retryable"}}`; `code` is stable; 429 and 503 say in `Retry-After` when to come back.
Writes of users, items, ratings and memories take an `Idempotency-Key`.
"""


def create_app(
    backend_factory: Callable[[], Backend],
    *,
    max_body_bytes: int = MAX_BODY_BYTES,
    max_upload_bytes: int = MAX_UPLOAD_BYTES,
    upload_dir: Path | None = None,
    remembered_nodes: int = 100_000,
    loopback_only: bool = False,
    context: ContextSettings | None = None,
    gate: Gate | None = None,
    server_echoes_id: bool = False,
    version: str = "0.1.0",
) -> FastAPI:
    """The application over a backend, which is made when the first request needs it.

    `max_upload_bytes`: the largest adapter that may be uploaded. `upload_dir`: the folder that receives it;
    None: adapters are put by their path in the inbox alone.
    `remembered_nodes`: users, and as many items and adapters, whose latest acknowledged version this replica
    keeps.
    `loopback_only`: answer requests that name this machine in `Host`, and take writes from web pages of this
    machine alone; for a service that has no other protection.
    `context`: what of a user's own graph goes into a prompt where a request does not say.
    `gate`: who knows the API keys; None: there are none, and anybody may do everything.
    `server_echoes_id`: see `Edge`.
    """
    service = Service(backend_factory, remembered_nodes, upload_dir, context, gate)
    largest = max_upload_bytes + SLACK_BYTES
    app = _Application(service, max_body_bytes, largest, loopback_only, server_echoes_id, version)
    for module in (
        recommendations,
        search,
        embeddings,
        chat,
        completions,
        generate,
        models,
        adapters,
        ratings,
        users,
        items,
        memories,
        nodes,
        encoders,
        cache,
        keys,
        operations,
    ):
        app.include_router(module.router)
    return app


class _Application(FastAPI):
    """FastAPI inside the edge, without the error layers of its own that would answer in another shape."""

    def __init__(
        self,
        service: Service,
        max_body_bytes: int,
        max_upload_bytes: int,
        loopback_only: bool,
        server_echoes_id: bool,
        version: str,
    ) -> None:
        super().__init__(
            title="Weft",
            version=version,
            description=_DESCRIPTION,
            redoc_url=None,
            redirect_slashes=False,
            responses={"4XX": {"model": ErrorAnswer}, "5XX": {"model": ErrorAnswer}},
        )
        self.state.service = service
        self._edge = Edge(
            self._routed,
            service,
            max_body_bytes,
            max_upload_bytes,
            self._template_of,
            loopback_only,
            server_echoes_id,
        )
        self._paths: list[tuple[Any, str, list[str]]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._edge(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        # Without ServerErrorMiddleware and ExceptionMiddleware, so that every exception reaches the edge.
        app: ASGIApp = AsyncExitStackMiddleware(self.router)
        for middleware, args, kwargs in reversed(self.user_middleware):
            app = middleware(app, *args, **kwargs)
        return app

    def openapi(self) -> dict[str, Any]:
        """With the key that all but the public routes may ask for."""
        made = self.openapi_schema is not None
        schema = super().openapi()
        if not made:
            schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["key"] = {"type": "http", "scheme": "bearer", "description": "An API key, `id.secret`."}
            for path, operations in schema["paths"].items():
                if path not in PUBLIC_PATHS:
                    for operation in operations.values():
                        operation["security"] = [{"key": []}]
        return schema

    async def _routed(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except HTTPException as exception:
            if exception.status_code != 405:
                raise
            methods = self._methods_of(scope["path"].removeprefix(scope.get("root_path", "")))
            raise HTTPException(
                405,
                f"{scope['method']} is not allowed here; allowed: {methods}",
                headers={"allow": methods},
            ) from None

    def _methods_of(self, path: str) -> str:
        """All methods of a path. A router knows only those of the first route that matches it."""
        return ", ".join(m for _, methods in self._taking(path) for m in methods)

    def _template_of(self, path: str) -> str | None:
        """The template of the first route that takes a path."""
        return next((template for template, _ in self._taking(path)), None)

    def _taking(self, path: str) -> Iterator[tuple[str, list[str]]]:
        """Templates that match a path, and their methods, in the order of the document."""
        if not self._paths:
            for documented, operations in self.openapi()["paths"].items():
                template = _PATHS.get(documented, documented)
                methods = [method.upper() for method in operations]
                self._paths.append((compile_path(template)[0], template, methods))
        return ((template, methods) for pattern, template, methods in self._paths if pattern.match(path))
