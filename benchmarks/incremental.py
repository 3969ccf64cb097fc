"""From one rating to a fresh user vector and refreshed item rows: incremental against a full recompute.

    python -m benchmarks.incremental

Incremental: `GraphView.apply`, then `apply` and `user_vector` of the encoder state, for random new ratings.
Yardsticks on the same graph, one thread each: `rebuild`, a new state from the live view (float64 sums and
features), and `bare products`, the propagation of `linear` alone, three float32 products over a matrix that
is there already: the least that any full recompute costs. Both kinds of encoder, `linear` and `sage`.

Text vectors: `LinearState.apply` of arriving vectors, one or many to a version, with text features.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import time
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.graphs import (
    movielens_view,
    one_rating,
    random_parameters,
    random_sage_parameters,
    synthetic_view,
)
from benchmarks.report import percentiles, spread, write
from graph.schema import ChangeSet, TextVector
from graph.view import GraphView
from models.graph_encoder.features import TextFeatures
from models.graph_encoder.incremental import LinearState
from models.graph_encoder.parameters import EncoderParameters
from models.graph_encoder.state import build_state

ROUNDS, RATINGS_PER_ROUND = 5, 400
TEXT_DIM = 384


def measure(view: GraphView, parameters: EncoderParameters) -> dict[str, Any]:
    state = build_state(parameters, view)
    edges = view.edges()
    matrix = sp.csr_matrix((np.ones(len(edges.values), np.float32), (edges.user_rows, edges.item_rows)))
    rng = np.random.default_rng(1)
    q = rng.standard_normal((matrix.shape[1], parameters.dim)).astype(np.float32)
    micros: list[float] = []
    against_rebuild, against_products = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        build_state(parameters, view)
        rebuild = time.perf_counter() - start
        start = time.perf_counter()
        matrix @ (q + matrix.T @ (matrix @ q))
        products = time.perf_counter() - start
        times = []
        # Whoever writes is one of the active: users are drawn by their number of ratings.
        for owner in rng.choice(edges.user_rows, RATINGS_PER_ROUND):
            change = one_rating(view, int(owner), int(rng.integers(view.num_item_rows)))
            start = time.perf_counter()
            state.apply(view.apply(change), view)
            state.user_vector(int(owner))
            times.append(time.perf_counter() - start)
        micros += [t * 1e6 for t in times]
        against_rebuild.append(rebuild / float(np.median(times)))
        against_products.append(products / float(np.median(times)))
    by_user, by_item = view.rating_bytes
    return {
        "ratings": view.num_ratings,
        "one_rating_us": percentiles(micros),
        "rebuild_over_incremental": spread(against_rebuild),
        "bare_products_over_incremental": spread(against_products),
        "deviation_from_rebuild": state.deviation(view),
        "bytes_per_rating": {
            "by_user": by_user / view.num_ratings,
            "by_item": by_item / view.num_ratings,
        },
    }


def measure_text(view: GraphView) -> dict[str, Any]:
    """Every item gets a vector: in versions of 256, then some again in versions of their own."""
    extractor = TextFeatures("random", TEXT_DIM)
    parameters, rng = random_parameters(view), np.random.default_rng(2)

    def table(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.1).astype(np.float32)

    columns = extractor.item_columns
    parameters = replace(
        parameters,
        feature_source=table(columns, parameters.dim),
        feature_target=table(columns, parameters.dim),
        feature_bias=table(columns),
        features=extractor.config(),
    )
    state = LinearState(parameters, extractor, view)
    rows = np.array([item.row for item in view.items()])

    def apply(chosen: np.ndarray) -> float:
        version = view.version + 1
        drawn = rng.standard_normal((len(chosen), TEXT_DIM)).astype("<f2")
        vectors = [
            TextVector("item", row, "random", "00" * 16, vector.tobytes(), version)
            for row, vector in zip(chosen.tolist(), drawn, strict=True)
        ]
        delta = view.apply(ChangeSet(view.version, version, text_vectors=vectors))
        start = time.perf_counter()
        state.apply(delta, view)
        return time.perf_counter() - start

    order = rng.permutation(rows)
    batches = [apply(order[first : first + 256]) * 1e3 for first in range(0, len(order), 256)]
    singles = [apply(rng.choice(rows, 1)) * 1e6 for _ in range(400)]
    # By its number of ratings: what a changed text of something popular costs.
    edges = view.edges()
    popular = [apply(rng.choice(edges.item_rows, 1)) * 1e6 for _ in range(400)]
    start = time.perf_counter()
    LinearState(parameters, extractor, view)
    return {
        "rebuild_ms": (time.perf_counter() - start) * 1e3,
        "one_vector_us": percentiles(singles),
        "one_vector_of_a_popular_item_us": percentiles(popular),
        "version_of_256_vectors_ms": percentiles(batches),
        "deviation_from_rebuild": state.deviation(view),
    }


if __name__ == "__main__":
    small, large = movielens_view(), synthetic_view(6040, 3706, 1_000_209)
    write(
        "incremental",
        {
            "ml-latest-small": measure(small, random_parameters(small)),
            "ml-1m-sized": measure(large, random_parameters(large)),
            "sage, ml-latest-small": measure(small, random_sage_parameters(small)),
            "sage, ml-1m-sized": measure(large, random_sage_parameters(large)),
            "text vectors, ml-latest-small": measure_text(movielens_view()),
        },
    )
