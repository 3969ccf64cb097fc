"""Adding up a whole graph on a device: the same sums as scipy's on the CPU."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from models.graph_encoder import summation
from models.graph_encoder.summation import add_up, sparse_product

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def graph(seed: int = 3) -> tuple[Any, Any]:
    """Weights [users, items] with an empty row and an empty column, and sources [items, D]."""
    rng = np.random.default_rng(seed)
    dense = rng.random((60, 40)) * (rng.random((60, 40)) < 0.2)
    dense[7], dense[:, 11] = 0, 0
    return sp.csr_matrix(dense), rng.standard_normal((40, 8))


def halved(gathered: Any) -> Any:
    gathered *= 0.5  # in place, as encoders do
    return gathered


@pytest.mark.parametrize("device", DEVICES)
def test_a_product_on_a_device_is_the_product(device: str) -> None:
    weights, sources = graph()
    for matrix, factor in ((weights, sources), (sp.csr_matrix(weights.T), weights @ sources)):
        found = sparse_product(matrix, factor, device)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, matrix.toarray() @ factor, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_graphs_without_users_or_items(shape: tuple[int, int]) -> None:
    weights = sp.csr_matrix(shape, dtype=np.float64)
    assert add_up(weights, np.zeros((shape[1], 4)), halved, "cpu").shape == (shape[1], 4)
    assert sparse_product(weights, np.zeros((shape[1], 4)), "cpu").shape == (shape[0], 4)


def test_both_products_run_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, sources = graph()
    used: list[str] = []

    def noted(matrix: Any, factor: Any, device: str) -> Any:
        used.append(device)
        return sparse_product(matrix, factor, "cpu")

    monkeypatch.setattr(summation, "sparse_product", noted)
    expected = weights.T @ (0.5 * (weights @ sources))
    np.testing.assert_allclose(add_up(weights, sources, halved, "cuda"), expected, rtol=1e-13)
    assert used == ["cuda", "cuda"]
    np.testing.assert_allclose(add_up(weights, sources, halved, "cpu"), expected, rtol=1e-13)
    assert len(used) == 2


def test_the_cpu_does_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(summation, "sparse_product", full)
    weights, sources = graph()
    with caplog.at_level(logging.WARNING):
        found = add_up(weights, sources, halved, "cuda")
    np.testing.assert_allclose(found, weights.T @ (0.5 * (weights @ sources)), rtol=1e-13)
    assert "does not fit into the memory of cuda" in caplog.text
