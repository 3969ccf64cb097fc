"""The application over a fake backend, without Ray and without a network."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from deployments.ingress.application import create_app
from graph.schema import Item, User
from tests.deployments.ingress.fake_backend import FakeBackend


@pytest.fixture
def backend() -> FakeBackend:
    backend = FakeBackend(version=7)
    for n in range(3):
        item_id = f"i{n}"
        backend.known_items[item_id] = Item(n, item_id, f"Title {n}", ("drama",), 1990 + n, "plot", n + 1)
    backend.known_users["ada"] = User(3, "ada", {"city": "Turin"}, 4)
    return backend


@pytest.fixture
def app(backend: FakeBackend) -> FastAPI:
    return create_app(lambda: backend, max_body_bytes=4096, remembered_nodes=2)


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    # raise_app_exceptions: nothing may escape the edge.
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
