"""API keys as the clients see them: the calls and what they answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from deployments.client_calls import Call, given, paged, segment, writing
from deployments.client_memories import Time
from deployments.client_results import Page, Written, build


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret. Times are ISO 8601; `user_id` is set for the role "user"."""

    key_id: str
    role: str
    user_id: str | None
    label: str
    created_at: str
    expires_at: str | None
    expired: bool
    version: str


@dataclass(frozen=True, slots=True)
class NewApiKey(ApiKey):
    """`key` is the whole key, which nobody can show again."""

    key: str = field(repr=False)


def create_key(
    role: str, user_id: str | None = None, label: str = "", expires_at: Time | None = None
) -> Call[NewApiKey]:
    """Make a key of the role "admin", "write", "read" or "user". Not repeated: each request makes one."""
    body = {"role": role, "label": label} | given(user_id=user_id, expires_at=_as_text(expires_at))
    return Call(
        "POST",
        "/v1/keys",
        lambda data: build(NewApiKey, data),
        body=body,
        idempotent=False,
        once=True,
        reads=False,
    )


def list_keys(limit: int = 100, after: str | None = None) -> Call[Page[ApiKey]]:
    """Keys that were not revoked, by id."""
    return paged("/v1/keys", "keys", ApiKey, limit, after)


def revoke_key(key_id: str) -> Call[Written]:
    """Make a key open nothing any more, anywhere, within a second. Takes the whole key as well."""
    return writing("DELETE", f"/v1/keys/{segment(key_id.partition('.')[0])}")


def _as_text(time: Time | None) -> str | int | float | None:
    return time.isoformat() if isinstance(time, datetime) else time
