"""What the edge counts and logs of requests, and the ids it gives them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from deployments import metrics, request_ids, slow_calls
from deployments.ingress.application import create_app
from deployments.metric_types import Labels
from deployments.request_ids import RequestIds
from tests.deployments.ingress.fake_backend import FakeBackend


class Difference:
    """What requests added to the metrics of the process since this was made."""

    def __init__(self) -> None:
        self._counts = metrics.REQUESTS.values()
        self._durations = metrics.REQUEST_DURATION.values()

    def counts(self) -> dict[Labels, float]:
        found = metrics.REQUESTS.values()
        grown = {labels: total - self._counts.get(labels, 0) for labels, total in found.items()}
        return {labels: count for labels, count in grown.items() if count}

    def durations(self) -> dict[Labels, int]:
        grown: dict[Labels, int] = {}
        for labels, now in metrics.REQUEST_DURATION.values().items():
            before = self._durations.get(labels)
            grown[labels] = now.count - (0 if before is None else before.count)
        return {labels: count for labels, count in grown.items() if count}


@pytest.fixture
def counted() -> Difference:
    return Difference()


async def test_requests_count_by_template_method_and_status(
    http: httpx.AsyncClient, counted: Difference
) -> None:
    for user in ("ada", "ada", "nobody-1", "nobody-2"):
        await http.get(f"/v1/users/{user}")
    await http.get("/livez")
    await http.get("/v1/users/ada/recommendations")
    await http.get("/v1/users/ada/recommendations?n=none")
    await http.put("/v1/items/private-name", json={"title": "T"})
    await http.post("/v1/ratings", content=b"{")
    await http.get("/secret/path")
    await http.request("BREW", "/v1/users/ada")
    assert counted.counts() == {
        ("GET", "/v1/users/{user_id}", "200"): 2,
        ("GET", "/v1/users/{user_id}", "404"): 2,
        ("GET", "/livez", "200"): 1,
        ("GET", "/v1/users/{user_id}/recommendations", "200"): 1,
        ("GET", "/v1/users/{user_id}/recommendations", "422"): 1,
        ("PUT", "/v1/items/{item_id}", "200"): 1,
        ("POST", "/v1/ratings", "415"): 1,
        ("GET", "unmatched", "404"): 1,
        ("other", "/v1/users/{user_id}", "405"): 1,
    }
    assert sum(counted.durations().values()) == sum(counted.counts().values())
    assert counted.durations()[("GET", "/v1/users/{user_id}")] == 4


async def test_labels_are_templates_and_methods_of_the_contract_whatever_is_asked(
    http: httpx.AsyncClient, app: FastAPI, counted: Difference
) -> None:
    templates = {*app.openapi()["paths"], "unmatched"}
    templates |= {path.replace("{model_id}", "{model_id:path}") for path in templates}
    for method in ("GET", "PUT", "POST", "DELETE", "X-OWN"):
        for path in ("/v1/users/u-1/ratings/i-1", "/v1/models/a/b/c", "/v1/memories", "//", "/v1/../etc"):
            await http.request(method, path, headers={"content-length": "0"})
    for method, route, status in counted.counts():
        assert method in ("GET", "PUT", "POST", "DELETE", "other")
        assert route in templates, route
        assert status.isdigit()


async def test_a_defect_is_a_500_and_a_client_that_goes_away_a_499(
    http: httpx.AsyncClient, backend: FakeBackend, counted: Difference
) -> None:
    async def broken(*_: Any) -> Any:
        raise RuntimeError("a defect")

    async def endless(*_: Any) -> Any:
        await asyncio.Event().wait()

    backend.recommend = broken  # type: ignore[method-assign]
    assert (await http.get("/v1/users/ada/recommendations")).status_code == 500
    backend.recommend = endless  # type: ignore[method-assign]
    task = asyncio.create_task(http.get("/v1/users/ada/recommendations"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    route = "/v1/users/{user_id}/recommendations"
    assert counted.counts() == {("GET", route, "500"): 1, ("GET", route, "499"): 1}


# ----------------------------------------------------------------------------------------------- request ids


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    slow_calls.configure(0.0)
    own = RequestIds()
    caplog.handler.addFilter(own)
    caplog.set_level(logging.INFO)
    yield caplog
    caplog.handler.removeFilter(own)
    slow_calls.configure(1.0)


async def test_a_request_s_line_and_whatever_works_for_it_have_its_id(
    http: httpx.AsyncClient, backend: FakeBackend, lines: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []
    user = backend.user

    async def noticed(*arguments: Any) -> Any:
        seen.append(request_ids.current())
        return await user(*arguments)

    backend.user = noticed  # type: ignore[method-assign]
    await http.get("/v1/users/ada", headers={"x-request-id": "trace-1"})
    (line,) = [r for r in lines.records if r.name == "weft.ingress"]
    assert line.request_id == "trace-1"  # type: ignore[attr-defined]
    assert line.getMessage().startswith("GET /v1/users/{user_id} 200 took ")
    assert seen == ["trace-1"]
    assert request_ids.current() == ""


async def test_quick_requests_have_no_line(http: httpx.AsyncClient, lines: pytest.LogCaptureFixture) -> None:
    slow_calls.configure(30.0)
    await http.get("/livez")
    assert [r for r in lines.records if r.name == "weft.ingress"] == []


@pytest.fixture
async def echoing(backend: FakeBackend) -> AsyncIterator[httpx.AsyncClient]:
    """As behind Ray Serve, which puts the id that came with a request on its answer."""
    app = create_app(lambda: backend, server_echoes_id=True)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.mark.parametrize("path", ["/livez", "/v1/users/ada", "/v1/users/nobody", "/nowhere"])
async def test_the_id_is_on_the_answer_once_also_where_the_server_puts_it_there(
    http: httpx.AsyncClient, echoing: httpx.AsyncClient, path: str
) -> None:
    sent = {"x-request-id": "trace-1"}
    assert (await http.get(path, headers=sent)).headers.get_list("x-request-id") == ["trace-1"]
    assert (await echoing.get(path, headers=sent)).headers.get_list("x-request-id") == []
    # What is none is replaced by ours, and of that the server knows nothing.
    for client in (http, echoing):
        for bad in ("two words", "x" * 65, 'quo"te'):
            answer = await client.get(path, headers={"x-request-id": bad})
            (made,) = answer.headers.get_list("x-request-id")
            assert made not in ("", bad)
            if answer.status_code >= 400:
                assert answer.json()["error"]["request_id"] == made
