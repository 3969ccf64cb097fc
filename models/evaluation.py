"""Published ranking protocols, run on what is served.

`recommenders`: the benchmark of recommenders-team (examples/06_benchmarks): every rating is positive, 75/25
split at random within each item, seed 42. `temporal`: each user's last 20% by (time, file order). In both,
candidates are the items of the training part without those the user has rated there. Nothing is chosen on
the test part: training and baselines make a validation cut of their own from the training part. The protocol
`cold`, of items with few ratings or none, is in `cold_start.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from graph.errors import InvalidInput
from graph.schema import Item, User
from models.baselines import BASELINES, choose_settings
from models.graph_encoder.features import HashedFeatures, TextFeatures
from models.graph_encoder.selection import Validation
from models.graph_encoder.training import ALL_POSITIVE, Progress, TrainedEncoder, TrainingConfig, train_on
from models.interactions import Interactions, split_recommenders, split_temporal, validation_cut
from models.offline_service import OfflineService
from models.ranking_metrics import RankingMetrics, hits_of, ranking_metrics, top_items

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Protocol: TypeAlias = Literal["recommenders", "temporal"]

CUTOFFS = (10, 20)
_BLOCK_FLOATS = 16_000_000


@dataclass(frozen=True, slots=True)
class SystemReport:
    """One system under one protocol."""

    system: str
    metrics: Mapping[int, RankingMetrics]
    """By k."""
    settings: Mapping[str, object]
    """What was chosen on the validation cut."""
    seconds: float
    """Of choosing, fitting and recommending, on the clock."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything one run found; `systems[0]` is Weft."""

    protocol: Protocol
    systems: tuple[SystemReport, ...]
    candidate_recall: Mapping[int, float]
    """By k: share of the exhaustive top k that what is served finds."""
    num_users: int
    """Users measured: those with ratings on both sides."""
    num_train: int
    num_test: int
    training: Mapping[str, object]
    """`TrainedEncoder.metadata`."""


def evaluate_protocol(
    ratings: Interactions,
    items: Sequence[Item],
    users: Sequence[User],
    protocol: Protocol,
    *,
    baselines: bool = False,
    config: TrainingConfig | None = None,
    progress: Callable[[Progress], None] | None = None,
    item_vectors: Float32 | None = None,
    text_model: str | None = None,
) -> Report:
    """Split, train, recommend, measure.

    Args:
        ratings: in file order, indexing `items` and `users`.
        items: metadata for features; their `row` plays no part.
        users: likewise.
        protocol: which split.
        baselines: also fit the systems of `baselines.py`.
        config: of training, its seed included.
        progress: called with stages of training, then with each system's name.
        item_vectors: float32 [len(items), d] of `text_model`, zeros where an item has none: the features of
            Weft in place of hashed words.
        text_model: name of the model; both are given or neither.

    Raises:
        InvalidInput: the protocol is unknown, needs times that the ratings do not have, or nobody is left
            to measure.
    """
    config = config or TrainingConfig()
    train, test = _split(ratings, protocol)
    judge = _Judge(train, test)
    started = time.monotonic()
    extractor = (
        HashedFeatures()
        if item_vectors is None or text_model is None
        else TextFeatures(text_model, item_vectors.shape[1])
    )
    trained = train_on(train, items, users, config, progress, extractor, item_vectors)
    served, exhaustive = recommend_served(
        trained, train, items, users, judge.users, max(CUTOFFS), item_vectors
    )
    seconds = time.monotonic() - started
    similarity = trained.metadata["similarity"]
    fit = trained.metadata["fit"]
    reports = [
        SystemReport("weft", judge.measure(served), {"fit": fit, "similarity": similarity}, round(seconds, 1))
    ]
    if baselines:
        reports += _baselines(train, judge, config.seed, progress or (lambda _: None))
    return Report(
        protocol=protocol,
        systems=tuple(reports),
        candidate_recall={k: candidate_recall(served, exhaustive, k) for k in CUTOFFS},
        num_users=len(judge.users),
        num_train=len(train),
        num_test=len(test),
        training=trained.metadata,
    )


