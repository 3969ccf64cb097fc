"""Where a graph encoder's replica adds its graph up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deployments.graph_encoder import GraphEncoder
from deployments.graph_state import GraphState
from deployments.messages import UserQuery, UserVector
from graph.errors import InvalidInput
from graph.schema import PutItem, PutPointer, PutRating, PutUser
from models.graph_encoder import summation
from tests.deployments.local_state import make_settings, write
from tests.deployments.test_replicas import make_encoder

sparse_product = summation.sparse_product


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Devices that products ran on, of a machine that seems to have one GPU."""
    used: list[str] = []

    def noted(matrix: Any, factor: Any, device: str) -> Any:
        used.append(device)
        return sparse_product(matrix, factor, "cpu")

    monkeypatch.setattr(summation, "sparse_product", noted)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    return used


async def vector_of(folder: Path, **group: Any) -> np.ndarray:
    """A user's vector by a replica with these settings."""
    settings = make_settings(folder, graph_encoder=group)
    digest = make_encoder(settings.encoder_dir, seed=1)
    state = GraphState(settings)
    encoder = GraphEncoder(settings, state)
    try:
        await write(state, *(PutItem(f"i{n}", f"Film {n}") for n in range(9)), PutUser("u0"), PutUser("u1"))
        ratings = (PutRating(f"u{n % 2}", f"i{n}", 5.0, 100) for n in range(9))
        await write(state, *ratings, PutPointer("encoder", "active", {"digest": digest}))
        await encoder.start()
        (answer,) = await encoder.user_vectors([UserQuery("u0")])
        assert isinstance(answer, UserVector) and answer.vector is not None
        return answer.vector
    finally:
        await encoder.stop()
        await state.close()


async def test_a_claimed_gpu_adds_the_graph_up(tmp_path: Path, devices: list[str]) -> None:
    on_cpu = await vector_of(tmp_path / "cpu")
    assert devices == []
    on_gpu = await vector_of(tmp_path / "gpu", device="cuda", num_gpus=0.1)
    assert devices == ["cuda", "cuda"]
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-5)


async def test_a_gpu_that_is_not_claimed_is_not_used(tmp_path: Path, devices: list[str]) -> None:
    await vector_of(tmp_path, device="auto", num_gpus=0)
    assert devices == []


async def test_a_claimed_gpu_that_torch_does_not_find_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    settings = make_settings(tmp_path, graph_encoder={"device": "cuda", "num_gpus": 0.1})
    state = GraphState(settings)
    with pytest.raises(InvalidInput, match="0 CUDA devices can be used here"):
        GraphEncoder(settings, state)
    await state.close()
