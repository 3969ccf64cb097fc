"""Ranking metrics, as the recommenders-team benchmark defines them.

For a user with the set R of held-out items, hit_r = 1 where the r-th recommendation is in R, else 0:

    precision@k = sum of hit_r / k                          recall@k = sum of hit_r / |R|
    ndcg@k      = sum of hit_r / log2(r + 1), divided by the same for min(|R|, k) hits at the top
    map@k       = sum over hits of precision@r, divided by |R|

averaged over the users who have held-out items and training ratings. A list shorter than k misses the rest.
Source: recommenders-team/recommenders, evaluation/python_evaluation.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RankingMetrics:
    """Means over users, each in [0, 1]."""

    map: float
    ndcg: float
    precision: float
    recall: float


def ranking_metrics(hits: npt.NDArray[np.bool_], num_relevant: Int64, k: int) -> RankingMetrics:
    """Metrics at k.

    Args:
        hits: bool [u, >= k], whether the r-th recommendation was held out.
        num_relevant: int64 [u], |R|, positive.
        k: length of the lists that count.
    """
    if hits.shape[1] < k:
        raise ValueError(f"lists of {hits.shape[1]} recommendations cannot be measured at {k}")
    if len(hits) == 0:
        return RankingMetrics(0.0, 0.0, 0.0, 0.0)
    hits = hits[:, :k]
    found = hits.sum(1)
    discounts = 1 / np.log2(np.arange(k) + 2)
    ideal = np.cumsum(discounts)[np.minimum(num_relevant, k) - 1]
    precisions = np.cumsum(hits, 1) / np.arange(1, k + 1)
    return RankingMetrics(
        map=float(((precisions * hits).sum(1) / num_relevant).mean()),
        ndcg=float(((hits * discounts).sum(1) / ideal).mean()),
        precision=float((found / k).mean()),
        recall=float((found / num_relevant).mean()),
    )


def hits_of(top: Int64, relevant: Any) -> npt.NDArray[np.bool_]:
    """Whether each of top [u, k] (item index, -1 for none) is in its row of `relevant` (sparse [u, n])."""
    if top.size == 0:
        return np.zeros(top.shape, np.bool_)
    columns = np.where(top < 0, 0, top)
    rows = np.repeat(np.arange(len(top)), top.shape[1])
    found = np.asarray(relevant.tocsr()[rows, columns.ravel()]).reshape(top.shape) > 0
    return found & (top >= 0)


def top_items(scores: Float32, k: int) -> Int64:
    """Columns of the k greatest finite scores of each row, int64 [u, k], -1 where there are fewer.

    Equal scores are ordered by column. O(u * n).
    """
    count, size = scores.shape
    top = np.full((count, k), -1, np.int64)
    if size == 0 or count == 0:
        return top
    thresholds = np.partition(scores, max(size - k, 0), axis=1)[:, max(size - k, 0)]
    rows, columns = np.nonzero((scores >= thresholds[:, None]) & np.isfinite(scores))
    order = np.lexsort((columns, -scores[rows, columns], rows))
    rows, columns = rows[order], columns[order]
    ranks = np.arange(len(rows)) - np.searchsorted(rows, rows)
    kept = ranks < k
    top[rows[kept], ranks[kept]] = columns[kept]
    return top
