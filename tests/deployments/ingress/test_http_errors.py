"""One error shape, on every route and for every cause."""

from __future__ import annotations

import logging

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import compile_path

from deployments.ingress.application import create_app
from graph import errors
from graph.errors import Corrupt, NotYet, Overloaded, Unavailable, WeftError
from tests.deployments.ingress.error_shape import error_of
from tests.deployments.ingress.fake_backend import ENCODER, FakeBackend

ROUTES = [
    (method.upper(), path)
    for path, operations in create_app(FakeBackend).openapi()["paths"].items()
    for method in operations
]
METHODS = ("GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS")
IDS = {
    "key_id": "weft_0000000000000000",
    "user_id": "ada",
    "item_id": "i0",
    "node_id": "ada",
    "digest": ENCODER,
    "scope": "user",
    "name": "ada",
    "version": "v1",
    "model_id": "user/ada",
    "memory_id": "m0",
}
BODIES = {
    "/v1/keys": {"role": "read"},
    "/v1/users/{user_id}": {"attributes": {}},
    "/v1/items/{item_id}": {"title": "A"},
    "/v1/items": {"items": [{"item_id": "i0", "title": "A"}]},
    "/v1/ratings": {"user_id": "ada", "item_id": "i0", "value": 4.0},
    "/v1/recommendations": {"user_ids": ["ada"]},
    "/v1/recommendations/session": {"items": ["i0"]},
    "/v1/embeddings": {"input": "a"},
    "/v1/search": {"query": "a"},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
    "/v1/cache/invalidate": {"all": True},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/completions": {"prompt": "a"},
    "/v1/generate": {"text": "a"},
    "/v1/generate/batch": {"requests": [{"text": "a"}]},
    "/v1/adapters/{scope}/{name}/versions/{version}": {"path": "a"},
    "/v1/adapters/{scope}/{name}/activate": {"version": "v1"},
    "/v1/users/{user_id}/memories": {"text": "a"},
    "/v1/users/{user_id}/memories/search": {"query": "a"},
    "/v1/users/{user_id}/memories/{memory_id}": {"text": "a"},
    "/v1/users/{user_id}/relations": {"memory_id": "m0", "name": "about", "item_id": "i0"},
}
QUERIES = {("DELETE", "/v1/users/{user_id}/relations"): BODIES["/v1/users/{user_id}/relations"]}


def call(http: httpx.AsyncClient, method: str, path: str, **kwargs):
    if "json" not in kwargs and "content" not in kwargs and method in ("PUT", "POST") and path in BODIES:
        kwargs["json"] = BODIES[path]
    kwargs["params"] = QUERIES.get((method, path), {}) | kwargs.get("params", {})
    return http.request(method, path.format(**IDS), **kwargs)


def test_the_contract_has_all_its_routes() -> None:
    assert len(ROUTES) == 52
    assert ("POST", "/v1/encoders/{digest}/activate") in ROUTES


@pytest.mark.parametrize("path", sorted({path for _, path in ROUTES}))
async def test_wrong_methods(http: httpx.AsyncClient, path: str) -> None:
    # Every template that takes the path counts: a memory's id may be "search".
    allowed = {
        method
        for method, template in ROUTES
        if template == path or compile_path(template)[0].fullmatch(path.format(**IDS))
    }
    for method in set(METHODS) - allowed:
        response = await http.request(method, path.format(**IDS))
        error_of(response, 405, "method_not_allowed")
        assert set(response.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_unknown_query_parameter(http: httpx.AsyncClient, method: str, path: str) -> None:
    error = error_of(await call(http, method, path, params={"surprise": "1"}), 422, "invalid_input")
    assert error["param"] == "surprise"
    assert error["type"] == "invalid_request_error"


GARBAGE = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"\xff\xfe",
    b'{"surprise": 1}',
    b"[" * 3000,
    b'{"n": ' + b"9" * 3000 + b"}",
    b'{"\\ud800": 1}',
]


