"""An encoder becomes active when as many replicas as are configured say that they can answer with it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import deployments.graph_keeper as keeper_module
from deployments.encoder_pointers import ACTIVE, CANDIDATE
from deployments.graph_keeper import GraphKeeper
from deployments.graph_state import FollowerReport
from deployments.settings import Settings
from graph.errors import InvalidInput, UnknownEncoder
from graph.schema import PutPointer, WriteRequest, WriteResult
from tests.small_store import make_small_store

Digests = tuple[str, ...]


class State:
    """Remembers pointer writes; its followers report whatever the test says."""

    def __init__(self) -> None:
        self.pointers: list[tuple[str, Any]] = []
        self.told: list[FollowerReport] = []

    async def write(self, requests: list[WriteRequest]) -> list[WriteResult]:
        (pointer,) = requests[0].operations
        assert isinstance(pointer, PutPointer)
        self.pointers.append((pointer.name, pointer.value["digest"]))
        return [WriteResult(10 + len(self.pointers), 1)]

    async def reports(self) -> Sequence[FollowerReport]:
        return self.told

    def tell(
        self, kind: str, version: int, loaded: tuple[str, ...] = (), failed: tuple[str, ...] = ()
    ) -> None:
        self.told = [r for r in self.told if r.kind != kind]
        self.told.append(FollowerReport(kind, kind, "s", version, loaded, failed))


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[GraphKeeper, State, str]:
    digest = make_small_store(tmp_path).other
    monkeypatch.setattr(keeper_module, "start_graph_state", lambda settings: None)
    found = GraphKeeper(Settings(data_dir=tmp_path))
    state = State()
    found._state = state  # type: ignore[assignment]
    return found, state, digest


async def pointed(state: State, *expected: tuple[str, Any]) -> None:
    async with asyncio.timeout(10):
        while state.pointers != list(expected):
            await asyncio.sleep(0.01)


async def test_it_waits_for_every_kind_and_for_reports_that_know_of_the_candidate(
    keeper: tuple[GraphKeeper, State, str],
) -> None:
    found, state, digest = keeper
    # As just after a restart of the writer: one follower has reported, and from before the candidate.
    state.tell("graph_encoder", 5, failed=(digest,))
    activation = asyncio.create_task(found.activate(digest))
    await pointed(state, (CANDIDATE, digest))
    state.tell("graph_encoder", 11, loaded=(digest,))
    await asyncio.sleep(0.2)
    assert not activation.done(), "no retriever has reported yet"
    assert state.pointers == [(CANDIDATE, digest)]
    state.tell("retriever", 11, loaded=(digest,))
    await pointed(state, (CANDIDATE, digest), (ACTIVE, digest))
    state.tell("graph_encoder", 12, loaded=(digest,))
    await asyncio.sleep(0.1)
    assert not activation.done(), "the retriever has not applied the change yet"
    state.tell("retriever", 12, loaded=(digest,))
    assert await activation == WriteResult(12, 1)


async def test_a_replica_that_cannot_load_it_withdraws_the_candidate(
    keeper: tuple[GraphKeeper, State, str],
) -> None:
    found, state, digest = keeper
    activation = asyncio.create_task(found.activate(digest))
    await pointed(state, (CANDIDATE, digest))
    state.tell("retriever", 11, failed=(digest,))
    assert isinstance(await activation, InvalidInput)
    assert state.pointers == [(CANDIDATE, digest), (CANDIDATE, None)]


async def test_damaged_and_unknown_encoders_move_no_pointer(keeper: tuple[GraphKeeper, State, str]) -> None:
    found, state, digest = keeper
    tensors = found._settings.encoder_dir / digest / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    assert isinstance(await found.activate(digest), InvalidInput)
    assert isinstance(await found.activate("0" * 16), UnknownEncoder)
    assert isinstance(await found.activate("../x"), UnknownEncoder)
    assert state.pointers == []
