"""Applying ratings to both of their directions, and what that changed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from graph.adjacency import Adjacency, Int64
from graph.delta import RatingDeltas
from graph.schema import RatingArray

Float32 = npt.NDArray[np.float32]


def apply_ratings(by_user: Adjacency, by_item: Adjacency, ratings: RatingArray) -> RatingDeltas:
    """Bring both directions to these final states; `by_item` holds values alone.

    O(k log k + ratings of the rows touched).
    """
    if len(ratings) == 1:
        return _apply_one(by_user, by_item, ratings)
    ratings = ratings[np.argsort(ratings["user_row"], kind="stable")]
    old = np.full(len(ratings), np.nan, np.float32)
    if len(ratings):
        # A feed filtered by kind may bring ratings of nodes this view does not hold.
        by_user.ensure_rows(int(ratings["user_row"].max()) + 1)
        by_item.ensure_rows(int(ratings["item_row"].max()) + 1)
    for row, part in _groups(ratings["user_row"]):
        old[part] = _apply_to(by_user, row, ratings[part], "item_row")
    order = np.argsort(ratings["item_row"], kind="stable")
    sorted_by_item = ratings[order]
    for row, part in _groups(sorted_by_item["item_row"]):
        _apply_to(by_item, row, sorted_by_item[part], "user_row")
    new = np.where(ratings["deleted"], np.float32(np.nan), ratings["value"])
    return RatingDeltas(ratings["user_row"].copy(), ratings["item_row"].copy(), old, new)


def _apply_one(by_user: Adjacency, by_item: Adjacency, ratings: RatingArray) -> RatingDeltas:
    """A single record: the common live write, where the arrays' fixed costs would dominate."""
    user_row, item_row, value, timestamp, _, deleted = ratings[0].item()
    by_user.ensure_rows(user_row + 1)
    by_item.ensure_rows(item_row + 1)
    if deleted:
        before = by_user.drop(user_row, item_row)
        by_item.drop(item_row, user_row)
    else:
        before = by_user.put(user_row, item_row, {"value": value, "timestamp": timestamp})
        by_item.put(item_row, user_row, {"value": value})
    return RatingDeltas(
        np.array([user_row]),
        np.array([item_row]),
        np.array([np.nan if before is None else before["value"]], np.float32),
        np.array([np.nan if deleted else value], np.float32),
    )


def _apply_to(side: Adjacency, row: int, ratings: RatingArray, key: str) -> Float32:
    """Apply records that share `row`; returns the values before, NaN where there was no rating."""
    keys = ratings[key].astype(np.int32)
    # Copied: the slice is a view into what is about to change.
    before = np.array(side.column("value", row), np.float32)
    gone = ratings["deleted"]
    places = np.full(len(ratings), -1, np.int64)
    if not gone.all():
        kept = ratings[~gone]
        places[~gone] = side.upsert(
            row, keys[~gone], {"value": kept["value"], "timestamp": kept["timestamp"]}
        )
    if gone.any():
        places[gone] = side.discard(row, keys[gone])
    if len(before) == 0:
        return np.full(len(ratings), np.nan, np.float32)
    return np.where(places >= 0, before[places], np.float32(np.nan)).astype(np.float32)


def _groups(sorted_rows: Int64) -> Iterator[tuple[int, slice]]:
    """Runs of equal values in a sorted array, as (value, slice)."""
    if len(sorted_rows) == 0:
        return
    bounds = np.flatnonzero(np.diff(sorted_rows)) + 1
    starts = np.concatenate([[0], bounds, [len(sorted_rows)]])
    for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        yield int(sorted_rows[first]), slice(first, last)
