"""The assertion that every failed request has to pass."""

from __future__ import annotations

import httpx

from deployments.ingress.schemas import ErrorAnswer


def error_of(response: httpx.Response, status: int | None = None, code: str | None = None) -> dict:
    """The error object, after its shape was checked."""
    error = response.json()["error"]
    assert set(error) == set(ErrorAnswer.model_fields["error"].annotation.model_fields)
    ErrorAnswer.model_validate(response.json(), strict=True)
    assert error["request_id"] == response.headers["x-request-id"]
    assert response.headers["content-type"] == "application/json"
    if status is not None:
        assert (response.status_code, error["code"]) == (status, code), error
    return error
