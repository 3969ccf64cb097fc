"""Which key may do what: one table of every route, and the route class that holds requests against it.

A route that the table does not have cannot be declared: whoever adds one says here who may call it. What a
user's key may see within the routes it has is in `own_backend`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from fastapi import Request, Response
from fastapi.routing import APIRoute

from graph.errors import Forbidden, Unauthenticated
from graph.schema import Role

Scope: TypeAlias = Literal["public", "read", "write", "admin"]

_RANKS: Mapping[str, int] = {"public": 0, "user": 0, "read": 1, "write": 2, "admin": 3}
_SCHEME = "bearer "
_NO_KEY = "this service needs an API key: send `Authorization: Bearer KEY`"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request. `user_id`: whose key it is, None unless `role` is "user"."""

    role: Role
    key_id: str = ""
    user_id: str | None = None


ANYBODY = Caller("admin")
"""Of a service without keys."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a route asks for: a key of that scope or a higher one, or, with `own`, any user's key."""

    scope: Scope
    own: bool = False


_PUBLIC, _READ, _WRITE, _ADMIN = Need("public"), Need("read"), Need("write"), Need("admin")
_READ_OWN, _WRITE_OWN = Need("read", own=True), Need("write", own=True)

ROUTES: Mapping[tuple[str, str], Need] = {
    ("GET", "/livez"): _PUBLIC,
    ("GET", "/readyz"): _PUBLIC,
    ("GET", "/v1/users"): _READ,
    ("GET", "/v1/users/{user_id}"): _READ_OWN,
    ("PUT", "/v1/users/{user_id}"): _WRITE_OWN,
    ("DELETE", "/v1/users/{user_id}"): _WRITE_OWN,
    ("POST", "/v1/ratings"): _WRITE_OWN,
    ("GET", "/v1/users/{user_id}/ratings"): _READ_OWN,
    ("DELETE", "/v1/users/{user_id}/ratings/{item_id}"): _WRITE_OWN,
    ("GET", "/v1/users/{user_id}/recommendations"): _READ_OWN,
    ("POST", "/v1/recommendations"): _READ_OWN,
    ("POST", "/v1/recommendations/session"): _READ_OWN,
    ("POST", "/v1/users/{user_id}/memories"): _WRITE_OWN,
    ("GET", "/v1/users/{user_id}/memories"): _READ_OWN,
    ("POST", "/v1/users/{user_id}/memories/search"): _READ_OWN,
    ("GET", "/v1/users/{user_id}/memories/{memory_id}"): _READ_OWN,
    ("PUT", "/v1/users/{user_id}/memories/{memory_id}"): _WRITE_OWN,
    ("DELETE", "/v1/users/{user_id}/memories/{memory_id}"): _WRITE_OWN,
    ("POST", "/v1/users/{user_id}/relations"): _WRITE_OWN,
    ("DELETE", "/v1/users/{user_id}/relations"): _WRITE_OWN,
    ("GET", "/v1/users/{user_id}/graph"): _READ_OWN,
    ("GET", "/v1/users/{user_id}/context"): _READ_OWN,
    ("GET", "/v1/items"): _READ_OWN,
    ("POST", "/v1/items"): _WRITE,
    ("GET", "/v1/items/{item_id}"): _READ_OWN,
    ("PUT", "/v1/items/{item_id}"): _WRITE,
    ("DELETE", "/v1/items/{item_id}"): _WRITE,
    ("GET", "/v1/items/{item_id}/similar"): _READ_OWN,
    ("POST", "/v1/search"): _READ_OWN,
    # How long they take tells whether somebody else's text is in the cache.
    ("POST", "/v1/rerank"): _READ,
    ("POST", "/v1/embeddings"): _READ,
    ("GET", "/v1/nodes/{node_id}/embedding"): _READ_OWN,
    ("POST", "/v1/chat/completions"): _READ_OWN,
    ("POST", "/v1/completions"): _READ_OWN,
    ("POST", "/v1/generate"): _READ_OWN,
    ("POST", "/v1/generate/batch"): _READ_OWN,
    ("GET", "/v1/models"): _READ_OWN,
    ("GET", "/v1/models/{model_id:path}"): _READ_OWN,
    ("GET", "/v1/adapters"): _READ,
    ("PUT", "/v1/adapters/{scope}/{name}/versions/{version}"): _ADMIN,
    ("DELETE", "/v1/adapters/{scope}/{name}/versions/{version}"): _ADMIN,
    ("POST", "/v1/adapters/{scope}/{name}/activate"): _ADMIN,
    ("POST", "/v1/adapters/{scope}/{name}/rollback"): _ADMIN,
    ("GET", "/v1/adapters/{scope}/{name}/history"): _READ,
    ("GET", "/v1/encoders"): _READ,
    ("POST", "/v1/encoders/{digest}/activate"): _ADMIN,
    ("GET", "/v1/cache/stats"): _READ,
    ("POST", "/v1/cache/invalidate"): _ADMIN,
    ("GET", "/v1/status"): _READ,
    ("GET", "/v1/keys"): _ADMIN,
    ("POST", "/v1/keys"): _ADMIN,
    ("DELETE", "/v1/keys/{key_id}"): _ADMIN,
}

