"""The application over a fake backend, without Ray: in process, and behind a real server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI

from deployments.ingress.application import create_app
from graph.schema import Item, User
from tests.deployments.ingress.fake_backend import FakeBackend


@pytest.fixture
def backend(tmp_path: Path) -> FakeBackend:
    backend = FakeBackend(version=7, upload_dir=tmp_path / "uploads")
    for n in range(3):
        item_id = f"i{n}"
        backend.known_items[item_id] = Item(n, item_id, f"Title {n}", ("drama",), 1990 + n, "plot", n + 1)
    backend.known_users["ada"] = User(3, "ada", {"city": "Turin"}, 4)
    return backend


@pytest.fixture
def app(backend: FakeBackend) -> FastAPI:
    return create_app(
        lambda: backend,
        max_body_bytes=4096,
        max_upload_bytes=8192,
        upload_dir=backend.upload_dir,
        remembered_nodes=2,
    )


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    # raise_app_exceptions: nothing may escape the edge.
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
def served(backend: FakeBackend) -> Iterator[str]:
    """The application as it is served: one of this machine alone, behind a real server."""
    app = create_app(lambda: backend, loopback_only=True, upload_dir=backend.upload_dir)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", lifespan="off"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            deadline = time.monotonic() + 10
            while not server.started:
                assert thread.is_alive(), "the server ended while starting"
                assert time.monotonic() < deadline, "the server has not started within 10 s"
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def client(served: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served, api_key="x", max_retries=0) as client:
        yield client
