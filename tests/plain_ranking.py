"""The ranking's equations written down once more, without any of the code that serves them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import pytest
import scipy.sparse as sp

from graph.view import GraphView
from models.graph_encoder.checkpoint import Checkpoint
from models.graph_encoder.features import extractor_from_config


class Ranked(Protocol):
    """A recommendation, as messages and the client have it."""

    @property
    def item_id(self) -> str: ...

    @property
    def score(self) -> float: ...


class PlainRanking:
    """The equations of models/graph_encoder/parameters.py and models/ranking.py in float64, once more."""

    def __init__(self, checkpoint: Checkpoint, view: GraphView) -> None:
        p = checkpoint.parameters
        self.view, self.p = view, p
        self.features = extractor_from_config(p.features)
        self.known = {item_id: n for n, item_id in enumerate(p.item_ids)}
        self.similarity = checkpoint.ranking.similarity_weight * np.asarray(
            checkpoint.similarity.product(sp.identity(len(p.item_ids), format="csr")), np.float64
        )
        self.items = {item.row: item for item in view.items()}
        rows = view.num_item_rows
        self.q, self.y, self.bias = np.zeros((rows, p.dim)), np.zeros((rows, p.dim)), np.zeros(rows)
        for row, item in self.items.items():
            f = self.features.item_features([item]).toarray()[0].astype(np.float64)
            self.q[row], self.y[row] = f @ p.feature_source, f @ p.feature_target
            self.bias[row] = f @ p.feature_bias
            if item.item_id in self.known:
                n = self.known[item.item_id]
                self.q[row] += p.id_source[n]
                self.y[row] += p.id_target[n]
                self.bias[row] += p.id_bias[n]
        self.degree, sums = np.zeros(rows), np.zeros((rows, p.dim))
        for user in view.users():
            seen, a = self.rated(user.row)
            if a.sum() > 0:
                u1 = a @ self.q[seen] / a.sum()
                sums[seen] += a[:, None] * a.sum() ** -(1 - p.degree_exponent) * u1
                self.degree[seen] += a
        has = self.degree > 0
        i1 = np.zeros_like(sums)
        i1[has] = self.degree[has, None] ** -p.degree_exponent * sums[has]
        w = p.mix.astype(np.float64)
        self.z = w[0] * self.q + w[1] * i1 + w[2] * self.y
        self.target = w[3] * self.y + w[4] * i1

    def rated(self, user_row: int) -> tuple[np.ndarray, np.ndarray]:
        ratings = self.view.ratings_of(user_row)
        return ratings.item_rows.astype(np.int64), self.p.edge_weights(ratings.values).astype(np.float64)

    def user(self, user_id: str) -> np.ndarray | None:
        user = self.view.user(user_id)
        seen, a = self.rated(user.row)
        if a.sum() == 0:
            return None
        own = self.features.user_features([user]).toarray()[0] @ self.p.user_attributes
        return a @ self.z[seen] / a.sum() + own

    def scores(self, user_id: str) -> dict[str, float]:
        """Of every live item, seen or not; degrees where nothing liked is known."""
        vector = self.user(user_id)
        if vector is None:
            return {item.item_id: float(self.degree[row]) for row, item in self.items.items()}
        seen, a = self.rated(self.view.user(user_id).row)
        liked = [self.known.get(self.items[row].item_id) for row in seen[a > 0].tolist()]
        found = {}
        for row, item in self.items.items():
            score = float(vector @ self.target[row] + self.bias[row])
            place = self.known.get(item.item_id)
            if place is not None:
                score += sum(self.similarity[j, place] for j in liked if j is not None)
            found[item.item_id] = score
        return found


def assert_ranked(
    answered: Sequence[Ranked], scores: dict[str, float], eligible: Collection[str], n: int
) -> None:
    """`answered` is the n best of `eligible` by `scores`, up to rounding."""
    got = [r.item_id for r in answered]
    assert len(got) == len(set(got)) == min(n, len(eligible))
    assert set(got) <= set(eligible)
    for r in answered:
        assert r.score == pytest.approx(scores[r.item_id], rel=1e-4, abs=1e-4)
    best = sorted((scores[i] for i in eligible), reverse=True)[: len(got)]
    assert [scores[i] for i in got] == pytest.approx(best, rel=1e-4, abs=1e-4)
