"""/v1/adapters: versions, uploads, what is active."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import stat
import time

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.ingress import uploads
from deployments.ingress.adapter_schemas import (
    AdaptersAnswer,
    AdapterStateAnswer,
    AdapterWriteAnswer,
    HistoryAnswer,
    PutAdapterAnswer,
)
from deployments.ingress.application import create_app
from deployments.ingress.uploads import SLACK_BYTES
from graph.errors import InvalidAdapter
from tests.deployments.ingress.error_shape import error_of
from tests.deployments.ingress.fake_backend import FakeBackend

ADA = "/v1/adapters/user/ada"
TAR = {"content-type": "application/x-tar"}


def leftovers(backend: FakeBackend) -> list[str]:
    return os.listdir(backend.upload_dir) if backend.upload_dir.exists() else []


async def test_from_the_inbox(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    response = await http.put(f"{ADA}/versions/v1", json={"path": "films/v1"})
    found = response.json()
    PutAdapterAnswer.model_validate(found, strict=True)
    assert (found["version"], found["changed"], found["replayed"]) == ("store1.8", 1, False)
    assert (found["adapter"]["scope"], found["adapter"]["name"], found["adapter"]["version"]) == (
        "user",
        "ada",
        "v1",
    )
    assert (backend.puts[0].path, backend.puts[0].upload) == ("films/v1", None)
    again = (await http.put(f"{ADA}/versions/v1", json={"path": "films/v1"})).json()
    assert (again["version"], again["changed"], again["replayed"]) == ("store1.8", 0, True)
    response = await http.put(f"{ADA}/versions/v1", content=b"other files", headers=TAR)
    error_of(response, 409, "conflict")


async def test_its_life(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    for label in ("v1", "v2"):
        await http.put(f"{ADA}/versions/{label}", json={"path": label})
    answers = []
    for body in (
        {"version": "v1"},
        {"arms": [{"version": "v1"}, {"version": "v2", "weight": 3}]},
        {"version": None},
    ):
        answers.append((await http.post(f"{ADA}/activate", json=body)).json())
    answers.append((await http.post(f"{ADA}/rollback")).json())
    answers.append((await http.post(f"{ADA}/rollback", json={})).json())
    for found in answers:
        AdapterStateAnswer.model_validate(found, strict=True)
        assert found["version"] == found["state"]["version"]
    told = [[(arm["version"], arm["weight"]) for arm in found["state"]["arms"]] for found in answers]
    assert told == [[("v1", 1.0)], [("v1", 1.0), ("v2", 3.0)], [], [("v1", 1.0), ("v2", 3.0)], []]
    history = (await http.get(f"{ADA}/history")).json()
    HistoryAnswer.model_validate(history, strict=True)
    assert history["history"] == [found["state"] for found in answers]
    assert (await http.get("/v1/adapters/user/nobody/history")).json() == {"history": []}

    await http.post(f"{ADA}/activate", json={"version": "v1"})
    error_of(await http.delete(f"{ADA}/versions/v1"), 409, "adapter_in_use")
    gone = (await http.delete(f"{ADA}/versions/v2")).json()
    AdapterWriteAnswer.model_validate(gone, strict=True)
    error_of(await http.delete(f"{ADA}/versions/v2"), 404, "unknown_adapter")
    error_of(await http.post(f"{ADA}/activate", json={"version": "v2"}), 404, "unknown_adapter")
    error_of(await http.post("/v1/adapters/domain/films/rollback"), 409, "conflict")
    assert gone["version"] == f"store1.{backend.version}"


async def test_lists(http: httpx.AsyncClient) -> None:
    for scope, name in (("user", "ada"), ("domain", "films"), ("global", "default")):
        response = await http.put(f"/v1/adapters/{scope}/{name}/versions/v1", json={"path": "a"})
        assert response.status_code == 200
    await http.post("/v1/adapters/domain/films/activate", json={"version": "v1"})
    found = (await http.get("/v1/adapters")).json()
    AdaptersAnswer.model_validate(found, strict=True)
    assert [entry["active"] for entry in found["adapters"]] == [False, True, False]
    assert [state["name"] for state in found["states"]] == ["films"]
    assert found["candidates"] == [
        {"path": "films/v3", "digest": None, "size_bytes": 12, "problem": "it has no adapter_config.json"}
    ]
    only = (await http.get("/v1/adapters?scope=user&name=ada")).json()["adapters"]
    assert [entry["name"] for entry in only] == ["ada"]
    page = (await http.get("/v1/adapters?limit=2")).json()
    rest = (await http.get(f"/v1/adapters?limit=2&after={page['next']}")).json()
    assert [entry["scope"] for entry in page["adapters"] + rest["adapters"]] == ["user", "domain", "global"]
    assert rest["next"] is None
    for query, param in (
        ("scope=x", "scope"),
        ("name=..", "name"),
        ("limit=0", "limit"),
        ("after=", "after"),
    ):
        response = await http.get(f"/v1/adapters?{query}")
        assert error_of(response, 422, "invalid_input")["param"] == param


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("users/ada/versions/v1", "scope"),
        ("%00/ada/versions/v1", "scope"),
        ("USER/ada/versions/v1", "scope"),
        ("user/%2E%2E/versions/v1", "name"),
        ("user/a%00/versions/v1", "name"),
        ("user/%20/versions/v1", "name"),
        ("user/a%C2%85/versions/v1", "name"),
        ("user/" + "x" * 129 + "/versions/v1", "name"),
        ("global/films/versions/v1", "name"),
        ("user/ada/versions/%2E%2E", "version"),
        ("user/ada/versions/.hidden", "version"),
        ("user/ada/versions/a%00", "version"),
        ("user/ada/versions/a%0A", "version"),
        ("user/ada/versions/v%CB%88", "version"),
        ("user/ada/versions/%EF%BC%91", "version"),
        ("user/ada/versions/" + "x" * 65, "version"),
        ("user/ada/versions/a%20b", "version"),
        ("user/ada/versions/a%5Cb", "version"),
    ],
)
async def test_names_are_checked_first(
    http: httpx.AsyncClient, backend: FakeBackend, path: str, param: str
) -> None:
    for kwargs in ({"json": {"path": "a"}}, {"content": b"x", "headers": TAR}):
        response = await http.put(f"/v1/adapters/{path}", **kwargs)
        assert error_of(response, 422, "invalid_input")["param"] == param
    assert error_of(await http.delete(f"/v1/adapters/{path}"), 422, "invalid_input")["param"] == param
    if param != "version":
        pointer = path.partition("/versions/")[0]
        for response in (
            await http.post(f"/v1/adapters/{pointer}/activate", json={"version": "v1"}),
            await http.post(f"/v1/adapters/{pointer}/rollback"),
            await http.get(f"/v1/adapters/{pointer}/history"),
        ):
            assert error_of(response, 422, "invalid_input")["param"] == param
    assert backend.puts == []
    assert leftovers(backend) == []


async def test_encoded_slashes(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    for path in ("user/a%2Fb/versions/v1", "user/..%2F..%2Fetc/versions/v1", "user/ada/versions/..%2Fv1"):
        error_of(await http.put(f"/v1/adapters/{path}", json={"path": "a"}), 404, "unknown_route")
    assert backend.puts == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "path"),
        ({"path": ""}, "path"),
        ({"path": None}, "path"),
        ({"path": "/etc/passwd"}, "path"),
        ({"path": "a/b/c/d/e"}, "path"),
        ({"path": "a/.hidden"}, "path"),
        ({"path": "e\u0301"}, "path"),
        ({"path": "../x"}, "path"),
        ({"path": "a/../../x"}, "path"),
        ({"path": "a//b"}, "path"),
        ({"path": "."}, "path"),
        ({"path": "a\\b"}, "path"),
        ({"path": "a\x00"}, "path"),
        ({"path": "x" * 501}, "path"),
        ({"path": "a", "surprise": 1}, "surprise"),
    ],
)
async def test_paths(http: httpx.AsyncClient, backend: FakeBackend, body: dict, param: str) -> None:
    response = await http.put(f"{ADA}/versions/v1", json=body)
    assert error_of(response, 422, "invalid_input")["param"] == param
    assert backend.puts == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "version"),
        ({"version": "v1", "arms": [{"version": "v1"}]}, "version"),
        ({"version": "a/b"}, "version"),
        ({"version": 1}, "version"),
        ({"arms": []}, "arms"),
        ({"arms": [{"version": "v1"}] * 9}, "arms"),
        ({"arms": [{"version": "v1"}] * 2}, "arms"),
        ({"arms": [{"version": "v1", "weight": 0}]}, "arms[0].weight"),
        ({"arms": [{"version": "v1", "weight": -1}]}, "arms[0].weight"),
        ({"arms": [{"version": ".."}]}, "arms[0].version"),
        ({"arms": [{}]}, "arms[0].version"),
        ({"surprise": 1}, "surprise"),
    ],
)
async def test_activations(http: httpx.AsyncClient, backend: FakeBackend, body: dict, param: str) -> None:
    response = await http.post(f"{ADA}/activate", json=body)
    assert error_of(response, 422, "invalid_input")["param"] == param
    assert backend.states == {}
    response = await http.post(f"{ADA}/rollback", json={"surprise": 1})
    assert error_of(response, 422, "invalid_input")["param"] == "surprise"


async def test_the_next_request_sees_it(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    async def waited_for(**body: object) -> int:
        await http.post("/v1/generate", json={"text": "a"} | body)
        return backend.generated[-1].min_version

    await http.put(f"{ADA}/versions/v1", json={"path": "a"})
    version = backend.version
    assert await waited_for(user_id="ada") == version
    assert await waited_for(user_id="bob", adapter="user/ada/v1") == version
    assert await waited_for(user_id="bob") == await waited_for(domain="films") == 0
    await http.get("/v1/adapters")
    assert backend.min_versions[-1] == version
    await http.get("/v1/adapters/user/ada/history", headers={"x-weft-min-version": "store1.1"})
    assert backend.min_versions[-1] == version
    await http.put("/v1/adapters/global/default/versions/v1", json={"path": "a"})
    assert await waited_for(user_id="bob") == version + 1


# ------------------------------------------------------------------------------------------------- uploads


async def test_an_upload(http: httpx.AsyncClient, backend: FakeBackend, monkeypatch) -> None:
    modes, put = [], backend.put_adapter

    async def looking(what, min_version):
        modes.append(stat.S_IMODE((backend.upload_dir / what.upload).stat().st_mode))
        return await put(what, min_version)

    monkeypatch.setattr(backend, "put_adapter", looking)
    content = os.urandom(6000)  # more than an ordinary body may have

    async def pieces():
        for start in range(0, len(content), 7):
            yield content[start : start + 7]

    for label, body in (("v1", content), ("v2", pieces())):
        headers = {"content-type": "Application/X-Tar; q=1"}
        response = await http.put(f"{ADA}/versions/{label}", content=body, headers=headers)
        assert response.json()["adapter"]["size_bytes"] == 6000
    assert backend.uploaded == [content] * 2
    assert modes == [0o600] * 2
    assert leftovers(backend) == []
    names = {what.upload for what in backend.puts}
    assert len(names) == 2
    assert all("/" not in name for name in names)


async def test_a_refused_upload_leaves_nothing(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    for raised, status in ((InvalidAdapter("rank 128 is above 64"), 422), (RuntimeError("x"), 500)):
        backend.raises = raised
        response = await http.put(f"{ADA}/versions/v1", content=b"x", headers=TAR)
        error_of(response, status, getattr(raised, "code", "internal"))
        assert leftovers(backend) == []
    backend.raises = None
    response = await http.put(f"{ADA}/versions/v1", content=b"", headers=TAR)
    assert error_of(response, 422, "invalid_input")["param"] == "body"
    assert leftovers(backend) == []


async def test_too_large(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    limit = 8192 + SLACK_BYTES

    async def pieces():
        for _ in range(0, limit + 4096, 4096):
            yield bytes(4096)

    for body in (bytes(limit + 1), pieces()):
        response = await http.put(f"{ADA}/versions/v1", content=body, headers=TAR)
        assert "max_adapter_bytes" in error_of(response, 413, "body_too_large")["message"].lower()
        assert leftovers(backend) == []
    assert (await http.put(f"{ADA}/versions/v1", content=bytes(limit), headers=TAR)).status_code == 200
    # Only where an adapter is put, and only as a tar.
    large = b'{"path": "a"}'.ljust(5000)
    for method, path, kind in (
        ("PUT", f"{ADA}/versions/v1", "application/json"),
        ("POST", f"{ADA}/versions/v1", "application/x-tar"),
        ("PUT", "/v1/users/ada", "application/x-tar"),
        ("PUT", f"{ADA}/versions/v1/x", "application/x-tar"),
    ):
        response = await http.request(method, path, content=large, headers={"content-type": kind})
        error_of(response, 413, "body_too_large")


async def test_other_types(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    for kind in ("", "text/plain", "application/zip", "application/octet-stream", "multipart/form-data"):
        response = await http.put(f"{ADA}/versions/v1", content=b"x", headers={"content-type": kind})
        error_of(response, 415, "unsupported_media_type")
    assert backend.puts == []


async def test_without_a_folder(backend: FakeBackend) -> None:
    transport = httpx.ASGITransport(create_app(lambda: backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        response = await http.put(f"{ADA}/versions/v1", content=b"x", headers=TAR)
        error_of(response, 422, "invalid_input")


async def test_an_upload_that_breaks_off(app: FastAPI, backend: FakeBackend) -> None:
    messages = [
        {"type": "http.request", "body": b"x" * 100, "more_body": True},
        {"type": "http.disconnect"},
    ]
    seen: list[list[str]] = []

    async def receive() -> dict:
        seen.append(leftovers(backend))
        return messages.pop(0)

    sent = []

    async def send(message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "PUT",
        "path": f"{ADA}/versions/v1",
        "query_string": b"",
        "headers": [(b"content-type", b"application/x-tar"), (b"content-length", b"200")],
    }
    await app(scope, receive, send)
    assert sent[0]["status"] == 422
    assert len(seen[1]) == 1  # it was there while it came
    assert leftovers(backend) == []
    assert backend.puts == []


def test_hanging_up_while_uploading(served: str, backend: FakeBackend) -> None:
    host, port = served.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            f"PUT {ADA}/versions/v1 HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/x-tar\r\n"
            "content-length: 1000\r\n\r\nabc".encode()
        )
        wait_until(lambda: len(leftovers(backend)) == 1)
    wait_until(lambda: leftovers(backend) == [])
    assert backend.puts == []


async def test_only_so_many_at_a_time(http: httpx.AsyncClient, backend: FakeBackend, monkeypatch) -> None:
    monkeypatch.setattr(uploads, "MAX_RECEIVED", 2)
    goes_on = asyncio.Event()

    async def slowly():
        yield b"x"
        await goes_on.wait()

    async def put(label: str, body) -> httpx.Response:
        return await http.put(f"{ADA}/versions/{label}", content=body, headers=TAR)

    running = [asyncio.create_task(put(f"v{n}", slowly())) for n in range(2)]
    async with asyncio.timeout(5):
        while len(leftovers(backend)) < 2:
            await asyncio.sleep(0)
    refused = await put("v3", b"x")
    assert error_of(refused, 429, "overloaded")["retryable"]
    assert "retry-after" in refused.headers
    goes_on.set()
    assert [(await response).status_code for response in running] == [200, 200]
    assert (await put("v3", b"x")).status_code == 200
    assert leftovers(backend) == []


async def test_an_upload_that_stalls(http: httpx.AsyncClient, backend: FakeBackend, monkeypatch) -> None:
    monkeypatch.setattr(uploads, "STALLED_S", 0.01)

    async def never():
        yield b"abc"
        await asyncio.get_running_loop().create_future()

    response = await http.put(f"{ADA}/versions/v1", content=never(), headers=TAR)
    assert "after 3 bytes" in error_of(response, 422, "invalid_input")["message"]
    assert leftovers(backend) == []
    assert backend.puts == []


def wait_until(condition) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


_fuzzed = functools.cache(lambda: create_app(FakeBackend))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["PUT", "DELETE", "POST", "GET"]),
    st.lists(
        st.sampled_from(
            ["user", "global", "..", "%2e%2e", "%00", "%FF", "versions", "v1", "%2F", "activate", "é"]
        ),
        max_size=6,
    ),
    st.binary(max_size=40) | st.sampled_from([b"{}", b'{"path":"a"}', b"[]", b'{"path":"\\ud800"}']),
    st.sampled_from(["application/json", "application/x-tar", "text/plain"]),
)
def test_nothing_is_a_500(method: str, parts: list[str], body: bytes, kind: str) -> None:
    async def ask() -> None:
        transport = httpx.ASGITransport(_fuzzed())
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            path = "/".join(["/v1/adapters", *parts])
            response = await http.request(method, path, content=body, headers={"content-type": kind})
            assert response.status_code < 500, response.text
            if response.status_code >= 400:
                error_of(response)

    asyncio.run(ask())
