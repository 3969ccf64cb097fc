"""Measuring candidates for an encoder on a validation cut, together with the item-item term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from models.ease import ease_scores, fit_ease
from models.graph_encoder.parameters import EdgeWeights
from models.interactions import Interactions, ValidationCut
from models.item_similarity import MAX_DENSE_ITEMS, ItemSimilarity
from models.ranking_metrics import hits_of, ranking_metrics, top_items

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

CUTOFF, LONG_CUTOFF = 10, 50
MAX_SCORES = 40_000_000
"""Scores held at once (160 MB): of more users than fit, a random sample is measured."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one encoder reaches with the best weight of the item-item term."""

    figure: float
    """Mean over the parts of the cut of nDCG@10, smoothed over neighbouring weights."""
    parts: tuple[float, ...]
    weight: float
    strength: float
    encoder_alone: float
    similarity_alone: float


class Validation:
    """One validation cut and one way of weighing edges.

    The strength of the item-item matrix is chosen once, by that matrix alone: it does not depend on the
    encoder, and fitting it for every encoder would cost more than it finds.

    Args:
        cut: what is fitted and what is measured.
        weights: of the edges; the item-item term takes edges of positive weight.
        strengths: penalties of the item-item matrix to choose from.
        similarity_weights: ascending weights of the item-item term to choose from.
    """

    def __init__(
        self,
        cut: ValidationCut,
        weights: EdgeWeights,
        strengths: tuple[float, ...],
        similarity_weights: tuple[float, ...],
    ) -> None:
        self.cut = cut
        train = cut.train
        self._similarity_weights = similarity_weights
        held = np.unique(np.concatenate([part.users for part in cut.parts]))
        limit = max(1, MAX_SCORES // max(1, train.num_items))
        users = np.intersect1d(held, train.users)
        if len(users) > limit:
            users = np.sort(np.random.default_rng(0).choice(users, limit, replace=False))
        self.users: Int64 = users
        """The users measured, ascending."""
        self.rated = _matrix(train)[users]
        """Of the training part, scipy.sparse [len(users), n]."""
        self._parts = [_matrix(part)[users] for part in cut.parts]
        # A part never counts what another part holds against a recommendation.
        self._banned = []
        for place in range(len(self._parts)):
            others = [part for other, part in enumerate(self._parts) if other != place]
            self._banned.append(sum(others, self.rated).tocsr())
        # Items that this training part has never seen are not what the encoder is measured by.
        self._unseen = np.flatnonzero(np.bincount(train.items, minlength=train.num_items) == 0)
        liked = weights(train.values) > 0
        self.liked_users, self.liked_items = train.users[liked], train.items[liked]
        self.liked = _matrix(train.select(liked))[users]
        """The edges of the item-item term, scipy.sparse [len(users), n]."""
        self.strength, self._similarity_scores = self._choose_strength(strengths)

    def measure(self, scores: Float32, similarity: ItemSimilarity | None = None) -> Outcome:
        """The best sum of encoder and item-item term.

        Args:
            scores: float32 [len(users), n], of the encoder.
            similarity: takes the place of the uncut matrix.
        """
        term = self._similarity_scores if similarity is None else similarity.product(self.liked)
        alone = self.ndcg(term)
        curve = np.array([self.ndcg(scores + np.float32(w) * term) for w in self._similarity_weights])
        means = curve.mean(1)
        # A single peak may be luck; a weight whose neighbours do well too is less likely to be.
        padded = np.pad(means, 1, mode="edge")
        smooth = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
        best = int(np.argmax(smooth))
        return Outcome(
            figure=float(smooth[best]),
            parts=tuple(curve[best].tolist()),
            weight=float(self._similarity_weights[best]),
            strength=self.strength,
            encoder_alone=float(self.ndcg(scores).mean()),
            similarity_alone=float(alone.mean()),
        )

    def _choose_strength(self, strengths: tuple[float, ...]) -> tuple[float, Float32]:
        best, chosen = -1.0, (strengths[0], np.empty((0, 0), np.float32))
        train = self.cut.train
        for strength in strengths:
            if train.num_items <= MAX_DENSE_ITEMS:
                liked = _matrix_of(self.liked_users, self.liked_items, train.num_users, train.num_items)
                term = ease_scores(liked, strength)[self.users]
            else:
                similarity = fit_ease(self.liked_users, self.liked_items, train.num_items, strength)
                term = similarity.product(self.liked)
            figure = float(self.ndcg(term).mean())
            if figure > best:
                best, chosen = figure, (strength, term)
        return chosen

    def ndcg(self, scores: Float32) -> npt.NDArray[np.float64]:
        """nDCG@10 of each part of the cut, by scores float32 [len(users), n]."""
        figures = []
        for place, part in enumerate(self._parts):
            hits, counts = self._hits(scores, place, part, CUTOFF)
            figures.append(ranking_metrics(hits, counts, CUTOFF).ndcg)
        return np.array(figures)

    def recall(self, scores: Float32, items: npt.NDArray[np.bool_]) -> float:
        """Recall@50 of what the cut holds of some items, bool [n], among all; mean over its parts.

        0 where it holds nothing of them.
        """
        figures = []
        for place, whole in enumerate(self._parts):
            part = sp.csr_matrix(whole.multiply(items))
            part.eliminate_zeros()
            hits, counts = self._hits(scores, place, part, LONG_CUTOFF)
            figures.append(ranking_metrics(hits, counts, LONG_CUTOFF).recall if len(counts) else 0.0)
        return float(np.mean(figures))

    def _hits(
        self, scores: Float32, place: int, relevant: Any, k: int
    ) -> tuple[npt.NDArray[np.bool_], Int64]:
        """Hits of those for whom anything is relevant, and how much is, in the part at `place`."""
        counts = np.diff(relevant.indptr)
        asked = np.flatnonzero(counts)
        masked = scores[asked]
        rows, columns = self._banned[place][asked].nonzero()
        masked[rows, columns] = -np.inf
        masked[:, self._unseen] = -np.inf
        return hits_of(top_items(masked, k), relevant[asked]), counts[asked].astype(np.int64)


def _matrix(ratings: Interactions) -> Any:
    return _matrix_of(ratings.users, ratings.items, ratings.num_users, ratings.num_items)


def _matrix_of(users: Int64, items: Int64, num_users: int, num_items: int) -> Any:
    ones = np.ones(len(users), np.float32)
    return sp.csr_matrix((ones, (users, items)), shape=(num_users, num_items))
