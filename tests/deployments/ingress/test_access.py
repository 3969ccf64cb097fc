"""Who may call which route, and what a user's key sees: walked over the OpenAPI document itself."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI

from deployments import metrics
from deployments.ingress.access import Caller, GuardedRoute, access_markdown
from deployments.ingress.application import create_app
from deployments.ingress.own_backend import OwnBackend
from graph.api_keys import new_key
from graph.errors import Forbidden, Unauthenticated, Unavailable
from graph.schema import Role
from tests.deployments.ingress.error_shape import error_of
from tests.deployments.ingress.fake_backend import FakeBackend
from tests.deployments.ingress.foreign_requests import (
    BODIES,
    CHAT,
    QUERIES,
    RATING,
    filled,
    foreign_requests,
    in_place,
    routes,
)

SECRET = "bo-keeps-bees"
"""In everything of Bo's: no answer to anybody else's key holds it."""
MINE = "ada-keeps-owls"

PUBLIC = {("GET", "/livez"), ("GET", "/readyz")}
ADMIN = {
    ("PUT", "/v1/adapters/{scope}/{name}/versions/{version}"),
    ("DELETE", "/v1/adapters/{scope}/{name}/versions/{version}"),
    ("POST", "/v1/adapters/{scope}/{name}/activate"),
    ("POST", "/v1/adapters/{scope}/{name}/rollback"),
    ("POST", "/v1/encoders/{digest}/activate"),
    ("POST", "/v1/cache/invalidate"),
    ("GET", "/v1/keys"),
    ("POST", "/v1/keys"),
    ("DELETE", "/v1/keys/{key_id}"),
}
ASKING = {  # POST, because the question has a body
    "/v1/recommendations",
    "/v1/recommendations/session",
    "/v1/search",
    "/v1/rerank",
    "/v1/embeddings",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/generate",
    "/v1/generate/batch",
    "/v1/users/{user_id}/memories/search",
}
NOT_FOR_USERS = ADMIN | {
    ("GET", "/v1/users"),
    ("POST", "/v1/items"),
    ("PUT", "/v1/items/{item_id}"),
    ("DELETE", "/v1/items/{item_id}"),
    ("POST", "/v1/rerank"),
    ("POST", "/v1/embeddings"),
    ("GET", "/v1/adapters"),
    ("GET", "/v1/adapters/{scope}/{name}/history"),
    ("GET", "/v1/encoders"),
    ("GET", "/v1/cache/stats"),
    ("GET", "/v1/status"),
}


class FakeGate:
    """Keys that are words."""

    def __init__(self) -> None:
        self.keys = {role: Caller(role, role) for role in ("admin", "write", "read")}  # type: ignore[arg-type]
        self.keys |= {name: Caller("user", name, name) for name in ("ada", "bo")}
        self.away = False
        self.waited: list[int] = []

    async def caller(self, key: str) -> Any:
        if self.away:
            raise Unavailable("the feed is away")
        if key not in self.keys:
            raise Unauthenticated("the API key is not valid")
        return self.keys[key]

    async def wait_for(self, version: int) -> None:
        self.waited.append(version)


@pytest.fixture
def gate() -> FakeGate:
    return FakeGate()


@pytest.fixture
def guarded(backend: FakeBackend, gate: FakeGate) -> FastAPI:
    return create_app(lambda: backend, upload_dir=backend.upload_dir, gate=gate)


@pytest.fixture
async def call(guarded: FastAPI, backend: FakeBackend) -> AsyncIterator[Any]:
    """Send a request with a key; the graph holds Ada's and Bo's things."""
    transport = httpx.ASGITransport(guarded, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://anywhere.example") as client:

        async def send(key: str | None, method: str, path: str, **options: Any) -> httpx.Response:
            headers = options.pop("headers", {})
            if key is not None:
                headers["authorization"] = f"Bearer {key}"
            return await client.request(method, path, headers=headers, **options)

        for user, word in (("ada", MINE), ("bo", SECRET)):
            await send("admin", "PUT", f"/v1/users/{user}", json={"attributes": {"note": word}})
            await send("admin", "POST", "/v1/ratings", json=RATING | {"user_id": user})
            memory = {"memory_id": f"m-{user}", "text": word}
            assert (await send("admin", "POST", f"/v1/users/{user}/memories", json=memory)).is_success
            put = await send(
                "admin",
                "PUT",
                f"/v1/adapters/user/{user}/versions/v1",
                content=b"a",
                headers={"content-type": "application/x-tar"},
            )
            assert put.is_success, put.text
            done = await send("admin", "POST", f"/v1/adapters/user/{user}/activate", json={"version": "v1"})
            assert done.is_success, done.text
        yield send


async def test_every_route_but_the_public_ones_asks_for_a_key(call: Any, guarded: FastAPI) -> None:
    seen = 0
    for method, path in routes(guarded.openapi()):
        response = await call(None, method, filled(path))
        if (method, path) in PUBLIC:
            assert response.is_success, path
            continue
        seen += 1
        error = error_of(response, 401, "unauthenticated")
        assert error["type"] == "authentication_error"
        assert not error["retryable"]
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["x-request-id"]
    assert seen >= 49


@pytest.mark.parametrize("key", ["", "nobody", "admin x", "ADMIN", "admin\x00"])
async def test_what_is_no_key_opens_nothing(call: Any, guarded: FastAPI, key: str) -> None:
    assert (await call(key, "GET", "/livez")).is_success, "a probe with an old key"
    for method, path in routes(guarded.openapi()):
        if path == "/livez":
            continue
        error_of(await call(key, method, filled(path)), 401, "unauthenticated")


@pytest.mark.parametrize(
    "header",
    ["admin", "Digest admin", "Basic admin", "Basic YWRtaW46", "Bearer", "Token admin", "Beareradmin", ""],
)
async def test_a_key_is_a_bearer_token(call: Any, header: str) -> None:
    error_of(await call(None, "GET", "/v1/items", headers={"authorization": header}), 401, "unauthenticated")


@pytest.mark.parametrize("header", ["Bearer read", "bearer read", "BEARER  read "])
async def test_the_scheme_is_written_as_one_likes(call: Any, header: str) -> None:
    assert (await call(None, "GET", "/v1/items", headers={"authorization": header})).is_success


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/nothing", "/metrics", "/livez/", "/docs/", "//livez", "/v1/users/a/b/c/d"]
)
async def test_what_is_not_there_is_not_told_to_strangers(call: Any, path: str) -> None:
    error_of(await call(None, "GET", path), 401, "unauthenticated")
    error_of(await call("admin", "GET", path), 404, "unknown_route")


async def test_the_documentation_is_public(call: Any, guarded: FastAPI) -> None:
    document = (await call(None, "GET", "/openapi.json")).json()
    assert (await call(None, "GET", "/docs")).is_success
    for method, path in routes(guarded.openapi()):
        asks = document["paths"][path][method.lower()].get("security")
        assert asks == (None if (method, path) in PUBLIC else [{"key": []}])
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


def needed(method: str, path: str) -> Role | None:
    """The least role that may call a route, said another way than the table says it."""
    if (method, path) in PUBLIC:
        return None
    if (method, path) in ADMIN:
        return "admin"
    return "read" if method == "GET" or path in ASKING else "write"


RANKS: list[Role] = ["read", "write", "admin"]


@pytest.mark.parametrize("role", RANKS)
async def test_a_key_opens_what_its_role_allows_and_no_more(call: Any, guarded: FastAPI, role: Role) -> None:
    opened = 0
    for method, path in routes(guarded.openapi()):
        response = await call(role, method, filled(path))
        least = needed(method, path)
        if least is None or RANKS.index(least) <= RANKS.index(role):
            assert response.status_code not in (401, 403), (method, path, response.text)
            opened += 1
        else:
            error = error_of(response, 403, "forbidden")
            assert error["type"] == "permission_error"
    closed = len(list(routes(guarded.openapi()))) - opened
    assert opened > 30
    assert (closed > 0) == (role != "admin")


async def test_a_users_key_opens_what_users_may_do(call: Any, guarded: FastAPI) -> None:
    closed = set()
    for method, path in routes(guarded.openapi()):
        bodies = BODIES.get((method, path), [None])
        for query in QUERIES.get((method, path), [""]):
            for body in bodies:
                mine = json.loads(json.dumps(body).replace('"bo"', '"ada"').replace("/bo", "/ada"))
                response = await call(
                    "ada", method, filled(path, "ada") + query.replace("bo", "ada"), json=mine
                )
                if response.status_code == 403:
                    closed.add((method, path))
    naming_a_digest = {("POST", "/v1/chat/completions")}  # it may be of anybody's files
    assert closed - naming_a_digest == NOT_FOR_USERS


async def test_a_users_key_never_yields_what_is_somebody_elses(
    call: Any, guarded: FastAPI, backend: FakeBackend
) -> None:
    """Graph, memories, adapters, context, texts and recommendations; streams and batches too."""
    asked = 0
    before = backend.version
    for method, path, options, names in foreign_requests(guarded.openapi()):
        response = await call("ada", method, path, **options)
        assert SECRET not in response.text, (method, path, options)
        asked += 1
        if names:
            assert response.text.count('"forbidden"') == 1, (method, path, options, response.text)
            assert response.status_code == (200 if in_place(path) else 403)
    assert asked > 150
    assert backend.version == before, "something was written"
    assert all(query.user_id != "bo" for query in (*backend.queries, *backend.generated))
    assert all(asked[0] != "bo" for asked in backend.asked_context)
    assert all(memory.user_id != "bo" for memory in backend.asked_memories)
    # What is not there looks the same.
    errors = [
        error_of(await call("ada", "GET", f"/v1/users/{user}/memories"), 403, "forbidden")
        for user in ("bo", "nobody")
    ]
    assert errors[0] | {"request_id": ""} == errors[1] | {"request_id": ""}


async def test_the_same_requests_yield_it_to_its_owner(call: Any) -> None:
    """So that the test above looks for something that could be there."""
    found = [
        await call("bo", "GET", "/v1/users/bo"),
        await call("bo", "GET", "/v1/users/bo/memories"),
        await call("bo", "GET", "/v1/users/bo/memories/m-bo"),
        await call("bo", "GET", "/v1/users/bo/graph"),
        await call("bo", "GET", "/v1/users/bo/context?query=bees"),
        await call("bo", "POST", "/v1/users/bo/memories/search", json={"query": SECRET}),
        await call("bo", "POST", "/v1/generate", json={"text": SECRET, "user_id": "bo"}),
    ]
    assert all(SECRET in response.text for response in found), [r.text for r in found]


async def test_names_of_other_users_are_in_no_list_of_models(call: Any) -> None:
    names = [m["id"] for m in (await call("ada", "GET", "/v1/models")).json()["data"]]
    assert "user/ada" in names
    assert "user/bo" not in names
    assert "user/bo" in (await call("read", "GET", "/v1/models")).text
    error_of(await call("ada", "GET", "/v1/models/user/bo"), 404, "model_not_found")
    assert (await call("ada", "GET", "/v1/models/user/ada")).is_success


async def test_a_node_without_a_kind_is_the_keys_own_user_or_an_item(call: Any, backend: FakeBackend) -> None:
    await call("admin", "PUT", "/v1/items/bo", json={"title": "Bo, a film"})
    kinds = [
        (await call("ada", "GET", f"/v1/nodes/{node}/embedding")).json().get("kind")
        for node in ("ada", "i0", "bo")
    ]
    assert kinds == ["user", "item", "item"]
    error_of(await call("ada", "GET", "/v1/nodes/bo/embedding?kind=user"), 403, "forbidden")
    found = await call("ada", "GET", "/v1/nodes/m-ada/embedding?kind=memory&user_id=ada")
    assert found.json()["kind"] == "memory"


async def test_the_same_idempotency_key_is_another_one_for_another_user(call: Any) -> None:
    for user in ("ada", "bo"):
        response = await call(
            user,
            "POST",
            "/v1/ratings",
            json=RATING | {"user_id": user, "value": 1},
            headers={"idempotency-key": "k"},
        )
        assert response.is_success, response.text
        assert not response.json()["replayed"]


async def test_keys_that_cannot_be_checked_let_nobody_in(call: Any, gate: FakeGate) -> None:
    gate.away = True
    response = await call("admin", "GET", "/v1/items")
    assert error_of(response, 503, "unavailable")["retryable"]
    assert response.headers["retry-after"]
    error_of(await call("admin", "GET", "/v1/users/ada/recommendations"), 503, "unavailable")
    assert (await call(None, "GET", "/livez")).is_success


async def test_readiness_is_public_and_its_reasons_are_not(call: Any, backend: FakeBackend) -> None:
    for ready, status in ((True, 200), (False, 503)):
        backend.is_ready = ready
        await asyncio.sleep(0.6)  # strangers share an answer for half a second
        for key in (None, "ada"):
            response = await call(key, "GET", "/readyz")
            assert response.status_code == status
            assert response.json()["ready"] is ready
            assert "parts" not in response.json()
        assert "parts" in (await call("read", "GET", "/readyz")).json()


async def test_strangers_share_an_answer_about_readiness(call: Any, backend: FakeBackend) -> None:
    asked = len(backend.min_versions)
    answers = await asyncio.gather(*(call(None, "GET", "/readyz") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(backend.min_versions) == asked + 1
    await call("read", "GET", "/readyz")
    assert len(backend.min_versions) == asked + 2


async def test_a_whole_key_is_not_repeated(call: Any) -> None:
    whole = new_key().text
    response = await call("admin", "DELETE", f"/v1/keys/{whole}")
    error_of(response, 404, "unknown_api_key")
    assert whole.partition(".")[2] not in response.text


async def test_who_comes_with_a_users_key_and_names_nobody_is_that_user(
    call: Any, backend: FakeBackend
) -> None:
    for path, body in (
        ("/v1/generate", {"text": "a"}),
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "a"}),
    ):
        assert (await call("ada", "POST", path, json=body)).is_success
        assert backend.generated[-1].user_id == "ada"
        assert (await call("read", "POST", path, json=body)).is_success
        assert backend.generated[-1].user_id is None
    assert backend.asked_context[-1][0] == "ada"


async def test_what_the_gate_refuses_is_counted_under_its_route(call: Any, gate: FakeGate) -> None:
    labels = ("POST", "/v1/users/{user_id}/memories", "401")
    gone = ("GET", "unmatched", "401")
    before = {key: metrics.REQUESTS.values().get(key, 0.0) for key in (labels, gone)}
    await call(None, "POST", "/v1/users/ada/memories", json={"text": "x"})
    await call(None, "GET", "/v1/nothing")
    found = metrics.REQUESTS.values()
    assert {key: found[key] - before[key] for key in before} == {labels: 1, gone: 1}


async def test_the_body_of_a_stranger_is_not_read(call: Any) -> None:
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b"x" * 1000

    error_of(await call(None, "POST", "/v1/ratings", content=chunks()), 401, "unauthenticated")
    error_of(await call("read", "POST", "/v1/ratings", content=chunks()), 403, "forbidden")
    assert read == 0


async def test_a_key_is_made_listed_and_revoked(
    call: Any, gate: FakeGate, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    body = {"role": "user", "user_id": "ada", "label": "phone", "expires_at": "2100-01-01"}
    response = await call("admin", "POST", "/v1/keys", json=body)
    made = response.json()
    key_id, _, secret = made["key"].partition(".")
    assert (made["key_id"], made["role"], made["user_id"], made["label"]) == (key_id, "user", "ada", "phone")
    assert made["expires_at"] == "2100-01-01T00:00:00Z"
    assert not made["expired"]
    assert gate.waited == [backend.version]
    stored = backend.known_keys[key_id]
    assert secret not in repr(stored)
    listed = await call("admin", "GET", "/v1/keys")
    assert [k["key_id"] for k in listed.json()["keys"]] == [key_id]
    assert secret not in listed.text
    assert stored.digest not in listed.text
    assert (await call("admin", "DELETE", f"/v1/keys/{key_id}")).is_success
    assert gate.waited == [backend.version - 1, backend.version]
    error_of(await call("admin", "DELETE", f"/v1/keys/{key_id}"), 404, "unknown_api_key")
    assert (await call("admin", "GET", "/v1/keys")).json()["keys"] == []
    assert secret not in caplog.text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "role"),
        ({"role": "root"}, "role"),
        ({"role": "user"}, None),
        ({"role": "read", "user_id": "ada"}, None),
        ({"role": "user", "user_id": "a/b"}, "user_id"),
        ({"role": "read", "label": "x" * 201}, "label"),
        ({"role": "read", "label": "a\nb"}, "label"),
        ({"role": "read", "expires_at": "2001-01-01"}, "expires_at"),
        ({"role": "read", "expires_at": "soon"}, "expires_at"),
        ({"role": "read", "secret": "mine"}, "secret"),
    ],
)
async def test_what_cannot_be_a_key(call: Any, body: dict[str, Any], param: str | None) -> None:
    assert (
        error_of(await call("admin", "POST", "/v1/keys", json=body), 422, "invalid_input")["param"] == param
    )


async def test_making_a_key_cannot_be_repeated(call: Any, backend: FakeBackend) -> None:
    response = await call(
        "admin", "POST", "/v1/keys", json={"role": "read"}, headers={"idempotency-key": "k"}
    )
    assert error_of(response, 422, "invalid_input")["param"] == "Idempotency-Key"
    assert backend.known_keys == {}


def test_the_table_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "security.md").read_text(encoding="utf-8")
    assert access_markdown() in page


def test_a_route_that_nobody_may_call_yet_cannot_be_declared() -> None:
    router = APIRouter(route_class=GuardedRoute)
    with pytest.raises(LookupError, match=r"POST /v1/new .*access\.py"):
        router.post("/v1/new")(lambda: None)


def test_calls_that_nobody_thought_of_are_refused() -> None:
    own = OwnBackend(FakeBackend(), "ada")
    for name in ("users", "embed", "rerank", "status", "api_keys", "put_adapter", "_backend_of_tomorrow"):
        with pytest.raises(Forbidden):
            getattr(own, name)