PUBLIC_PATHS = frozenset(
    {path for (_, path), need in ROUTES.items() if need.scope == "public"}
    | {"/docs", "/docs/oauth2-redirect", "/openapi.json"}
)
"""What is answered without a key: signs of life, and the documentation, which is the same everywhere."""


READINESS = "/readyz"
"""Public as well, and tells more to those who show a key."""


class Gate(Protocol):
    """What knows the keys."""

    async def caller(self, key: str) -> Caller:
        """Whose key it is. Raises Unauthenticated, and Unavailable while it cannot know."""
        ...

    async def wait_for(self, version: int) -> None:
        """Return when keys of that version are in force here, or after a moment."""
        ...


async def caller_of(gate: Gate, headers: Mapping[bytes, bytes], path: str) -> Caller | None:
    """Who sent a request; None where there is no key and none is needed. Raises Unauthenticated."""
    if path in PUBLIC_PATHS and path != READINESS:
        return None  # whatever comes with it: a probe must not fail for an old key
    header = headers.get(b"authorization")
    if header is None:
        if path == READINESS:
            return None
        raise Unauthenticated(_NO_KEY)
    text = header.decode("latin-1")
    if text[: len(_SCHEME)].lower() != _SCHEME:
        raise Unauthenticated("send the API key as `Authorization: Bearer KEY`")
    return await gate.caller(text[len(_SCHEME) :].strip())


def check_access(caller: Caller | None, method: str, path: str) -> None:
    """Raise Forbidden if this caller may not call a route, given as it was declared."""
    need = ROUTES[method, path]
    if need.scope == "public":
        return
    if caller is None:
        raise Unauthenticated(_NO_KEY)
    if caller.role == "user":
        if not need.own:
            raise Forbidden("a user's key is for what is that user's own, and for looking at items")
    elif _RANKS[caller.role] < _RANKS[need.scope]:
        raise Forbidden(f"this needs a key of the role {need.scope}; yours has the role {caller.role}")


class GuardedRoute(APIRoute):
    """A route that is answered only to those whom the table lets through, before its body is read."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        for method in self.methods:
            if (method, path) not in ROUTES:
                raise LookupError(f"{method} {path} is not in the table of deployments/ingress/access.py")

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            check_access(request.scope["weft"].caller, request.method, self.path)
            return await handle(request)

        return guarded


def access_markdown() -> str:
    """The table of routes in docs/security.md."""
    lines = ["| route | role | a user's key |", "|---|---|---|"]
    for (method, path), need in ROUTES.items():
        shown = path.replace(":path}", "}")
        lines.append(f"| `{method} {shown}` | {need.scope} | {'yes' if need.own else ''} |")
    return "\n".join(lines) + "\n"
