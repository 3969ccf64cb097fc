"""Memories, relations and a user's graph: what they answer, what they refuse, and whose they are."""

from __future__ import annotations

import time

import httpx
import pytest

from deployments.ingress import memory_schemas, schemas
from graph.schema import (
    MAX_RELATION_CHARS,
    MAX_SOURCE_CHARS,
    MAX_TEXT_CHARS,
    MAX_UNIX_S,
    DeleteMemory,
    DeleteRelation,
    PutMemory,
    PutRelation,
)
from tests.deployments.ingress.error_shape import error_of
from tests.deployments.ingress.fake_backend import FakeBackend

ALL = "/v1/users/ada/memories"
ONE = f"{ALL}/m0"
RELATIONS = "/v1/users/ada/relations"
GRAPH = "/v1/users/ada/graph"
ABOUT = {"memory_id": "m0", "name": "about", "item_id": "i0"}


@pytest.fixture
async def known(http: httpx.AsyncClient) -> httpx.AsyncClient:
    """Ada said two things, the first about the second and about an item; Bob said one."""
    rows = [
        {
            "memory_id": "m0",
            "text": "likes rain",
            "source": "chat",
            "valid_at": "2024-02-29",
            "relations": [{"name": "about", "item_id": "i0"}, {"name": "contradicts", "memory_id": "m1"}],
        },
        {"memory_id": "m1", "text": "hates rain", "invalid_at": 1_700_000_000},
    ]
    for user, memories in (("ada", rows), ("bob", [{"memory_id": "b0", "text": "likes sun"}])):
        written = await http.post(f"/v1/users/{user}/memories", json={"memories": memories})
        assert written.status_code == 200, written.text
    return http


@pytest.mark.parametrize(
    ("method", "path", "body", "model"),
    [
        ("POST", ALL, {"text": "a"}, memory_schemas.MemoriesWrittenAnswer),
        ("GET", ALL, None, memory_schemas.MemoriesAnswer),
        ("GET", ONE, None, memory_schemas.MemoryAnswer),
        ("PUT", ONE, {"text": "a"}, schemas.WriteAnswer),
        ("DELETE", ONE, None, schemas.WriteAnswer),
        ("POST", f"{ALL}/search", {"query": "rain"}, memory_schemas.MemorySearchAnswer),
        ("POST", RELATIONS, ABOUT | {"name": "new"}, schemas.WriteAnswer),
        ("DELETE", f"{RELATIONS}?memory_id=m0&name=about&item_id=i0", None, schemas.WriteAnswer),
        ("GET", GRAPH, None, memory_schemas.UserGraphAnswer),
        ("GET", "/v1/users/ada/context", None, memory_schemas.ContextAnswer),
    ],
)
async def test_answers_are_as_documented(
    known: httpx.AsyncClient, method: str, path: str, body, model
) -> None:
    response = await known.request(method, path, json=body)
    assert response.status_code == 200, response.text

    class Exact(model, extra="forbid"): ...

    Exact.model_validate(response.json(), strict=True)


