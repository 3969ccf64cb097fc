"""A `GraphState` in this process, and what tests of its followers need."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deployments.graph_state import FollowerReport, GraphState
from deployments.settings import Settings
from graph.errors import WeftError
from graph.schema import Idempotency, Operation, WriteRequest, WriteResult
from graph.store import GraphStore
from graph.view import GraphView
from tests.graph.plain_model import read_view


def make_settings(folder: Path, **groups: Any) -> Settings:
    """Settings of a service in `folder`: words hashed in place of a text model, a cache in memory."""
    small = {"text_embedder": {"backend": "hashing", "model": "hashing"}, "cache": {"url": "memory://"}}
    return Settings.model_validate({"data_dir": folder, **small, **groups})


async def write(state: GraphState, *operations: Operation, key: str | None = None) -> WriteResult:
    """One request; raises what it was refused with."""
    idempotency = None if key is None else Idempotency("test", key, "")
    (outcome,) = await state.write([WriteRequest(operations, idempotency)])
    if isinstance(outcome, WeftError):
        raise outcome
    return outcome


async def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    """Let others run until `condition` holds; fails after the deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        await asyncio.sleep(0.001)


def report(state: GraphState, version: int, **other: Any) -> FollowerReport:
    return FollowerReport(
        **{"follower_id": "f", "kind": "test", "store_id": state.store_id, **other}, version=version
    )


def stored(settings: Settings) -> GraphView:
    """The graph as the store has it, read by a connection of its own."""
    store = GraphStore(settings.store_url)
    try:
        return read_view(store)
    finally:
        store.close()
