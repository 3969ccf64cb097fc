"""A data directory that a service starts from in seconds: two kinds of films, their fans, two encoders.

The encoders are made, not trained: an item's vector is its kind plus a little noise, so recommendations make
sense, deterministically.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from graph.errors import WeftError
from graph.schema import Operation, PutItem, PutPointer, PutRating, PutUser, WriteRequest
from graph.store import GraphStore
from graph.writer import GraphWriter
from models.graph_encoder.checkpoint import save_checkpoint
from models.graph_encoder.features import HashedFeatures
from models.graph_encoder.parameters import EdgeWeights, LinearParameters
from models.item_similarity import ItemSimilarity
from models.ranking_settings import RankingSettings

KINDS = ("space", "garden")
ITEMS_PER_KIND = 60
FANS_PER_KIND = 8
RATINGS_PER_FAN = 10
_DIM = 16


@dataclass(frozen=True, slots=True)
class SmallStore:
    data_dir: Path
    items: dict[str, tuple[str, ...]]  # by kind
    fans: dict[str, tuple[str, ...]]  # by kind
    active: str  # digest of the encoder in use
    other: str  # digest of one that could be


def make_small_store(data_dir: Path, store_url: str | None = None) -> SmallStore:
    """Fill `data_dir` and the store, by default a file in it, the same for every call."""
    items = {kind: tuple(f"{kind}-{n:02}" for n in range(ITEMS_PER_KIND)) for kind in KINDS}
    fans = {kind: tuple(f"{kind}-fan-{n}" for n in range(FANS_PER_KIND)) for kind in KINDS}
    store = GraphStore(store_url or f"sqlite:///{data_dir / 'weft.sqlite'}")
    try:
        writer = GraphWriter(store)
        _commit(writer, *(PutItem(i, f"The {i}", (kind,), 1990, "") for kind in KINDS for i in items[kind]))
        _commit(writer, *(PutUser(u, {"likes": kind}) for kind in KINDS for u in fans[kind]))
        _commit(
            writer,
            *(
                PutRating(user, items[kind][(3 * fan + n) % ITEMS_PER_KIND], 4.0 + n % 2, 1_000 + n)
                for kind in KINDS
                for fan, user in enumerate(fans[kind])
                for n in range(RATINGS_PER_FAN)
            ),
        )
        active, other = (_save_encoder(data_dir / "encoders", items, seed) for seed in (1, 2))
        _commit(writer, PutPointer("encoder", "active", {"digest": active}))
    finally:
        store.close()
    return SmallStore(data_dir, items, fans, active, other)


def _commit(writer: GraphWriter, *operations: Operation) -> None:
    (outcome,) = writer.commit([WriteRequest(operations)]).outcomes
    if isinstance(outcome, WeftError):
        raise outcome


def _save_encoder(folder: Path, items: dict[str, tuple[str, ...]], seed: int) -> str:
    random = np.random.default_rng(seed)
    features = HashedFeatures(item_buckets=256, user_buckets=64)
    item_ids = tuple(i for kind in KINDS for i in items[kind])
    n = len(item_ids)
    vectors = random.normal(size=(n, _DIM)).astype(np.float32) * 0.05
    for place in range(n):
        vectors[place, place // ITEMS_PER_KIND] += 1.0
    parameters = LinearParameters(
        item_ids=item_ids,
        id_source=vectors,
        id_target=vectors,
        id_bias=np.zeros(n, np.float32),
        feature_source=np.zeros((features.item_buckets, _DIM), np.float32),
        feature_target=random.normal(size=(features.item_buckets, _DIM)).astype(np.float32) * 0.05,
        feature_bias=np.zeros(features.item_buckets, np.float32),
        user_attributes=np.zeros((features.user_buckets, _DIM), np.float32),
        mix=np.array([1.0, 0.1, 0.1, 1.0, 0.1], np.float32),
        degree_exponent=0.5,
        edge_weights=EdgeWeights((3.5,), (1.0,)),
        features=features.config(),
    )
    similarity = sp.random(n, n, density=5 / n, format="csr", dtype=np.float32, random_state=seed) * 0.1
    similarity.setdiag(0)
    similarity.eliminate_zeros()
    path = save_checkpoint(
        folder, parameters, ItemSimilarity(similarity), RankingSettings(1.0), {"seed": seed}
    )
    return path.name