async def test_one_memory(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    assert (await known.get(ONE)).json() == {
        "memory_id": "m0",
        "user_id": "ada",
        "text": "likes rain",
        "valid_at": "2024-02-29T00:00:00Z",
        "invalid_at": None,
        "source": "chat",
        "valid": True,
        "relations": [
            {"name": "about", "kind": "item", "id": "i0", "title": "Title 0"},
            {"name": "contradicts", "kind": "memory", "id": "m1", "title": "hates rain"},
        ],
        "version": f"store1.{backend.version}",
    }
    assert (await known.get(f"{ALL}/m1")).json()["valid"] is False
    await known.put(ONE, json={"text": "loves rain", "source": ""})
    assert backend.writes[-1].operations == (PutMemory("m0", "ada", "loves rain"),)
    found = (await known.get(ONE)).json()
    assert (found["text"], found["valid_at"], len(found["relations"])) == ("loves rain", None, 2)
    await known.delete(ONE)
    assert backend.writes[-1].operations == (DeleteMemory("m0", "ada"),)
    error_of(await known.get(ONE), 404, "unknown_memory")
    error_of(await known.delete(ONE), 404, "unknown_memory")


async def test_many_are_one_write(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    relation = {"name": "about", "item_id": "i1"}
    rows = [{"text": "a", "relations": [relation]}, {"text": "b", "memory_id": "mine"}]
    written = (await http.post(ALL, json={"memories": rows})).json()
    first, second = written["memory_ids"]
    assert (second, written["version"], written["changed"]) == ("mine", "store1.8", 3)
    assert first.startswith("mem_")
    assert len(first) == 24
    assert backend.writes[-1].operations == (
        PutMemory(first, "ada", "a"),
        PutMemory("mine", "ada", "b"),
        PutRelation("ada", first, "about", "item", "i1"),
    )
    rows = [{"text": "c", "memory_id": "c"}, {"text": "d", "relations": [relation | {"item_id": "no"}]}]
    error_of(await http.post(ALL, json={"memories": rows}), 404, "unknown_item")
    error_of(await http.get(f"{ALL}/c"), 404, "unknown_memory")
    await http.post("/v1/users/new/memories", json={"text": "a"})  # creates the user
    assert (await http.get("/v1/users/new")).status_code == 200


async def test_made_ids(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    """A repetition under a key makes the same ids, everything else makes others."""

    async def made(path: str = ALL, key: str | None = "k", text: str = "a") -> list[str]:
        headers = {} if key is None else {"idempotency-key": key}
        body = {"memories": [{"text": text}, {"text": text}]}
        return (await http.post(path, json=body, headers=headers)).json()["memory_ids"]

    first = await made()
    assert await made() == first
    assert backend.writes[-1].operations == backend.writes[-2].operations
    assert len((await http.get(ALL)).json()["memories"]) == 2
    others = [await made("/v1/users/bob/memories"), await made(key="l"), await made(key=None)]
    others.append(await made(key=None))
    backend.replies.clear()  # a day later
    others.append(await made(text="b"))
    everything = [memory_id for ids in (first, *others) for memory_id in ids]
    assert len(set(everything)) == len(everything) == 12
    backend.replies.clear()
    assert await made() == first


async def test_keys_of_relations(known: httpx.AsyncClient) -> None:
    headers = {"idempotency-key": "k"}
    queries = [ABOUT, {"memory_id": "m0", "name": "contradicts", "to_memory_id": "m1"}]
    first = await known.delete(RELATIONS, params=queries[0], headers=headers)
    assert first.json()["replayed"] is False
    again = await known.delete(RELATIONS, params=queries[0], headers=headers)
    assert again.json() == first.json() | {"replayed": True}
    other = await known.delete(RELATIONS, params=queries[1], headers=headers)
    error_of(other, 409, "idempotency_conflict")


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("2026-03-01T00:00:00Z", 1_772_323_200),
        ("2026-03-01", 1_772_323_200),
        ("2026-03-01 00:00", 1_772_323_200),
        ("2026-03-01t00:00:00z", 1_772_323_200),
        ("2026-03-01T01:30:00+01:30", 1_772_323_200),
        ("2026-02-28T19:00:00-0500", 1_772_323_200),
        ("2026-03-01T00:00:00.999999999Z", 1_772_323_200),
        ("2026-03-01T00:00:00,9", 1_772_323_200),
        (1_772_323_200, 1_772_323_200),
        (1_772_323_200.9, 1_772_323_200),
        ("1970-01-01", 0),
        ("9999-12-31T23:59:59Z", MAX_UNIX_S),
        (MAX_UNIX_S, MAX_UNIX_S),
        (None, None),
    ],
)
async def test_times(http: httpx.AsyncClient, backend: FakeBackend, given, seconds) -> None:
    response = await http.put(ONE, json={"text": "a", "valid_at": given})
    assert response.status_code == 200, response.text
    assert backend.writes[-1].operations[0].valid_at == seconds
    told = (await http.get(ONE)).json()["valid_at"]
    await http.put(ONE, json={"text": "a", "valid_at": told})  # what comes out goes in
    assert backend.writes[-1].operations[0].valid_at == seconds


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "yesterday",
        "1772323200",
        "20260301",
        "2026-W09-7",
        "2026-3-1",
        "2026-02-30",
        "2026-03-01T25:00:00Z",
        "2026-03-01T00:00:60Z",
        "2026-03-01x00:00:00",
        "2026-03-01T00:00:00+99:00",
        "2026-03-01\n",
        "٢٠٢٦-03-01",
        "1969-12-31T23:59:59Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        -1,
        MAX_UNIX_S + 1,
        10**400,
        1e300,
        True,
        [],
        {},
    ],
)
async def test_what_is_no_time(http: httpx.AsyncClient, backend: FakeBackend, bad) -> None:
    for name in ("valid_at", "invalid_at"):
        error = error_of(await http.put(ONE, json={"text": "a", name: bad}), 422, "invalid_input")
        assert error["param"] == name
        assert "ISO 8601" in error["message"]
    rows = [{"text": "a"}, {"text": "b", "valid_at": bad}]
    error = error_of(await http.post(ALL, json={"memories": rows}), 422, "invalid_input")
    assert error["param"] == "memories[1].valid_at"
    assert backend.writes == []