@pytest.mark.parametrize(
    ("method", "path"), [r for r in ROUTES if r[1] in BODIES and r[0] in ("PUT", "POST")]
)
@pytest.mark.parametrize("body", GARBAGE, ids=range(len(GARBAGE)))
async def test_garbage_bodies(http: httpx.AsyncClient, method: str, path: str, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = await http.request(method, path.format(**IDS), content=body, headers=headers)
    assert response.status_code in (400, 422), response.text
    error_of(response)


@pytest.mark.parametrize("path", sorted(BODIES))
async def test_other_content_types(http: httpx.AsyncClient, path: str) -> None:
    method = "PUT" if ("PUT", path) in ROUTES else "POST"
    headers = {"content-type": "text/plain"}
    response = await http.request(method, path.format(**IDS), content=b"{}", headers=headers)
    error_of(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(("method", "path"), [r for r in ROUTES if r[1] != "/livez"])
async def test_unexpected_exceptions(
    http: httpx.AsyncClient, backend: FakeBackend, caplog, method: str, path: str
) -> None:
    backend.raises = RuntimeError("the secret of /etc/weft")
    response = await call(http, method, path)
    if path in ("/v1/recommendations", "/v1/generate/batch"):
        error = response.json()["results"][0]["error"]
    else:
        error = error_of(response, 500, "internal")
    assert error["code"] == "internal"
    assert error["retryable"] is False
    assert "secret" not in response.text
    record = next(r for r in caplog.records if r.name == "weft.ingress")
    assert record.levelno == logging.ERROR
    assert error["request_id"] in record.getMessage()
    assert "the secret of /etc/weft" in caplog.text


TREE = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, WeftError)]


@pytest.mark.parametrize("kind", TREE)
@pytest.mark.parametrize("path", ["/v1/users/ada", "/v1/users/ada/recommendations"])
async def test_every_weft_error(http: httpx.AsyncClient, backend: FakeBackend, kind, path: str) -> None:
    backend.raises = kind("café text", param="p")
    response = await http.get(path)
    error = error_of(response, kind.status, kind.code)
    assert error["param"] == "p"
    assert error["retryable"] is kind.retryable
    assert ("café text" in error["message"]) is (kind.status < 500)
    assert ("retry-after" in response.headers) is (kind.status in (429, 503))


async def test_what_made_a_part_go_away_is_logged(
    http: httpx.AsyncClient, backend: FakeBackend, caplog
) -> None:
    for kind, cause in (
        (Unavailable, None),
        (Unavailable, OSError("the disk")),
        (WeftError, KeyError("bug")),
    ):
        caplog.clear()
        backend.raises = kind("x")
        backend.raises.__cause__ = cause
        response = await http.get("/v1/users/ada/recommendations")
        error = error_of(response, kind.status, kind.code)
        (record,) = [r for r in caplog.records if r.name == "weft.ingress"]
        assert error["request_id"] in record.getMessage()
        assert bool(record.exc_info) is (cause is not None)
        if cause is not None:
            assert repr(cause.args[0])[1:-1] in caplog.text
            assert cause.args[0] not in response.text


async def test_types_are_families(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    for kind, family in (
        (Overloaded, "rate_limit_error"),
        (Unavailable, "unavailable_error"),
        (NotYet, "unavailable_error"),
        (Corrupt, "internal_error"),
        (errors.Conflict, "conflict_error"),
        (errors.UnknownItem, "not_found_error"),
        (errors.InvalidInput, "invalid_request_error"),
    ):
        backend.raises = kind("x")
        assert error_of(await http.get("/v1/users/ada"))["type"] == family


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/users/ada/", "/v1/nothing", "/v1/users/a/b/c", "/livez/"])
async def test_unknown_routes(http: httpx.AsyncClient, path: str) -> None:
    error_of(await http.get(path), 404, "unknown_route")


async def test_a_request_id_is_kept_when_it_is_sane(http: httpx.AsyncClient) -> None:
    for path in ("/livez", "/v1/status", "/v1/users/nobody"):
        kept = await http.get(path, headers={"x-request-id": "abc-1.2:3_x"})
        assert kept.headers["x-request-id"] == "abc-1.2:3_x"
        for bad in ("", "a b", "x" * 65, 'a"b'):
            made = await http.get(path, headers={"x-request-id": bad})
            assert made.headers["x-request-id"] not in ("", bad)
    first, second = [(await http.get("/livez")).headers["x-request-id"] for _ in range(2)]
    assert first != second


async def test_an_error_after_the_first_bytes_is_not_answered_twice(app: FastAPI, caplog) -> None:
    @app.get("/broken")
    async def broken() -> None: ...

    async def half(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("halfway")

    app._edge._app = half
    sent = []

    async def send(message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/broken", "query_string": b"", "headers": []}
    with pytest.raises(RuntimeError, match="halfway"):
        await app(scope, None, send)
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert "while its answer was being sent" in caplog.text
