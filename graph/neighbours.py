r"""Items beside those a user likes: liked by the same other users.

For liked items A and an item j that the user has not rated,

    score(j) = sum over i in A of c(i, j) / sqrt(d_i * d_j)

c(i, j) is the number of *other* users who like both, d an item's number of ratings: the cosine of the two
items' columns. Pairs with c(i, j) < MIN_SUPPORT count as 0, so that nothing shows the taste of a single other
user.

What is read is bounded: of each item's raters those with the smallest hashes, which are the same users for
many items, and of their ratings the latest. Where only s of an item's r raters are read, c counts r / s
times. Nothing is random: two views of one version answer the same, however they came about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graph.view import GraphView, UserRatings

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

LIKED_FROM = 4.0
"""A rating from here on says: liked."""
MIN_SUPPORT = 2
MAX_RATERS = 32
MAX_RATINGS = 192
MAX_REASONS = 2

_HASH = np.uint32(0x9E3779B1)  # odd: no two rows have the same hash


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An item beside liked ones; `reasons` are rows of those, the closest first."""

    item_row: int
    score: float
    reasons: tuple[int, ...]


def neighbours(
    view: GraphView,
    user_row: int,
    liked: Sequence[int],
    n: int,
    *,
    max_raters: int = MAX_RATERS,
    max_ratings: int = MAX_RATINGS,
) -> list[Neighbour]:
    """At most `n` items beside the `liked` rows that the user has not rated, best first; of equals, by id.

    O(len(liked) * max_raters * max_ratings).
    """
    anchors = np.array(list(dict.fromkeys(liked)), np.int64)
    samples = [_likers(view, user_row, int(anchor), max_raters) for anchor in anchors]
    if n <= 0 or not any(len(users) for users, _ in samples):
        return []
    likes = _Likes(view, np.unique(np.concatenate([users for users, _ in samples])), max_ratings)
    factors = np.array([factor for _, factor in samples])
    keys = [likes.of(users) + place * view.num_item_rows for place, (users, _) in enumerate(samples)]
    pairs, counts = np.unique(np.concatenate(keys), return_counts=True)
    pairs, counts = pairs[counts >= MIN_SUPPORT], counts[counts >= MIN_SUPPORT]
    places, rows = np.divmod(pairs, max(view.num_item_rows, 1))
    new = ~np.isin(rows, np.concatenate([view.ratings_of(user_row).item_rows.astype(np.int64), anchors]))
    places, rows, counts = places[new], rows[new], counts[new]
    degrees = view.item_degrees
    # An item may be in the ratings of a user who was read and have lost all its own: never divide by 0.
    norms = np.sqrt(np.maximum(degrees[anchors[places]].astype(np.float64) * degrees[rows], 1))
    scores = counts * factors[places] / norms
    return _best(view, anchors, places, rows, scores, n)


def _likers(view: GraphView, user_row: int, item_row: int, max_raters: int) -> tuple[Int64, float]:
    """Other users who like an item, of a sample of its raters, and for how many each of the sample stands."""
    raters = view.raters_of(item_row)
    users, values = raters.user_rows, raters.values
    if len(users) > max_raters:
        hashes = users.astype(np.uint32) * _HASH
        chosen = np.argpartition(hashes, max_raters)[:max_raters]
        users, values = users[chosen], values[chosen]
    likers = users[(values >= LIKED_FROM) & (users != user_row)].astype(np.int64)
    return likers, len(raters.user_rows) / max(len(users), 1)


def _latest(rated: UserRatings, count: int) -> tuple[Int32, Float32]:
    """Items and values of the `count` latest ratings; of those at one time, the ones of the highest rows."""
    latest = np.lexsort((rated.item_rows, rated.timestamps))[-count:]
    return rated.item_rows[latest], rated.values[latest]


class _Likes:
    """What each of several users [u], distinct and ascending, likes among the latest that they rated."""

    def __init__(self, view: GraphView, users: Int64, max_ratings: int) -> None:
        self._users = users
        # Most users have few ratings and are read at once; of the others only the latest, one by one.
        few = view.user_degrees[users] <= max_ratings
        indptr, rows, values = view.ratings_of_many(users[few])
        ends = [_latest(view.ratings_of(user), max_ratings) for user in users[~few].tolist()]
        items = np.concatenate([rows, *(rows_ for rows_, _ in ends)])
        liked = np.concatenate([values, *(values_ for _, values_ in ends)]) >= LIKED_FROM
        bounds = np.concatenate([indptr, indptr[-1] + max_ratings * np.arange(1, len(ends) + 1)])
        before = np.concatenate([[0], np.cumsum(liked)])[bounds]  # likes before each user's
        order = np.concatenate([np.flatnonzero(few), np.flatnonzero(~few)])
        self._starts, self._lengths = np.empty((2, len(users)), np.int64)
        self._starts[order], self._lengths[order] = before[:-1], np.diff(before)
        self._items: Int64 = items[liked].astype(np.int64)

    def of(self, users: Int64) -> Int64:
        """Item rows that some of the users like, one user's after the other's."""
        places = np.searchsorted(self._users, users)
        lengths = self._lengths[places]
        offsets = np.cumsum(lengths) - lengths
        inside = np.arange(int(lengths.sum())) - np.repeat(offsets, lengths)
        found: Int64 = self._items[np.repeat(self._starts[places], lengths) + inside]
        return found


def _best(
    view: GraphView, anchors: Int64, places: Int64, rows: Int64, scores: npt.NDArray[np.float64], n: int
) -> list[Neighbour]:
    found, item = np.unique(rows, return_inverse=True)
    totals = np.bincount(item, scores, len(found))
    if len(found) > n:
        # All that may be among the n best, equals of the last too: the ids decide between those.
        least = np.partition(totals, -n)[-n]
        candidates = np.flatnonzero(totals >= least)
    else:
        candidates = np.arange(len(found))
    named = [
        (-totals[c], live.item_id, int(c))
        for c in candidates.tolist()
        if (live := view.item_at(int(found[c]))) is not None
    ]
    best = []
    for total, _, candidate in sorted(named)[:n]:
        pairs = np.flatnonzero(item == candidate)
        # The caller's order decides between equals.
        order = pairs[np.lexsort((places[pairs], -scores[pairs]))][:MAX_REASONS]
        reasons = tuple(anchors[places[order]].tolist())
        best.append(Neighbour(int(found[candidate]), float(-total), reasons))
    return best