async def test_what_holds(http: httpx.AsyncClient) -> None:
    now = int(time.time())
    spans = {
        "always": ({}, True),
        "begun": ({"valid_at": now - 60}, True),
        "to come": ({"valid_at": now + 3600}, False),
        "over": ({"invalid_at": now - 60}, False),
        "going on": ({"valid_at": now - 60, "invalid_at": now + 3600}, True),
    }
    rows = [{"text": name, "memory_id": name} | span for name, (span, _) in spans.items()]
    await http.post(ALL, json={"memories": rows})
    found = {m["text"]: m["valid"] for m in (await http.get(ALL)).json()["memories"]}
    assert found == {name: valid for name, (_, valid) in spans.items()}
    body = {"query": "begun", "valid_only": True}
    found = (await http.post(f"{ALL}/search", json=body)).json()["memories"]
    assert {memory["text"] for memory in found} == {name for name, (_, valid) in spans.items() if valid}
    for begin, end in ((5, 5), (6, 5), ("2026-03-01", "2026-02-28")):
        body = {"text": "a", "valid_at": begin, "invalid_at": end}
        error = error_of(await http.put(ONE, json=body), 422, "invalid_input")
        assert error["param"] == "invalid_at"
        error = error_of(await http.post(ALL, json={"memories": [body]}), 422, "invalid_input")
        assert error["param"] == "memories[0].invalid_at"


WRONG = [
    ({"text": ""}, "text"),
    ({"text": " \n"}, "text"),
    ({"text": "a\x00"}, "text"),
    ({"text": "x" * (MAX_TEXT_CHARS + 1)}, "text"),
    ({"text": None}, "text"),
    ({"text": 1}, "text"),
    ({"source": "x" * (MAX_SOURCE_CHARS + 1)}, "source"),
    ({"source": "a\x1b"}, "source"),
    ({"source": " "}, "source"),
    ({"surprise": 1}, "surprise"),
]
WRONG_ROWS = [
    *WRONG,
    ({"memory_id": "a/b"}, "memory_id"),
    ({"memory_id": "x" * 129}, "memory_id"),
    ({"memory_id": ""}, "memory_id"),
    ({"relations": [{"name": "a"}]}, "relations[0]"),
    ({"relations": [{"name": "a", "item_id": "i0", "memory_id": "m0"}]}, "relations[0]"),
    ({"relations": [{"name": "", "item_id": "i0"}]}, "relations[0].name"),
    ({"relations": [{"name": "a\n", "item_id": "i0"}]}, "relations[0].name"),
    ({"relations": [{"name": "x" * (MAX_RELATION_CHARS + 1), "item_id": "i0"}]}, "relations[0].name"),
    ({"relations": [{"name": "a", "item_id": " i0"}]}, "relations[0].item_id"),
    ({"relations": [{"name": "a", "to_memory_id": "m0"}]}, "relations[0].to_memory_id"),
    ({"relations": [{"name": "a", "item_id": "i0"}] * 65}, "relations"),
    ({"user_id": "bob"}, "user_id"),
]


