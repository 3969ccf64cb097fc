"""What calls of the clients raise, and how an answer becomes one of it.

WeftAPIError
|- InvalidRequestError      400, 405, 413, 415, 422
|- AuthenticationError      401
|- PermissionDeniedError    403
|- NotFoundError            404
|- ConflictError            409
|  |- ForeignTokenError
|- RateLimitError           429
|- UnavailableError         503
|- InternalServerError      other 5xx, and answers that are none of the API's
|- ConnectionFailed         no answer at all; status is 0
"""

from __future__ import annotations

from typing import Any

import httpx
import orjson


class WeftAPIError(Exception):
    """A request that failed. `code` is stable; `request_id` finds the request in the service's log."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int,
        retryable: bool = False,
        request_id: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(f"{message} [{status} {code}]" if status else f"{message} [{code}]")
        self.message = message
        self.code = code
        self.status = status
        self.retryable = retryable
        self.request_id = request_id
        self.param = param
        self.retry_after_s: float | None = None
        self.shapeless = False  # a 5xx that some proxy made, so nothing is known about the request


class InvalidRequestError(WeftAPIError): ...


class AuthenticationError(WeftAPIError): ...


class PermissionDeniedError(WeftAPIError): ...


class NotFoundError(WeftAPIError): ...


class ConflictError(WeftAPIError): ...


class ForeignTokenError(ConflictError): ...


class RateLimitError(WeftAPIError): ...


class UnavailableError(WeftAPIError): ...


class InternalServerError(WeftAPIError): ...


class ConnectionFailed(WeftAPIError): ...


_STATUS_OF = {
    "invalid_request_error": 422,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "rate_limit_error": 429,
    "unavailable_error": 503,
}


def error_from(shape: Any, status: int) -> WeftAPIError:
    """An error of the API's shape, which came with that status, or in the middle of a stream (200).

    Raises KeyError or TypeError when it has another shape.
    """
    message = shape["message"]
    if shape["code"] == "foreign_token":
        message = f"the service holds another store than before; the remembered version is dropped: {message}"
    # In the middle of a stream, where the status is long sent, the type says what the status would have been.
    kind = _kind_of(_STATUS_OF.get(shape["type"], 500) if status == 200 else status, shape["code"])
    return kind(
        message,
        code=shape["code"],
        status=status,
        retryable=bool(shape["retryable"]),
        request_id=shape["request_id"],
        param=shape["param"],
    )


def error_of(response: httpx.Response) -> WeftAPIError:
    try:
        error = error_from(orjson.loads(response.content)["error"], response.status_code)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return shapeless(response, "the answer has no error of this API; a proxy may have made it")
    after = response.headers.get("retry-after", "")
    error.retry_after_s = min(float(after), 60.0) if after.isdigit() else None
    return error


def _kind_of(status: int, code: str) -> type[WeftAPIError]:
    if code == "foreign_token":
        return ForeignTokenError
    kinds: dict[int, type[WeftAPIError]] = {
        401: AuthenticationError,
        403: PermissionDeniedError,
        404: NotFoundError,
        409: ConflictError,
        429: RateLimitError,
        503: UnavailableError,
    }
    return kinds.get(status, InternalServerError if status >= 500 else InvalidRequestError)


def shapeless(response: httpx.Response, message: str) -> WeftAPIError:
    status = response.status_code
    kind = InvalidRequestError if 400 <= status < 500 else InternalServerError
    error = kind(message, code="shapeless", status=status, request_id=response.headers.get("x-request-id"))
    error.shapeless = status >= 500
    return error


def no_answer(error: Exception) -> WeftAPIError:
    code = "timeout" if isinstance(error, httpx.TimeoutException) else "connection_failed"
    return ConnectionFailed(f"no answer from the service: {error}", code=code, status=0, retryable=True)
