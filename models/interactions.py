"""Ratings as flat arrays, and the ways they are divided for training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

SPLIT_SEED = 42


@dataclass(frozen=True, slots=True, eq=False)
class Interactions:
    """Ratings in file order; a pair of user and item occurs at most once."""

    users: Int64  # [e], in [0, num_users)
    items: Int64  # [e], in [0, num_items)
    values: Float32  # [e]
    timestamps: Int64  # [e], Unix seconds, 0 = unknown
    num_users: int
    num_items: int

    def __post_init__(self) -> None:
        lengths = {len(self.users), len(self.items), len(self.values), len(self.timestamps)}
        if len(lengths) != 1:
            raise ValueError(f"the columns of the ratings differ in length: {sorted(lengths)}")
        for name, rows, size in (
            ("users", self.users, self.num_users),
            ("items", self.items, self.num_items),
        ):
            if len(rows) and not 0 <= rows.min() <= rows.max() < size:
                raise ValueError(f"{name} must be in [0, {size})")

    def __len__(self) -> int:
        return len(self.users)

    def select(self, wanted: Bool) -> Interactions:
        """The ratings where `wanted` [e] holds, order kept."""
        return Interactions(
            self.users[wanted],
            self.items[wanted],
            self.values[wanted],
            self.timestamps[wanted],
            self.num_users,
            self.num_items,
        )

    @property
    def timed(self) -> bool:
        """Whether the timestamps tell earlier from later ratings."""
        return len(self) > 0 and bool(self.timestamps.max() > self.timestamps.min())


def split_recommenders(
    ratings: Interactions, ratio: float = 0.75, seed: int = SPLIT_SEED
) -> tuple[Interactions, Interactions]:
    """The stratified random split of the recommenders-team benchmark: (train, test).

    Each item's ratings are ordered by a uniform number drawn in file order, and the first
    round(ratio * count) train (half to even), so every item has at least one rating in the training part.
    Source: recommenders-team/recommenders, examples/06_benchmarks, `python_stratified_split`, filter_by item.
    """
    # The legacy generator on purpose: the published figures were made with np.random.seed(42).
    draws = np.random.RandomState(seed).rand(len(ratings))
    order = np.lexsort((draws, ratings.items))
    rank, count = _ranks(ratings.items[order])
    train = np.zeros(len(ratings), np.bool_)
    train[order] = rank < np.round(ratio * count)
    return ratings.select(train), ratings.select(~train)


def split_temporal(ratings: Interactions, fraction: float = 0.2) -> tuple[Interactions, Interactions]:
    """(train, test): each user's last floor(fraction * count) ratings by (time, file order) are the test."""
    last = _last(ratings, fraction)
    return ratings.select(~last), ratings.select(last)


def split_cold(
    ratings: Interactions,
    seed: int = SPLIT_SEED,
    share: float = 0.1,
    most_few: int = 5,
    fraction: float = 0.2,
) -> tuple[Interactions, Interactions]:
    """(train, test) with items that few or none of the training ratings are of.

    Of the rated items, drawn at random, `share` lose all their ratings to the test part, and as many again
    keep 1 to `most_few` of theirs, the number and the ratings drawn at random. Of all other items' ratings
    the test part gets a random `fraction`.
    """
    rng = np.random.default_rng(seed)
    rated = rng.permutation(np.unique(ratings.items))
    count = int(share * len(rated))
    kept = np.full(ratings.num_items, -1, np.int64)
    kept[rated[:count]] = 0
    kept[rated[count : 2 * count]] = rng.integers(1, most_few + 1, min(count, len(rated) - count))
    order = np.lexsort((rng.random(len(ratings)), ratings.items))
    rank, _ = _ranks(ratings.items[order])
    kept = kept[ratings.items[order]]
    test = np.zeros(len(ratings), np.bool_)
    test[order] = np.where(kept < 0, rng.random(len(ratings)) < fraction, rank >= kept)
    return ratings.select(~test), ratings.select(test)


@dataclass(frozen=True, slots=True, eq=False)
class ValidationCut:
    """A training part cut once more. Each of `parts` is measured by itself."""

    train: Interactions
    parts: tuple[Interactions, ...]


def validation_cut(
    ratings: Interactions, seed: int, random_fraction: float = 0.15, last_fraction: float = 0.1
) -> ValidationCut:
    """Hold out ratings at random and, where times are known, each user's last ones.

    Two kinds of question are asked of a recommender, what else a user has liked and what comes next, and
    settings that suit one may not suit the other: so both are held out, of the same training, and count
    alike. Without times everything held out is random.
    """
    if ratings.timed:
        last = _last(ratings, last_fraction)
    else:
        random_fraction += last_fraction
        last = np.zeros(len(ratings), np.bool_)
    drawn = (np.random.default_rng(seed).random(len(ratings)) < random_fraction) & ~last
    parts = tuple(ratings.select(part) for part in (drawn, last) if part.any())
    return ValidationCut(ratings.select(~(drawn | last)), parts)


def sample_users(ratings: Interactions, limit: int, seed: int) -> Interactions:
    """All ratings of some users, drawn at random, `limit` at most; all of them where they are no more."""
    if len(ratings) <= limit:
        return ratings
    order = np.random.default_rng(seed).permutation(ratings.num_users)
    counts = np.bincount(ratings.users, minlength=ratings.num_users)[order]
    # One user with more than all may have is skipped rather than ending the sample.
    within = np.cumsum(np.where(counts <= limit, counts, 0)) <= limit
    taken = np.zeros(ratings.num_users, np.bool_)
    taken[order[within & (counts <= limit)]] = True
    if not taken[ratings.users].any():
        taken[order[np.argmin(np.where(counts > 0, counts, np.iinfo(counts.dtype).max))]] = True
    return ratings.select(taken[ratings.users])


def _last(ratings: Interactions, fraction: float) -> Bool:
    order = np.lexsort((np.arange(len(ratings)), ratings.timestamps, ratings.users))
    rank, count = _ranks(ratings.users[order])
    last = np.zeros(len(ratings), np.bool_)
    last[order] = rank >= count - np.floor(fraction * count)
    return last


def _ranks(sorted_rows: Int64) -> tuple[Int64, Int64]:
    """Of each entry of a sorted array: its place within its run of equals, and the run's length."""
    starts = np.flatnonzero(np.diff(sorted_rows, prepend=-1))
    lengths = np.diff(np.append(starts, len(sorted_rows)))
    return np.arange(len(sorted_rows)) - np.repeat(starts, lengths), np.repeat(lengths, lengths)
