"""What each route answers and what it asks of the backend."""

from __future__ import annotations

import hashlib
import time

import httpx
import orjson
import pytest
from fastapi import FastAPI

from deployments.ingress import schemas, text_schemas
from deployments.messages import RecommendQuery
from graph.errors import UnknownUser
from graph.schema import Idempotency, PutItem, PutRating, PutUser
from tests.deployments.ingress.error_shape import error_of
from tests.deployments.ingress.fake_backend import ENCODER, TEXT_MODEL, FakeBackend

RATING = {"user_id": "ada", "item_id": "i0", "value": 4.0}


@pytest.mark.parametrize(
    ("method", "path", "body", "model"),
    [
        ("GET", "/v1/users", None, schemas.UsersAnswer),
        ("GET", "/v1/users/ada", None, schemas.UserAnswer),
        ("PUT", "/v1/users/ada", {"attributes": {"a": 1}}, schemas.WriteAnswer),
        ("DELETE", "/v1/users/ada", None, schemas.WriteAnswer),
        ("GET", "/v1/items", None, schemas.ItemsAnswer),
        ("GET", "/v1/items/i0", None, schemas.ItemAnswer),
        ("PUT", "/v1/items/i0", {"title": "A"}, schemas.WriteAnswer),
        ("DELETE", "/v1/items/i0", None, schemas.WriteAnswer),
        ("POST", "/v1/items", {"items": [{"item_id": "x", "title": "A"}]}, schemas.WriteAnswer),
        ("GET", "/v1/items/i0/similar", None, schemas.SimilarItemsAnswer),
        ("GET", "/v1/items/i0/similar?by=text", None, schemas.SimilarItemsAnswer),
        ("POST", "/v1/ratings", RATING, schemas.WriteAnswer),
        ("GET", "/v1/users/ada/ratings", None, schemas.RatingsAnswer),
        ("GET", "/v1/users/ada/recommendations", None, schemas.RecommendationsAnswer),
        ("POST", "/v1/recommendations", {"user_ids": ["ada", "nobody"]}, schemas.ManyAnswer),
        ("POST", "/v1/recommendations/session", {"items": ["i0"]}, schemas.RecommendationsAnswer),
        ("GET", "/v1/nodes/ada/embedding", None, schemas.EmbeddingAnswer),
        ("GET", "/v1/encoders", None, schemas.EncodersAnswer),
        ("POST", f"/v1/encoders/{ENCODER}/activate", None, schemas.ActivateAnswer),
        ("POST", "/v1/embeddings", {"input": "a"}, text_schemas.EmbeddingsAnswer),
        (
            "POST",
            "/v1/embeddings",
            {"input": ["a"], "encoding_format": "base64"},
            text_schemas.EmbeddingsAnswer,
        ),
        ("POST", "/v1/search", {"query": "a"}, text_schemas.SearchAnswer),
        ("POST", "/v1/rerank", {"query": "a", "documents": ["b"]}, text_schemas.RerankAnswer),
        (
            "POST",
            "/v1/rerank",
            {"query": "a", "documents": ["b"], "return_documents": True},
            text_schemas.RerankAnswer,
        ),
        ("POST", "/v1/cache/invalidate", {"all": True}, text_schemas.InvalidateAnswer),
        ("GET", "/livez", None, schemas.LiveAnswer),
        ("GET", "/readyz", None, schemas.ReadyAnswer),
    ],
)
async def test_answers_are_as_documented(
    http: httpx.AsyncClient, method: str, path: str, body, model
) -> None:
    response = await http.request(method, path, json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"

    class Exact(model, extra="forbid"): ...

    Exact.model_validate(response.json(), strict=True)


async def test_the_documented_route_and_the_hot_one_agree(http: httpx.AsyncClient, app: FastAPI) -> None:
    for path in (
        "/livez",
        "/v1/users/ada/recommendations?n=2",
        "/v1/users/nobody/recommendations",
        "/livez?x=1",
    ):
        hot = await http.get(path, headers={"x-request-id": "same"})

        async def cold(exchange) -> None:
            return None

        app._edge._hot, kept = cold, app._edge._hot
        documented = await http.get(path, headers={"x-request-id": "same"})
        app._edge._hot = kept
        assert (hot.status_code, hot.content) == (documented.status_code, documented.content)
        assert sorted(hot.headers.multi_items()) == sorted(documented.headers.multi_items())


async def test_documentation(http: httpx.AsyncClient) -> None:
    assert (await http.get("/docs")).status_code == 200


async def test_the_document_describes_every_body_and_answer(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], path
            answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
            assert answer or path == "/v1/status", path
            assert operation["responses"]["4XX"]["content"]["application/json"]["schema"], path
            has_body = method in ("put", "post") and path != "/v1/encoders/{digest}/activate"
            assert ("requestBody" in operation) is has_body, path
    schemas = document["components"]["schemas"]
    fields = schemas["EmbeddingsBody"]["properties"]
    assert set(fields) == {"input", "model", "encoding_format", "dimensions", "user", "weft"}
    one, many = fields["input"]["anyOf"]
    assert (one["type"], many["type"], many["maxItems"]) == ("string", "array", 2048)
    assert schemas["RerankBody"]["properties"]["documents"]["maxItems"] == 1000
    similar = document["paths"]["/v1/items/{item_id}/similar"]["get"]["parameters"]
    (by,) = (parameter for parameter in similar if parameter["name"] == "by")
    assert by["schema"] == {"type": "string", "enum": ["graph", "text"], "default": "graph"}
    document = (await http.get("/openapi.json")).json()
    operation = document["paths"]["/v1/users/{user_id}/recommendations"]["get"]
    names = {parameter["name"] for parameter in operation["parameters"]}
    asked = set(RecommendQuery.__dataclass_fields__) - {"session"} | {"explain"}
    assert names == asked | {"x-weft-min-version"}
    defaults = {p["name"]: p["schema"].get("default") for p in operation["parameters"]}
    assert (defaults["n"], defaults["exclude_seen"], defaults["exact_items"]) == (10, True, False)


async def test_recommendation_options(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    await http.get("/v1/users/ada/recommendations")
    assert backend.queries.pop() == RecommendQuery("ada")
    query = (
        "n=5&tags=a,b&tags=c%20d&exclude=i1&exclude=i2,i3&candidates=i4&exclude_seen=false&exclude_below=2.5"
        "&because=0&exact_items=1&min_version=store1.2"
    )
    expected = {
        "n": 5,
        "tags": ("a", "b", "c d"),
        "exclude": ("i1", "i2", "i3"),
        "candidates": ("i4",),
        "exclude_seen": False,
        "exclude_below": 2.5,
        "because": False,
        "exact_items": True,
        "min_version": 2,
    }
    for _ in range(2):  # parsed, and remembered
        await http.get(f"/v1/users/ada/recommendations?{query}")
        assert backend.queries.pop() == RecommendQuery("ada", **expected)
    body = expected | {"min_version": "store1.2"}
    await http.post("/v1/recommendations", json=body | {"user_ids": ["ada"]})
    assert backend.queries.pop() == RecommendQuery("ada", **expected)
    items = ["i0", {"item_id": "i1", "value": 3.5}, {"item_id": "i2"}]
    await http.post("/v1/recommendations/session", json=body | {"items": items})
    session = (("i0", 5.0), ("i1", 3.5), ("i2", 5.0))
    assert backend.queries.pop() == RecommendQuery(None, session, **expected)
    await http.get("/v1/users/ada/recommendations?candidates=")
    assert backend.queries.pop().candidates == ()


async def test_recommendations(http: httpx.AsyncClient) -> None:
    answer = (await http.get("/v1/users/ada/recommendations?n=1")).json()
    assert answer == {
        "user_id": "ada",
        "basis": "personal",
        "recommendations": [
            {
                "item_id": "i0",
                "title": "Title 0",
                "score": 1.5,
                "because": [{"item_id": "i0", "title": "Title 0", "contribution": 0.25}],
            }
        ],
        "version": "store1.7",
        "item_version": "store1.7",
        "encoder": ENCODER,
    }


async def test_many_users_in_order_with_errors_in_place(
    http: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.raises_for["broken"] = RuntimeError("secret")
    users = ["nobody", "ada", "broken", "ada"]
    for accept in ("application/json", "application/x-ndjson"):
        response = await http.post(
            "/v1/recommendations", json={"user_ids": users, "n": 1}, headers={"accept": accept}
        )
        assert response.headers["content-type"].startswith(accept)
        if accept == "application/json":
            results = response.json()["results"]
        else:
            assert response.content.endswith(b"\n")
            results = [orjson.loads(line) for line in response.content.splitlines()]
        assert [result["user_id"] for result in results] == users
        codes = [result.get("error", {}).get("code") for result in results]
        assert codes == ["unknown_user", None, "internal", None]
        assert results[0]["error"]["request_id"] == response.headers["x-request-id"]
        assert "secret" not in response.text
    bad = {"user_ids": users, "min_version": "other.1"}
    response = await http.post("/v1/recommendations", json=bad, headers={"accept": "application/x-ndjson"})
    error_of(response, 409, "foreign_token")


async def test_one_rating_and_many(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    before = int(time.time())
    await http.post("/v1/ratings", json=RATING)
    (operation,) = backend.writes[-1].operations
    assert isinstance(operation, PutRating)
    assert (operation.user_id, operation.item_id, operation.value) == ("ada", "i0", 4.0)
    assert before <= operation.timestamp <= int(time.time())
    rows = [RATING | {"timestamp": 0}, RATING | {"item_id": "i1", "timestamp": 5}]
    answer = (await http.post("/v1/ratings", json={"ratings": rows})).json()
    assert answer == {"version": "store1.9", "changed": 2, "replayed": False}
    assert backend.writes[-1].operations == (
        PutRating("ada", "i0", 4.0, 0),
        PutRating("ada", "i1", 4.0, 5),
    )
    listed = (await http.get("/v1/users/ada/ratings?limit=1")).json()
    assert listed["ratings"] == [{"item_id": "i0", "value": 4.0, "timestamp": 0}]
    rest = (await http.get(f"/v1/users/ada/ratings?after={listed['next']}")).json()
    assert [entry["item_id"] for entry in rest["ratings"]] == ["i1"]
    assert rest["next"] is None
    error_of(await http.post("/v1/ratings", json=RATING | {"item_id": "no"}), 404, "unknown_item")


async def test_writes_carry_what_was_sent(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    await http.put("/v1/users/bob", json={"attributes": {"age": 5}})
    assert backend.writes[-1].operations == (PutUser("bob", {"age": 5}),)
    item = {"title": "A", "tags": ["x"], "year": 1999, "text": "y\nz"}
    await http.put("/v1/items/a", json=item)
    expected = PutItem("a", "A", ("x",), 1999, "y\nz")
    assert backend.writes[-1].operations == (expected,)
    await http.post("/v1/items", json={"items": [item | {"item_id": "a"}, {"item_id": "b", "title": "B"}]})
    assert backend.writes[-1].operations == (expected, PutItem("b", "B"))
    assert all(request.idempotency is None for request in backend.writes)


async def test_idempotency(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    headers = {"idempotency-key": "k1", "content-type": "application/json"}
    body = b' {"user_id":"ada","item_id":"i0","value":4}'
    first = (await http.post("/v1/ratings", content=body, headers=headers)).json()
    digest = hashlib.sha256(body).hexdigest()
    assert backend.writes[-1].idempotency == Idempotency("POST /v1/ratings", "k1", digest)
    again = (await http.post("/v1/ratings", content=body, headers=headers)).json()
    assert again == first | {"replayed": True}
    other = await http.post("/v1/ratings", content=body.strip(), headers=headers)
    error_of(other, 409, "idempotency_conflict")
    for method, path, json in (
        ("PUT", "/v1/users/ada", {}),
        ("PUT", "/v1/users/bob", {}),
        ("PUT", "/v1/items/i0", {"title": "A"}),
        ("POST", "/v1/items", {"items": [{"item_id": "i0", "title": "A"}]}),
        ("DELETE", "/v1/users/bob", None),
        ("DELETE", "/v1/users/ada/ratings/i0", None),
        ("DELETE", "/v1/items/i0", None),
    ):
        response = await http.request(method, path, json=json, headers={"idempotency-key": "k1"})
        assert response.json()["replayed"] is False
        assert backend.writes[-1].idempotency.scope == f"{method} {path}"
    gone = await http.request("DELETE", "/v1/items/i0", headers={"idempotency-key": "k1"})
    assert gone.json()["replayed"] is True


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v1/users/nobody", "unknown_user"),
        ("/v1/items/nothing", "unknown_item"),
        ("/v1/users/ada/ratings/i2", "unknown_rating"),
    ],
)
async def test_deleting_the_unknown(
    http: httpx.AsyncClient, backend: FakeBackend, path: str, code: str
) -> None:
    error_of(await http.delete(path), 404, code)
    backend.raises = UnknownUser("a store may raise instead")
    error_of(await http.delete(path), 404, "unknown_user")


@pytest.mark.parametrize("path", ["/v1/users", "/v1/items"])
async def test_listing(http: httpx.AsyncClient, backend: FakeBackend, path: str) -> None:
    await http.put("/v1/users/bob", json={})
    names, after = [], ""
    while after is not None:
        page = (await http.get(path, params={"limit": 1} | ({"after": after} if after else {}))).json()
        names += [next(iter(entry.values())) for entry in page[path.rpartition("/")[2]]]
        after = page["next"]
    assert names == (["ada", "bob"] if path == "/v1/users" else ["i0", "i1", "i2"])


async def test_similar_items_and_embeddings(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    answer = (await http.get("/v1/items/i0/similar?n=5&tags=drama&exclude=i1")).json()
    assert answer["similar"] == [{"item_id": "i2", "title": "Title 2", "score": 0.5}]
    assert (answer["by"], answer["model"], answer["encoder"]) == ("graph", ENCODER, ENCODER)
    assert (await http.get("/v1/items/i0/similar?n=5&tags=drama&exclude=i1&by=graph")).json() == answer
    answer = (await http.get("/v1/items/i0/similar?by=text")).json()
    assert (answer["by"], answer["model"], answer["encoder"]) == ("text", TEXT_MODEL, None)
    for query in ("by=title", "by=", "by=text&by=text"):
        error = error_of(await http.get(f"/v1/items/i0/similar?{query}"), 422, "invalid_input")
        assert error["param"] == "by"
    embedding = (await http.get("/v1/nodes/ada/embedding")).json()
    assert (embedding["kind"], embedding["embedding"]) == ("user", [0.5, -1.0])
    await http.put("/v1/users/i0", json={})
    assert error_of(await http.get("/v1/nodes/i0/embedding"), 422, "invalid_input")["param"] == "kind"
    for kind in ("user", "item"):
        assert (await http.get(f"/v1/nodes/i0/embedding?kind={kind}")).json()["kind"] == kind
    error_of(await http.get("/v1/nodes/i0/embedding?kind=rating"), 422, "invalid_input")


async def test_encoders_and_operations(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    answer = (await http.post(f"/v1/encoders/{ENCODER}/activate")).json()
    assert answer == {"version": "store1.8", "changed": 1, "replayed": False, "encoder": ENCODER}
    error_of(await http.post("/v1/encoders/none/activate"), 404, "unknown_encoder")
    assert (await http.get("/v1/status")).json() == {"store_id": "store1", "head": 8, "users": 1}
    assert (await http.get("/readyz")).json() == {"ready": True, "parts": {"encoder": "loaded"}}
    backend.is_ready = False
    waiting = await http.get("/readyz")
    assert error_of(waiting, 503, "not_ready")["retryable"] is True
    assert (waiting.json()["ready"], waiting.json()["parts"]) == (False, {"encoder": "loading"})
    assert "retry-after" in waiting.headers
    assert (await http.get("/livez")).json() == {"status": "ok"}