@pytest.fixture
def roomy(app) -> None:
    app._edge._max_body_bytes = 1 << 22


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize(("change", "param"), WRONG_ROWS)
async def test_refused_memories(
    http: httpx.AsyncClient, backend: FakeBackend, change: dict, param: str
) -> None:
    row = {"text": "a"} | change
    assert error_of(await http.post(ALL, json=row), 422, "invalid_input")["param"] == param
    many = {"memories": [{"text": "a"}, row]}
    error = error_of(await http.post(ALL, json=many), 422, "invalid_input")
    assert error["param"] == f"memories[1].{param}"
    if (change, param) in WRONG:
        assert error_of(await http.put(ONE, json=row), 422, "invalid_input")["param"] == param
    assert backend.writes == []


@pytest.mark.usefixtures("roomy")
async def test_how_much_one_write_takes(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    for rows in ([], [{"text": "a"}] * 5_001, [{"text": "a"}, *[_with_relations(64)] * 77]):
        error = error_of(await http.post(ALL, json={"memories": rows}), 422, "invalid_input")
        assert error["param"] == "memories"
    assert backend.writes == []
    rows = [*[_with_relations(49)] * 100]
    assert (await http.post(ALL, json={"memories": rows})).status_code == 200
    assert len(backend.writes[-1].operations) == 5_000
    for rows in ([], [ABOUT] * 5_001):
        error = error_of(await http.post(RELATIONS, json={"relations": rows}), 422, "invalid_input")
        assert error["param"] == "relations"


def _with_relations(count: int) -> dict:
    return {"text": "a", "relations": [{"name": f"r{n}", "item_id": "i0"} for n in range(count)]}


async def test_pages(known: httpx.AsyncClient) -> None:
    names, after = [], None
    while True:
        page = (await known.get(ALL, params={"limit": 1} | ({"after": after} if after else {}))).json()
        names += [memory["memory_id"] for memory in page["memories"]]
        assert page["user_id"] == "ada"
        if (after := page["next"]) is None:
            break
    assert names == ["m0", "m1"]
    for query in ("limit=0", "limit=1001", "after="):
        error = error_of(await known.get(f"{ALL}?{query}"), 422, "invalid_input")
        assert error["param"] == query.partition("=")[0]


async def test_search(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    found = (await known.post(f"{ALL}/search", json={"query": "who likes rain", "n": 1})).json()
    assert found == {
        "user_id": "ada",
        "memories": [
            {k: v for k, v in (await known.get(ONE)).json().items() if k != "version"} | {"score": 2.0}
        ],
        "text_model": None,
        "version": f"store1.{backend.version}",
    }
    for change, param in (
        ({"query": ""}, "query"),
        ({"query": " "}, "query"),
        ({"query": "x" * 4097}, None),  # larger than this application's bodies
        ({"n": 0}, "n"),
        ({"n": 1001}, "n"),
        ({"n": True}, "n"),
        ({"valid_only": 1}, "valid_only"),
        ({"user_id": "bob"}, "user_id"),
    ):
        response = await known.post(f"{ALL}/search", json={"query": "a"} | change)
        if param is None:
            error_of(response, 413, "body_too_large")
        else:
            assert error_of(response, 422, "invalid_input")["param"] == param


async def test_relations(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    rows = [ABOUT | {"name": "likes"}, {"memory_id": "m1", "name": "after", "to_memory_id": "m0"}]
    assert (await known.post(RELATIONS, json={"relations": rows})).json()["changed"] == 2
    assert backend.writes[-1].operations == (
        PutRelation("ada", "m0", "likes", "item", "i0"),
        PutRelation("ada", "m1", "after", "memory", "m0"),
    )
    query = {"memory_id": "m1", "name": "after", "to_memory_id": "m0"}
    await known.delete(RELATIONS, params=query)
    assert backend.writes[-1].operations == (DeleteRelation("ada", "m1", "after", "memory", "m0"),)
    error_of(await known.delete(RELATIONS, params=query), 404, "unknown_relation")
    error_of(await known.post(RELATIONS, json=ABOUT | {"item_id": "no"}), 404, "unknown_item")
    error_of(await known.post(RELATIONS, json=ABOUT | {"memory_id": "no"}), 404, "unknown_memory")
    for body, param in (
        (ABOUT | {"to_memory_id": "m1"}, None),
        ({"memory_id": "m0", "name": "about"}, None),
        ({"name": "about", "item_id": "i0"}, "memory_id"),
        ({"relations": [ABOUT, ABOUT | {"name": " "}]}, "relations[1].name"),
        (ABOUT | {"surprise": 1}, "surprise"),
    ):
        assert error_of(await known.post(RELATIONS, json=body), 422, "invalid_input")["param"] == param
    for change, param in (
        ({"memory_id": None}, "memory_id"),
        ({"name": None}, "name"),
        ({"name": "a\n"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"item_id": None}, "item_id"),
        ({"to_memory_id": "m1"}, "item_id"),
        ({"memory_id": "a/b"}, "memory_id"),
        ({"min_version": "store1.1"}, "min_version"),
    ):
        params = {name: value for name, value in (ABOUT | change).items() if value is not None}
        error = error_of(await known.delete(RELATIONS, params=params), 422, "invalid_input")
        assert error["param"] == param
    error_of(await known.delete(RELATIONS), 422, "invalid_input")


async def test_the_graph(known: httpx.AsyncClient) -> None:
    await known.post("/v1/ratings", json={"user_id": "ada", "item_id": "i1", "value": 4.0})
    found = (await known.get(GRAPH)).json()
    nodes = {(node["kind"], node["id"]): (node["label"], node["depth"]) for node in found["nodes"]}
    assert nodes == {
        ("user", "ada"): ("ada", 0),
        ("item", "i1"): ("Title 1", 1),
        ("memory", "m0"): ("likes rain", 1),
        ("memory", "m1"): ("hates rain", 1),
        ("item", "i0"): ("Title 0", 2),
    }
    assert found["complete"] is True
    edges = [(e["source"]["id"], e["name"], e["target"]["id"], e["value"]) for e in found["edges"]]
    assert edges == [
        ("ada", "rated", "i1", 4.0),
        ("ada", "remembers", "m0", None),
        ("ada", "remembers", "m1", None),
        ("m0", "about", "i0", None),
        ("m0", "contradicts", "m1", None),
    ]
    near = (await known.get(f"{GRAPH}?depth=1")).json()
    assert {node["id"] for node in near["nodes"]} == {"ada", "i1", "m0", "m1"}
    assert (await known.get(f"{GRAPH}?limit=2")).json()["complete"] is False
    for query in ("depth=0", "depth=9", "limit=0", "limit=1001", "depth=x"):
        error = error_of(await known.get(f"{GRAPH}?{query}"), 422, "invalid_input")
        assert error["param"] == query.partition("=")[0]


async def test_a_user_reaches_nothing_of_another(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    written = len(backend.writes)
    stranger = "/v1/users/bob"
    for method, path, body in (
        ("GET", "/memories/m0", None),
        ("DELETE", "/memories/m0", None),
        ("POST", "/relations", {"memory_id": "m0", "name": "x", "item_id": "i0"}),
        ("POST", "/relations", {"memory_id": "b0", "name": "x", "to_memory_id": "m0"}),
        ("DELETE", "/relations?memory_id=m0&name=about&item_id=i0", None),
        ("POST", "/memories", {"text": "a", "relations": [{"name": "x", "memory_id": "m0"}]}),
    ):
        error_of(await known.request(method, stranger + path, json=body), 404, "unknown_memory")
    for method, path, body in (
        ("PUT", "/memories/m0", {"text": "mine now"}),
        ("POST", "/memories", {"text": "mine now", "memory_id": "m0"}),
    ):
        error_of(await known.request(method, stranger + path, json=body), 409, "conflict")
    everything = [
        await known.get(f"{stranger}/memories"),
        await known.post(f"{stranger}/memories/search", json={"query": "likes rain"}),
        await known.get(f"{stranger}/graph?depth=8"),
        await known.get(f"{stranger}/context?query=rain"),
    ]
    for response in everything:
        assert response.status_code == 200
        assert "likes sun" in response.text
        assert "rain" not in response.text
    assert (await known.get(ONE)).json()["text"] == "likes rain"
    # Every operation that reached the backend names the user of the path, and nobody else.
    for request in backend.writes[written:]:
        assert {operation.user_id for operation in request.operations} == {"bob"}


async def test_one_id_twice_in_a_request(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = {"memories": [{"memory_id": "m", "text": "a"}, {"memory_id": "m", "text": "b"}]}
    written = len(backend.writes)
    error = error_of(await known.post("/v1/users/ada/memories", json=body), 422, "invalid_input")
    assert error["param"] == "memories"
    assert len(backend.writes) == written


async def test_vectors_of_memories(known: httpx.AsyncClient, backend: FakeBackend) -> None:
    path = "/v1/nodes/m0/embedding"
    found = (await known.get(f"{path}?kind=memory&user_id=ada")).json()
    assert (found["kind"], found["embedding"]) == ("memory", [1.5, 0.0])
    assert backend.min_versions[-1] == 8  # what ada wrote here last
    for user in ("bob", "nobody"):
        code = "unknown_memory" if user == "bob" else "unknown_user"
        error_of(await known.get(f"{path}?kind=memory&user_id={user}"), 404, code)
    error_of(await known.get(path), 404, "unknown_item")
    for query in ("kind=memory", "user_id=ada", "kind=item&user_id=ada"):
        assert error_of(await known.get(f"{path}?{query}"), 422, "invalid_input")["param"] == "user_id"


async def test_writes_are_waited_for(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    reads = [
        ("GET", ALL, None),
        ("GET", ONE, None),
        ("POST", f"{ALL}/search", {"query": "a"}),
        ("GET", GRAPH, None),
        ("GET", "/v1/users/ada/context", None),
        ("GET", "/v1/users/ada/recommendations", None),
    ]
    for method, path, body in (
        ("POST", ALL, {"text": "a", "memory_id": "m0"}),
        ("PUT", ONE, {"text": "b"}),
        ("POST", RELATIONS, ABOUT),
        ("DELETE", f"{RELATIONS}?memory_id=m0&name=about&item_id=i0", None),
    ):
        backend.view_version = backend.version
        written = await http.request(method, path, json=body)
        assert written.json()["version"] == f"store1.{backend.version}", written.text
        for method, path, body in reads:
            error_of(await http.request(method, path, json=body), 503, "not_yet")
        assert (await http.get("/v1/users")).status_code == 200
        backend.view_version = None
        for method, path, body in reads:
            backend.min_versions.clear()
            assert (await http.request(method, path, json=body)).status_code == 200
            assert backend.min_versions[0] == backend.version
    for method, path, body in reads:
        sent = {"headers": {"x-weft-min-version": "store2.1"}, "json": body}
        error_of(await http.request(method, path, **sent), 409, "foreign_token")


@pytest.mark.parametrize("bad", ["x" * 129, "%20a", "a%00b", "..%20"])
async def test_ids_in_paths(http: httpx.AsyncClient, backend: FakeBackend, bad: str) -> None:
    for method, path, body in (
        ("POST", f"/v1/users/{bad}/memories", {"text": "a"}),
        ("GET", f"/v1/users/{bad}/memories", None),
        ("POST", f"/v1/users/{bad}/memories/search", {"query": "a"}),
        ("GET", f"/v1/users/{bad}/memories/m0", None),
        ("PUT", f"/v1/users/{bad}/memories/m0", {"text": "a"}),
        ("DELETE", f"/v1/users/{bad}/memories/m0", None),
        ("GET", f"{ALL}/{bad}", None),
        ("PUT", f"{ALL}/{bad}", {"text": "a"}),
        ("DELETE", f"{ALL}/{bad}", None),
        ("POST", f"/v1/users/{bad}/relations", ABOUT),
        ("DELETE", f"/v1/users/{bad}/relations?memory_id=m0&name=a&item_id=i0", None),
        ("GET", f"/v1/users/{bad}/graph", None),
        ("GET", f"/v1/users/{bad}/context", None),
    ):
        error = error_of(await http.request(method, path, json=body), 422, "invalid_input")
        assert error["param"] == ("memory_id" if path.startswith(f"{ALL}/") else "user_id")
    assert backend.writes == []


async def test_a_memory_may_be_called_search(http: httpx.AsyncClient) -> None:
    assert (await http.put(f"{ALL}/search", json={"text": "a"})).status_code == 200
    assert (await http.get(f"{ALL}/search")).json()["memory_id"] == "search"
    assert (await http.post(f"{ALL}/search", json={"query": "a"})).json()["user_id"] == "ada"
