"""The rows of a ratings file as columns."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graph.datasets.records import RatingColumns
from graph.datasets.rows import RowFile
from graph.errors import InvalidInput
from graph.schema import ID_RULE, MAX_ID_CHARS, RATING_HIGH, RATING_LOW, is_id

MAX_TIMESTAMP = 2**32 - 1


class BadValue(ValueError):
    """A field that costs its row; the message is the reason, as "kind: detail"."""


@dataclass(frozen=True, slots=True)
class RatingFields:
    """Places of the fields in a row, from 0. No `value` is implicit feedback: RATING_HIGH for every row."""

    user: int
    item: int
    value: int | None
    timestamp: int | None


@dataclass(frozen=True, slots=True)
class Scale:
    """The scale of the file, inclusive; mapped linearly onto RATING_LOW..RATING_HIGH.

    Raises InvalidInput unless low < high, both finite.
    """

    low: float = RATING_LOW
    high: float = RATING_HIGH

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise InvalidInput(
                f"a scale needs two numbers, the lower one first, not {self.low:g} and {self.high:g}",
                param="scale",
            )


def read_ratings(
    rows: RowFile,
    columns: int,
    fields: RatingFields,
    scale: Scale,
    known_items: dict[str, int] | None,
    items_file: str = "the items file",
    parse_timestamp: Callable[[str], int] = int,
) -> RatingColumns:
    """Read what is left of `rows`, in file order. About 1 us for each row.

    `known_items` maps item ids to places; None takes every item as it comes. Of several rows with the same
    user and item the first one counts and the others are rejected, except for implicit feedback, where doing
    something twice is no error and the repeats are passed over.
    """
    users: dict[str, int] = {}
    items: dict[str, int] = {} if known_items is None else dict(known_items)
    user_ids: list[str] = []
    item_ids: list[str] = list(items)
    # Spellings of an id that differ by blanks around it share a place.
    places = {id_: place for place, id_ in enumerate(item_ids)}
    user_places: dict[str, int] = {}
    user_column, item_column, lines = array("i"), array("i"), array("I")
    values, stamps = array("d"), array("I")
    low, high = scale.low, scale.high
    at_user, at_item, at_value, at_stamp = fields.user, fields.item, fields.value, fields.timestamp
    stamp = 0
    value = high
    for line, text, row in rows.rows(columns):
        try:
            if at_value is not None:
                value = _number(row[at_value])
                if not low <= value <= high:
                    raise BadValue(f"rating out of range: {value:g} is not within {low:g} to {high:g}")
            if at_stamp is not None:
                stamp = _timestamp(row[at_stamp], parse_timestamp)
            item = items.get(row[at_item])
            if item is None:
                id_ = checked_id(row[at_item], "item")
                if id_ not in places:
                    if known_items is not None:
                        raise BadValue(f"unknown item: {id_!r} is not in {items_file}")
                    places[id_] = len(item_ids)
                    item_ids.append(id_)
                item = items[row[at_item]] = places[id_]
            user = users.get(row[at_user])
            if user is None:
                id_ = checked_id(row[at_user], "user")
                if id_ not in user_places:
                    user_places[id_] = len(user_ids)
                    user_ids.append(id_)
                user = users[row[at_user]] = user_places[id_]
        except BadValue as bad:
            rows.reject(line, str(bad), text)
            continue
        user_column.append(user)
        item_column.append(item)
        values.append(value)
        stamps.append(stamp)
        lines.append(line)
    every = RatingColumns(
        user_ids,
        item_ids,
        np.array(user_column, np.int32),
        np.array(item_column, np.int32),
        _rescaled(np.array(values, np.float64), scale),
        np.array(stamps, np.uint32),
    )
    return _without_duplicates(every, np.array(lines, np.int64), rows, report=at_value is not None)


def checked_id(text: str, kind: str) -> str:
    """`text` without surrounding blanks, if it may name a node; raises BadValue."""
    id_ = text.strip()
    if not id_:
        raise BadValue(f"empty {kind} id: every row needs one")
    if len(id_) > MAX_ID_CHARS:
        raise BadValue(f"{kind} id too long: {len(id_)} characters, at most {MAX_ID_CHARS} are allowed")
    if "/" in id_:  # ids are path segments of the HTTP interface
        raise BadValue(f"slash in {kind} id: {id_!r} cannot be part of a URL path")
    if not is_id(id_):
        raise BadValue(f"bad {kind} id: {id_!r} is refused, {ID_RULE}")
    return id_


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise BadValue(f"rating not a number: {text!r}") from None
    if value - value != 0.0:  # NaN and both infinities
        raise BadValue(f"rating not finite: {text!r}")
    return value


def _timestamp(text: str, parse: Callable[[str], int]) -> int:
    try:
        stamp = parse(text)
    except (ValueError, OverflowError):
        raise BadValue(f"bad timestamp: {text!r} is no time in Unix seconds") from None
    if not 0 <= stamp <= MAX_TIMESTAMP:
        raise BadValue(f"bad timestamp: {stamp} is not within 0 to {MAX_TIMESTAMP} seconds")
    return stamp


def _rescaled(values: npt.NDArray[np.float64], scale: Scale) -> npt.NDArray[np.float32]:
    if (scale.low, scale.high) != (RATING_LOW, RATING_HIGH):
        values = RATING_LOW + (values - scale.low) * ((RATING_HIGH - RATING_LOW) / (scale.high - scale.low))
    return np.clip(values, RATING_LOW, RATING_HIGH).astype(np.float32)


def _without_duplicates(
    ratings: RatingColumns, lines: npt.NDArray[np.int64], rows: RowFile, report: bool
) -> RatingColumns:
    pairs = ratings.users.astype(np.int64) * len(ratings.item_ids) + ratings.items
    _, first = np.unique(pairs, return_index=True)  # the first of equals, whatever the sort
    if len(first) == len(pairs):
        return ratings
    keep = np.zeros(len(pairs), bool)
    keep[first] = True
    if report:
        repeats = np.flatnonzero(~keep)
        original = dict(zip(pairs[first].tolist(), lines[first].tolist(), strict=True))
        texts = rows.texts({int(line) for line in lines[repeats]})
        for place in repeats.tolist():
            line = int(lines[place])
            user, item = ratings.users[place], ratings.items[place]
            rows.reject(
                line,
                f"duplicate rating: user {ratings.user_ids[user]!r} rated item {ratings.item_ids[item]!r} "
                f"in line {original[int(pairs[place])]} already",
                texts.get(line, ""),
            )
    return RatingColumns(
        ratings.user_ids,
        ratings.item_ids,
        ratings.users[keep],
        ratings.items[keep],
        ratings.values[keep],
        ratings.timestamps[keep],
    )
