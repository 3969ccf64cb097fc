"""How well items with no, few and more training ratings are found: the protocol `cold`.

`split_cold` takes all training ratings from a random tenth of the rated items and all but 1 to 5 from another
tenth; of the other items' ratings 20% are the test part. The catalogue is all items, also those that nobody
has rated in training, without what the user has rated there. Test ratings are told apart by how many training
ratings their item has, and every bucket is measured twice, over the users who have test ratings in it:

    among all  the whole catalogue is ranked: items of other buckets are no hits but take places
    among own  only the bucket's items are ranked: whether the right ones of them come first

Recall and nDCG as in `ranking_metrics.py`. An item that lost its ratings for the test is more popular than
one that never had any, so `among all` asks much of items of which nothing but their features is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from graph.errors import InvalidInput
from graph.schema import Item, User
from models.graph_encoder.features import FeatureExtractor, HashedFeatures, TextFeatures
from models.graph_encoder.training import Progress, TrainedEncoder, TrainingConfig, train_on
from models.interactions import Interactions, split_cold
from models.offline_service import OfflineService
from models.ranking_metrics import hits_of, ranking_metrics, top_items

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

BUCKETS = (("0", 0, 0), ("1-5", 1, 5), ("more", 6, np.iinfo(np.int64).max))
"""Name, fewest and most training ratings."""

_LONGEST = 50


@dataclass(frozen=True, slots=True)
class ListMetrics:
    """Means over users, each in [0, 1]; a hit is a recommended item that the user has test ratings of."""

    ndcg_at_10: float
    recall_at_10: float
    recall_at_50: float


@dataclass(frozen=True, slots=True)
class BucketReport:
    """One system on the test ratings of one bucket."""

    bucket: str
    among_all: ListMetrics
    among_own: ListMetrics | None
    """None where the system knows no difference between the bucket's items."""


@dataclass(frozen=True, slots=True)
class ColdSystem:
    """One system; `overall` is on all test ratings at once."""

    system: str
    overall: ListMetrics
    buckets: tuple[BucketReport, ...]


@dataclass(frozen=True, slots=True)
class BucketSize:
    """What one bucket holds."""

    bucket: str
    num_items: int
    num_test: int
    num_users: int


@dataclass(frozen=True, slots=True)
class ColdReport:
    """Everything one run found."""

    protocol: str
    systems: tuple[ColdSystem, ...]
    """`popularity`; then, of each kind of features, `weft` and its first stage alone (`encoder`)."""
    sizes: tuple[BucketSize, ...]
    num_users: int
    num_train: int
    num_test: int
    training: dict[str, dict[str, object]]
    """`TrainedEncoder.metadata` by kind of features."""
    seconds: float


def evaluate_cold(
    ratings: Interactions,
    items: Sequence[Item],
    users: Sequence[User],
    *,
    item_vectors: Float32 | None = None,
    text_model: str | None = None,
    config: TrainingConfig | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ColdReport:
    """Split, train on hashed words and, where given, on text vectors, recommend, measure.

    The split depends on nothing but the ratings: seeds of training compare like with like.

    Args:
        ratings: index `items` and `users`.
        items: metadata for features; their `row` plays no part.
        users: likewise.
        item_vectors: float32 [len(items), d] of `text_model`, zeros where an item has none.
        text_model: name of the model; both are given or neither.
        config: of training, its seed included.
        progress: called with stages of training, each named after its features.

    Raises:
        InvalidInput: nobody is left to measure.
    """
    started = time.monotonic()
    config, report = config or TrainingConfig(), progress or (lambda _: None)
    train, test = split_cold(ratings)
    judge = _Judge(train, test)
    systems = [judge.popularity()]
    training: dict[str, dict[str, object]] = {}
    extractors: list[FeatureExtractor] = [HashedFeatures()]
    if item_vectors is not None and text_model is not None:
        extractors.append(TextFeatures(text_model, item_vectors.shape[1]))
    for extractor in extractors:
        kind = str(extractor.config()["kind"])

        def named(step: Progress, kind: str = kind) -> None:
            report(step._replace(stage=f"{kind} features: {step.stage}"))

        trained = train_on(train, items, users, config, named, extractor, item_vectors)
        training[kind] = dict(trained.metadata)
        systems += judge.weft(kind, trained, items, users, item_vectors)
    return ColdReport(
        protocol="cold",
        systems=tuple(systems),
        sizes=judge.sizes,
        num_users=len(judge.users),
        num_train=len(train),
        num_test=len(test),
        training=training,
        seconds=round(time.monotonic() - started, 1),
    )


class _Judge:
    """Measures scores of all items against the test part, bucket by bucket."""

    def __init__(self, train: Interactions, test: Interactions) -> None:
        self.users: Int64 = np.intersect1d(test.users, train.users)
        if len(self.users) == 0:
            raise InvalidInput("no user has ratings in both parts: evaluation needs several ratings per user")
        self._train = train
        self._counts = np.bincount(train.items, minlength=train.num_items)
        self._members = {
            name: (self._counts >= fewest) & (self._counts <= most) for name, fewest, most in BUCKETS
        }
        self._relevant = _matrix(test)[self.users]
        parts = {name: self._part(members) for name, members in self._members.items()}
        self.sizes = tuple(
            BucketSize(name, int(self._members[name].sum()), part.nnz, int((np.diff(part.indptr) > 0).sum()))
            for name, part in parts.items()
        )

    def popularity(self) -> ColdSystem:
        scores = np.tile(self._counts.astype(np.float32), (len(self.users), 1))
        rows, columns = _matrix(self._train)[self.users].nonzero()
        scores[rows, columns] = -np.inf
        return self._measure("popularity", scores)

    def weft(
        self,
        kind: str,
        trained: TrainedEncoder,
        items: Sequence[Item],
        users: Sequence[User],
        item_vectors: Float32 | None,
    ) -> list[ColdSystem]:
        everything = np.arange(len(items))
        service = OfflineService(trained, self._train, items, users, item_vectors, everything)
        return [
            self._measure(f"{name}, {kind} features", service.scores(self.users, second_stage=both))
            for name, both in (("weft", True), ("encoder", False))
        ]

    def _measure(self, system: str, scores: Float32) -> ColdSystem:
        whole = np.ones(scores.shape[1], np.bool_)
        buckets = []
        for name, members in self._members.items():
            own = np.where(members, scores, np.float32(-np.inf))
            indifferent = system == "popularity" and len(np.unique(self._counts[members])) < 2
            among_own = None if indifferent else self._figures(own, members)
            buckets.append(BucketReport(name, self._figures(scores, members), among_own))
        return ColdSystem(system, self._figures(scores, whole), tuple(buckets))

    def _figures(self, scores: Float32, members: npt.NDArray[np.bool_]) -> ListMetrics:
        part = self._part(members)
        counts = np.diff(part.indptr).astype(np.int64)
        asked = np.flatnonzero(counts)
        hits = hits_of(top_items(scores[asked], _LONGEST), part[asked])
        short = ranking_metrics(hits, counts[asked], 10)
        return ListMetrics(short.ndcg, short.recall, ranking_metrics(hits, counts[asked], _LONGEST).recall)

    def _part(self, members: npt.NDArray[np.bool_]) -> Any:
        """The test ratings of some items, CSR [len(users), n]."""
        part = sp.csr_matrix(self._relevant.multiply(members))
        part.eliminate_zeros()
        return part


def _matrix(ratings: Interactions) -> Any:
    ones = np.ones(len(ratings), np.float32)
    return sp.csr_matrix((ones, (ratings.users, ratings.items)), shape=(ratings.num_users, ratings.num_items))
