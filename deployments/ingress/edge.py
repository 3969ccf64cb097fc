"""The outermost layer, pure ASGI: request ids, counts, foreign pages, the size of bodies, errors, hot routes.

FastAPI spends some 100 microseconds of CPU on a request before the route's first line. On two cores that is
the ceiling of the service, so `/livez` and the recommendations of one user are answered here, by the same
functions that their documented routes call.
"""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import time
from collections.abc import Callable
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments import metrics, slow_calls
from deployments.ingress.access import check_access
from deployments.ingress.errors import Failure, failure_of
from deployments.ingress.exchange import Exchange, Service
from deployments.ingress.loopback import LoopbackOnly
from deployments.ingress.operations import alive
from deployments.ingress.recommendations import recommend_user
from deployments.ingress.uploads import is_upload
from deployments.request_ids import about

logger = logging.getLogger("weft.ingress")

_RECOMMENDATIONS = re.compile(r"/v1/users/([^/]+)/recommendations")
_RECOMMENDATIONS_ROUTE = "/v1/users/{user_id}/recommendations"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_Headers = list[tuple[bytes, bytes]]
_JSON = (b"content-type", b"application/json")
_METHODS = frozenset(("GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH"))
_GONE = 499  # what proxies log for a client that did not wait for its answer


class Edge:
    """Wraps the application; every answer leaves through here with its `x-request-id`.

    `max_upload_bytes` bounds the bodies of uploads in place of `max_body_bytes`: they go to a file.
    `loopback_only`: refuse what does not come from this machine, see `LoopbackOnly`.
    `template_of`: of the route that a path belongs to, for what is refused before it gets there.
    `server_echoes_id`: the server puts the `x-request-id` that a request came with on its answer by itself.
    """

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        max_body_bytes: int,
        max_upload_bytes: int,
        template_of: Callable[[str], str | None],
        loopback_only: bool = False,
        server_echoes_id: bool = False,
    ) -> None:
        self._app = app
        self._server_echoes_id = server_echoes_id
        self._template_of = template_of
        self._service = service
        self._max_body_bytes = max_body_bytes
        self._max_upload_bytes = max_upload_bytes
        self._loopback_only = LoopbackOnly() if loopback_only else None
        # A random start and a counter: unique without asking the system for randomness each time.
        self._prefix = secrets.token_hex(6)
        self._count = itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id")
        named: _Headers = []
        if request_id is None or _REQUEST_ID.fullmatch(request_id) is None:
            request_id = f"{self._prefix}{next(self._count):x}".encode()
            named = [(b"x-request-id", request_id)]
        elif not self._server_echoes_id:
            named = [(b"x-request-id", request_id)]
        exchange = Exchange(self._service, scope, headers, request_id.decode())
        scope["weft"] = exchange
        began = time.perf_counter()
        status = _GONE
        try:
            with about(exchange.request_id):
                status = await self._answer(exchange, named, receive, send)
        except Exception:
            # The server closes the connection: the client has its status, and not the whole answer.
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            raise
        finally:
            self._counted(exchange, status, time.perf_counter() - began)

    async def _answer(self, exchange: Exchange, named: _Headers, receive: Receive, send: Send) -> int:
        """Answer, and return the status. Raises what happens once an answer has begun.

        `named`: the header that says the request's id, unless the server does.
        """
        scope, headers = exchange.scope, exchange.headers
        answered = 0
        try:
            if self._loopback_only is not None:
                self._loopback_only.check(scope["method"], headers)
            exchange.caller = await self._service.caller_of(headers, _path(scope))
            body = await self._hot(exchange)
            if body is None:
                limited = self._limited(scope, headers, receive)

                async def identified(message: Message) -> None:
                    nonlocal answered
                    if message["type"] == "http.response.start":
                        answered = message["status"]
                        message = {**message, "headers": [*message.get("headers", ()), *named]}
                    await send(message)

                await self._app(scope, limited, identified)
                return answered or _GONE
        except Exception as exception:
            if answered:
                # Too late for an error: logged, and the server closes the connection for us.
                logger.exception("request %s failed while its answer was being sent", exchange.request_id)
                raise
            failure = failure_of(exception, exchange.request_id)
            await _send(send, failure.status, failure.body(), [*named, *_headers_of(failure)])
            return failure.status
        await _send(send, HTTPStatus.OK, body, named)
        return HTTPStatus.OK

    def _counted(self, exchange: Exchange, status: int, took_s: float) -> None:
        """One more request in the metrics; a line in the log for a slow one."""
        scope = exchange.scope
        method = scope["method"] if scope["method"] in _METHODS else "other"
        # What was refused before it came to a route would have taken one all the same.
        route = _route_of(scope) or self._template_of(_path(scope)) or "unmatched"
        metrics.REQUESTS.inc(method, route, str(int(status)))
        metrics.REQUEST_DURATION.observe(took_s, method, route)
        with about(exchange.request_id):
            slow_calls.note(logger, f"{method} {route} {status:d}", took_s)

    async def _hot(self, exchange: Exchange) -> bytes | None:
        """The JSON of a hot route, None for all others."""
        scope = exchange.scope
        if scope["method"] != "GET":
            return None
        path = _path(scope)
        if path == "/livez":
            scope["weft.route"] = path
            return await alive(exchange)
        match = _RECOMMENDATIONS.fullmatch(path)
        if match is None:
            return None
        scope["weft.route"] = _RECOMMENDATIONS_ROUTE
        check_access(exchange.caller, "GET", _RECOMMENDATIONS_ROUTE)
        return await recommend_user(exchange, match[1])

    def _limited(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """Refuse a declared length at once, and count what arrives: a chunked body declares none."""
        upload = is_upload(scope, headers)
        limit = self._max_upload_bytes if upload else self._max_body_bytes
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > limit:
            raise _too_large(limit, upload)
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    raise _too_large(limit, upload)
            return message

        return counted


def _route_of(scope: Scope) -> str | None:
    """The template of the route a request took: what somebody wrote into a path must not become a label."""
    route = scope.get("weft.route") or getattr(scope.get("route"), "path", None)
    return None if route is None else str(route)


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    root_path = scope.get("root_path")
    return path.removeprefix(root_path) if root_path else path


def _too_large(limit: int, upload: bool) -> HTTPException:
    # FastAPI turns any other exception raised while a body is read into a 400 of its own.
    advice = "WEFT_ADAPTERS__MAX_ADAPTER_BYTES allows more" if upload else "send several smaller requests"
    return HTTPException(413, f"the body is larger than {limit:,} bytes; {advice}")


def _headers_of(failure: Failure) -> _Headers:
    return [(name.lower().encode(), value.encode()) for name, value in failure.headers.items()]


async def _send(send: Send, status: int, body: bytes, more: _Headers) -> None:
    headers = [_JSON, (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