def recommend_served(
    trained: TrainedEncoder,
    train: Interactions,
    items: Sequence[Item],
    users: Sequence[User],
    asked: Int64,
    n: int,
    item_vectors: Float32 | None = None,
) -> tuple[Int64, Int64]:
    """(what the service would answer, the exact best) for users `asked`: int64 [len(asked), n], -1 padded.

    The first goes the way of a request: a graph view, incremental state, ranker, both stages. The second
    scores every item. The catalogue is the items with training ratings.
    """
    service = OfflineService(trained, train, items, users, item_vectors)
    return service.recommend(asked, n), service.best(asked, n)


def candidate_recall(served: Int64, exhaustive: Int64, k: int) -> float:
    """Share of the exhaustive top k that is among the k served, over all users."""
    found = sum(
        len(np.intersect1d(mine[mine >= 0], best[best >= 0]))
        for mine, best in zip(served[:, :k], exhaustive[:, :k], strict=True)
    )
    return found / max(1, int((exhaustive[:, :k] >= 0).sum()))


class _Judge:
    """Measures lists of recommendations against a test part."""

    def __init__(self, train: Interactions, test: Interactions) -> None:
        self.users: Int64 = np.intersect1d(test.users, train.users)
        if len(self.users) == 0:
            raise InvalidInput("no user has ratings in both parts: evaluation needs several ratings per user")
        self.train = _matrix(train)
        self.unseen = np.flatnonzero(np.bincount(train.items, minlength=train.num_items) == 0)
        self._relevant = _matrix(test)[self.users]
        self._counts = np.diff(self._relevant.indptr).astype(np.int64)

    def measure(self, top: Int64) -> dict[int, RankingMetrics]:
        hits = hits_of(top, self._relevant)
        return {k: ranking_metrics(hits, self._counts, k) for k in CUTOFFS}

    def top(self, scorer: Callable[[Int64], Float32]) -> Int64:
        """The best candidates by a scorer of all items."""
        blocks = []
        width = max(1, _BLOCK_FLOATS // self.train.shape[1])
        for first in range(0, len(self.users), width):
            block = self.users[first : first + width]
            scores = scorer(block).astype(np.float32)
            rows, columns = self.train[block].nonzero()
            scores[rows, columns] = -np.inf
            scores[:, self.unseen] = -np.inf
            blocks.append(top_items(scores, max(CUTOFFS)))
        return np.concatenate(blocks)


def _baselines(
    train: Interactions, judge: _Judge, seed: int, progress: Callable[[Progress], None]
) -> list[SystemReport]:
    cut = validation_cut(train, seed)
    validation = Validation(cut, ALL_POSITIVE, (200.0,), (0.0,))
    reports = []
    for place, baseline in enumerate(BASELINES):
        progress(Progress("baselines", place, len(BASELINES), baseline.name))
        started = time.monotonic()
        settings = choose_settings(baseline, validation, seed)
        metrics = judge.measure(judge.top(baseline.fit(judge.train, settings, seed)))
        reports.append(SystemReport(baseline.name, metrics, settings, round(time.monotonic() - started, 1)))
    progress(Progress("baselines", len(BASELINES), len(BASELINES), ""))
    return reports


def _split(ratings: Interactions, protocol: Protocol) -> tuple[Interactions, Interactions]:
    if protocol not in get_args(Protocol):
        raise InvalidInput(f"protocol {protocol!r} is unknown: choose from {', '.join(get_args(Protocol))}")
    if protocol == "recommenders":
        return split_recommenders(ratings)
    if not ratings.timed:
        raise InvalidInput(
            "the temporal protocol needs timestamps, and all of these ratings have the same one"
        )
    return split_temporal(ratings)


def _matrix(ratings: Interactions) -> Any:
    ones = np.ones(len(ratings), np.float32)
    return sp.csr_matrix((ones, (ratings.users, ratings.items)), shape=(ratings.num_users, ratings.num_items))
