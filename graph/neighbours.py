r"""Items beside those a user likes: liked by the same other users.

For liked items A and an item j that the user has not rated,

    score(j) = sum over i in A of c(i, j) / sqrt(d_i * d_j)

c(i, j) is the number of *other* users who like both, d an item's number of ratings: the cosine of the two
items' columns. Pairs with c(i, j) < MIN_SUPPORT count as 0, so that nothing shows the taste of a single other
user.

What is read is bounded: of each item's raters the last to have rated it first, and of their ratings the last.
Where only s of an item's r raters are read, c counts r / s times. Nothing is random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graph.view import GraphView

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

LIKED_FROM = 4.0
"""A rating from here on says: liked."""
MIN_SUPPORT = 2
MAX_RATERS = 32
MAX_RATINGS = 192
MAX_REASONS = 2


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
    """Other users who like an item, of its last raters, and for how many raters each who was read stands."""
    raters = view.raters_of(item_row)
    last = slice(-max_raters, None)
    users, values = raters.user_rows[last], raters.values[last]
    chosen = users[(values >= LIKED_FROM) & (users != user_row)].astype(np.int64)
    return chosen, len(raters.user_rows) / max(len(users), 1)


class _Likes:
    """What each of several users [u], distinct and ascending, likes among the last that they rated."""

    def __init__(self, view: GraphView, users: Int64, max_ratings: int) -> None:
        self._users = users
        # Most users have few ratings and are read at once; of the others only the end, one by one.
        few = view.user_degrees[users] <= max_ratings
        indptr, rows, values = view.ratings_of_many(users[few])
        ends = [view.ratings_of(user) for user in users[~few].tolist()]
        items = np.concatenate([rows, *(rated.item_rows[-max_ratings:] for rated in ends)])
        liked = np.concatenate([values, *(rated.values[-max_ratings:] for rated in ends)]) >= LIKED_FROM
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
