"""The one error shape of the HTTP contract and the one function that maps exceptions to it.

    {"error": {"code", "message", "type", "param", "request_id", "retryable"}}

Messages of 4xx errors are written for the client. A 5xx body never carries an exception's text: it says
something fixed for its code, and the log has the rest under the request id.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from graph.errors import WeftError

logger = logging.getLogger("weft.ingress")

RETRY_AFTER_S = 1
"""What 429 and 503 suggest: replicas are milliseconds behind, a restarted writer is back within seconds."""

_HIDDEN = {
    "not_yet": "the view has not reached `min_version` in time; repeat the request",
    "outcome_unknown": "whether the write happened is unknown; repeat it with the same Idempotency-Key",
    "snapshot_required": "a replica is behind the change feed and reloads; repeat the request",
    "not_ready": "the service is still starting; repeat the request",
    "model_unavailable": "the language model is switched off, still loading, or cannot be opened; "
    "`language_model` in GET /v1/status says which",
    "out_of_memory": "the model's memory did not suffice; try a shorter prompt or later",
}
_UNAVAILABLE = "a part of the service does not answer right now; repeat the request"
_INTERNAL = "the service failed on this request; its log has the cause under this request id"

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}
_HTTP_CODES = {
    400: "bad_request",
    404: "unknown_route",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """An error ready to be sent."""

    status: int
    error: dict[str, object]
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        return orjson.dumps({"error": self.error})


def failure_of(exception: Exception, request_id: str) -> Failure:
    """Map any exception to the contract's shape; what nobody foresaw is logged with its traceback."""
    if isinstance(exception, WeftError):
        return failure(
            exception.status,
            exception.code,
            exception.message,
            request_id,
            param=exception.param,
            retryable=exception.retryable,
            cause=exception,
        )
    if isinstance(exception, RequestValidationError):
        return _invalid(exception, request_id)
    if isinstance(exception, HTTPException):
        status = exception.status_code
        code = _HTTP_CODES.get(status, "bad_request" if status < 500 else "internal")
        detail = str(exception.detail)
        if status == HTTPStatus.NOT_FOUND:
            detail = "no such route; /docs lists them all"
        return failure(
            status, code, detail, request_id, headers=dict(exception.headers or {}), cause=exception
        )
    return failure(500, "internal", _INTERNAL, request_id, cause=exception)


def failure(
    status: int,
    code: str,
    message: str,
    request_id: str,
    *,
    param: str | None = None,
    retryable: bool = False,
    headers: dict[str, str] | None = None,
    cause: Exception | None = None,
) -> Failure:
    """Build a failure; for a 5xx the message goes to the log and a fixed sentence to the client."""
    headers = dict(headers or {})
    if status >= 500:
        # That a part is away needs no traceback; what took it away does, and so does every defect.
        explained = cause if not retryable or (cause and cause.__cause__) else None
        level = logging.WARNING if retryable else logging.ERROR
        logger.log(level, "request %s: %d %s: %s", request_id, status, code, message, exc_info=explained)
        message = _HIDDEN.get(code, _UNAVAILABLE if retryable else _INTERNAL)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    if status in (429, 503):
        headers["retry-after"] = str(RETRY_AFTER_S)
    kind = _TYPES.get(status, "internal_error" if status >= 500 else "invalid_request_error")
    error: dict[str, object] = {
        "code": code,
        "message": message,
        "type": kind,
        "param": param,
        "request_id": request_id,
        "retryable": retryable,
    }
    return Failure(status, error, headers)


def _invalid(exception: RequestValidationError, request_id: str) -> Failure:
    """The first of pydantic's complaints, with the place of the value spelled like `ratings[3].value`."""
    if isinstance(exception.body, bytes):
        # FastAPI leaves a body unparsed when its content type is not JSON. That check stays strict on
        # purpose: with it, a web page of another origin cannot write without a preflight.
        return failure(415, "unsupported_media_type", "send content-type: application/json", request_id)
    errors: list[dict[str, Any]] = list(exception.errors())
    first: dict[str, Any] = (
        errors[0] if errors else {"type": "value_error", "loc": (), "msg": "invalid request"}
    )
    if first["type"] == "json_invalid":
        position = first["loc"][-1]
        reason = first.get("ctx", {}).get("error", "syntax error")
        message = f"the body is not JSON: {reason} at character {position}"
        return failure(400, "invalid_json", message, request_id)
    param = place(first["loc"])
    complaint = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        complaint = "unknown field"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    message = f"{param or 'body'}: {complaint}{more}"
    return failure(422, "invalid_input", message, request_id, param=param)


def place(location: tuple[object, ...]) -> str | None:
    """`("body", "<many>", "ratings", 3, "value")` as `ratings[3].value`; None for the body itself."""
    text = ""
    for part in location[1:]:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not str(part).startswith("<"):  # the tag of a union, not a field
            text += f".{part}" if text else str(part)
    return text[:200].encode("utf-8", "replace").decode() or None
