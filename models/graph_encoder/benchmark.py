"""How fast an attached encoder answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from graph.errors import InvalidInput
from models.graph_encoder.encoder import NodeKind, StructuralEncoder


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall times of one kind of call, after a warm-up."""

    mean_ms: float
    p50_ms: float
    p99_ms: float
    per_second: float


@dataclass(frozen=True, slots=True)
class EncoderBenchmark:
    """`full` is `encode_all`; `uncached` and `cached` are `encode_single`, in turn over users and items."""

    full: Timing
    uncached: Timing
    cached: Timing
    nodes: int
    ratings: int
    bytes_per_node: float
    """Of the incremental state's tables per live node; the graph itself is not counted."""


def benchmark_encoder(encoder: StructuralEncoder, num_iterations: int = 200) -> EncoderBenchmark:
    """Measure an encoder with an attached graph; its cache is empty afterwards.

    Raises InvalidInput without a graph, for an empty graph and for fewer than one iteration. An encoder made
    with `cache_embeddings=False` computes in `cached`, too.
    """
    view = encoder.view
    nodes: list[tuple[NodeKind, str]] = [("user", i) for i in encoder.user_ids] + [
        ("item", i) for i in encoder.item_ids
    ]
    if num_iterations < 1 or not nodes:
        raise InvalidInput("a benchmark needs a graph with nodes and at least one iteration")
    chosen = [nodes[n] for n in np.random.default_rng(0).integers(0, len(nodes), num_iterations)]

    def single(n: int) -> None:
        kind, node_id = chosen[n]
        encoder.encode_single(node_id, kind)

    def forget(n: int) -> None:
        encoder.invalidate([chosen[n][1]])

    full = _time(encoder, lambda n: encoder.encode_all(), num_iterations)
    uncached = _time(encoder, single, num_iterations, before=forget)
    cached = _time(encoder, single, num_iterations, before=single)
    bytes_per_node = encoder.statistics().state_bytes / len(nodes)
    encoder.invalidate()
    return EncoderBenchmark(full, uncached, cached, len(nodes), view.num_ratings, bytes_per_node)


def _time(
    encoder: StructuralEncoder,
    call: Callable[[int], object],
    iterations: int,
    before: Callable[[int], object] = lambda n: None,
) -> Timing:
    for n in range(min(3, iterations)):
        call(n)
    seconds = np.empty(iterations)
    for n in range(iterations):
        before(n)
        _wait(encoder)
        start = time.perf_counter()
        call(n)
        _wait(encoder)
        seconds[n] = time.perf_counter() - start
    p50, p99 = np.quantile(seconds, [0.5, 0.99])
    return Timing(
        float(seconds.mean() * 1e3), float(p50 * 1e3), float(p99 * 1e3), float(iterations / seconds.sum())
    )


def _wait(encoder: StructuralEncoder) -> None:
    if encoder.device.type == "cuda":
        torch.cuda.synchronize(encoder.device)
