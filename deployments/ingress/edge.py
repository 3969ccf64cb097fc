"""The outermost layer, pure ASGI: request ids, foreign pages, the size of bodies, errors, the hottest routes.

FastAPI spends some 100 microseconds of CPU on a request before the route's first line. On two cores that is
the ceiling of the service, so `/livez` and the recommendations of one user are answered here, by the same
functions that their documented routes call.
"""

from __future__ import annotations

import itertools
import logging
import re
import secrets
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.ingress.errors import Failure, failure_of
from deployments.ingress.exchange import Exchange, Service
from deployments.ingress.loopback import LoopbackOnly
from deployments.ingress.operations import alive
from deployments.ingress.recommendations import recommend_user
from deployments.ingress.uploads import is_upload

logger = logging.getLogger("weft.ingress")

_RECOMMENDATIONS = re.compile(r"/v1/users/([^/]+)/recommendations")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_JSON = (b"content-type", b"application/json")


class Edge:
    """Wraps the application; every answer leaves through here with its `x-request-id`.

    `max_upload_bytes` bounds the bodies of uploads in place of `max_body_bytes`: they go to a file.
    `loopback_only`: refuse what does not come from this machine, see `LoopbackOnly`.
    """

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        max_body_bytes: int,
        max_upload_bytes: int,
        loopback_only: bool = False,
    ) -> None:
        self._app = app
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
        if request_id is None or _REQUEST_ID.fullmatch(request_id) is None:
            request_id = f"{self._prefix}{next(self._count):x}".encode()
        exchange = Exchange(self._service, scope, headers, request_id.decode())
        scope["weft"] = exchange

        answered = False
        try:
            if self._loopback_only is not None:
                self._loopback_only.check(scope["method"], headers)
            body = await self._hot(exchange)
            if body is None:
                limited = self._limited(scope, headers, receive)

                async def identified(message: Message) -> None:
                    nonlocal answered
                    if message["type"] == "http.response.start":
                        answered = True
                        message = {
                            **message,
                            "headers": [*message.get("headers", ()), (b"x-request-id", request_id)],
                        }
                    await send(message)

                await self._app(scope, limited, identified)
                return
        except Exception as exception:
            if answered:
                # Too late for an error: logged, and the server closes the connection for us.
                logger.exception("request %s failed while its answer was being sent", exchange.request_id)
                raise
            failure = failure_of(exception, exchange.request_id)
            await _send(send, failure.status, failure.body(), request_id, _headers_of(failure))
            return
        await _send(send, HTTPStatus.OK, body, request_id)

    async def _hot(self, exchange: Exchange) -> bytes | None:
        """The JSON of a hot route, None for all others."""
        scope = exchange.scope
        if scope["method"] != "GET":
            return None
        path: str = scope["path"]
        if root_path := scope.get("root_path"):
            path = path.removeprefix(root_path)
        if path == "/livez":
            return await alive(exchange)
        match = _RECOMMENDATIONS.fullmatch(path)
        return None if match is None else await recommend_user(exchange, match[1])

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


def _too_large(limit: int, upload: bool) -> HTTPException:
    # FastAPI turns any other exception raised while a body is read into a 400 of its own.
    advice = "WEFT_ADAPTERS__MAX_ADAPTER_BYTES allows more" if upload else "send several smaller requests"
    return HTTPException(413, f"the body is larger than {limit:,} bytes; {advice}")


def _headers_of(failure: Failure) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in failure.headers.items()]


async def _send(
    send: Send, status: int, body: bytes, request_id: bytes, more: list[tuple[bytes, bytes]] | None = None
) -> None:
    headers = [_JSON, (b"content-length", b"%d" % len(body)), (b"x-request-id", request_id), *(more or ())]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
