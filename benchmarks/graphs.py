"""Graphs and encoders that benchmarks share: a real one, and synthetic ones of a given size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np

from benchmarks.report import shared_data
from graph.datasets import DemoDataset, MovieLensDataset, Rejects
from graph.datasets.records import Dataset
from graph.schema import RATING_DTYPE, ChangeSet, Item, User, WriteRequest
from graph.view import GraphView
from models.graph_encoder.features import HashedFeatures
from models.graph_encoder.parameters import EdgeWeights, EncoderParameters, Float32, LinearParameters
from models.graph_encoder.sage_parameters import SageParameters


def demo_view() -> GraphView:
    return _view_of(DemoDataset())


def movielens_view() -> GraphView:
    return _view_of(MovieLensDataset(shared_data("ml-latest-small")))


def synthetic_view(users: int, items: int, ratings: int, seed: int = 0) -> GraphView:
    """Skewed degrees on both sides; defaults of the callers follow MovieLens 1M (6040, 3706, 1,000,209)."""
    rng = np.random.default_rng(seed)
    activity = rng.lognormal(0, 1.1, users)
    popularity = 1 / np.arange(1, items + 1) ** 0.6
    owners = rng.choice(users, ratings * 2, p=activity / activity.sum())
    rated = rng.choice(items, ratings * 2, p=popularity / popularity.sum())
    pairs = rng.permutation(np.unique(owners * items + rated))[:ratings]
    edges = np.zeros(len(pairs), RATING_DTYPE)
    edges["user_row"], edges["item_row"] = pairs // items, pairs % items
    edges["value"], edges["version"] = rng.integers(1, 11, len(pairs)) / 2, 1
    view = GraphView("synthetic")
    view.apply(
        ChangeSet(
            0,
            1,
            [User(n, f"u{n}", {}, 1) for n in range(users)],
            [Item(n, f"i{n}", f"Title {n}", ("a", f"b{n % 20}"), 1990, "", 1) for n in range(items)],
            ratings=edges,
        )
    )
    return view


def random_parameters(view: GraphView, dim: int = 64) -> LinearParameters:
    """An untrained `linear` encoder over all items of a view: inference costs the same."""
    table = _tables()
    return LinearParameters(
        **_item_tables(view, dim, table), mix=np.full(5, 0.5, np.float32), degree_exponent=0.5
    )


def random_sage_parameters(view: GraphView, dim: int = 64) -> SageParameters:
    """An untrained `sage` encoder over all items of a view: inference costs the same."""
    table = _tables()
    own = {field.name for field in fields(SageParameters)} - {
        field.name for field in fields(EncoderParameters)
    }
    biases = {"user_bias", "item_bias"}
    return SageParameters(
        **_item_tables(view, dim, table),
        **{name: table(dim) if name in biases else table(dim, dim) for name in sorted(own)},
    )


def _tables() -> Callable[..., Float32]:
    rng = np.random.default_rng(0)

    def table(*shape: int) -> Float32:
        return (rng.standard_normal(shape) * 0.1).astype(np.float32)

    return table


def _item_tables(view: GraphView, dim: int, table: Callable[..., Float32]) -> dict[str, Any]:
    features = HashedFeatures()
    ids = tuple(item.item_id for item in view.items())
    buckets = features.item_buckets
    return {
        "item_ids": ids,
        "id_source": table(len(ids), dim),
        "id_target": table(len(ids), dim),
        "id_bias": table(len(ids)),
        "feature_source": table(buckets, dim),
        "feature_target": table(buckets, dim),
        "feature_bias": table(buckets),
        "user_attributes": table(features.user_buckets, dim),
        "edge_weights": EdgeWeights(),
        "features": features.config(),
    }


def one_rating(view: GraphView, user_row: int, item_row: int, value: float = 4.0) -> ChangeSet:
    """The next version of a view: a single rating."""
    version = view.version + 1
    rating = np.zeros(1, RATING_DTYPE)
    rating[0] = (user_row, item_row, value, 0, version, False)
    return ChangeSet(version - 1, version, ratings=rating)


def _view_of(dataset: Dataset) -> GraphView:
    import tempfile
    from pathlib import Path

    from graph.store import GraphStore
    from graph.writer import GraphWriter

    with tempfile.TemporaryDirectory() as folder:
        writer = GraphWriter(GraphStore(Path(folder) / "weft.sqlite"))
        with Rejects() as rejects:
            for operations in dataset.load(rejects).batches():
                writer.commit([WriteRequest(operations)])
        return writer.view.copy()
