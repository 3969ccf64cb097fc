"""Times as people and programs write them, to and from whole Unix seconds."""

from __future__ import annotations

import math
import re
from calendar import timegm
from datetime import UTC, datetime

from graph.schema import MAX_UNIX_S

TIME_RULE = (
    "must be an ISO 8601 time such as 2026-03-01T00:00:00Z, or Unix seconds; from the year 1970 to 9999"
)

_ISO = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.,]\d{1,9})?)?(Z|[+-]\d\d:?\d\d)?)?", re.ASCII | re.IGNORECASE
)


def unix_seconds(value: object) -> int:
    """Whole Unix seconds of an ISO 8601 text (UTC unless it says otherwise) or of a number of seconds.

    Raises ValueError.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(TIME_RULE)
    seconds = _of_text(value) if isinstance(value, str) else _of_number(value)
    if not 0 <= seconds <= MAX_UNIX_S:
        raise ValueError(TIME_RULE)
    return seconds


def iso_time(seconds: int) -> str:
    """`2026-03-01T00:00:00Z`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _of_number(value: float) -> int:
    # An int first: those beyond a float's range are no float at all.
    if isinstance(value, int):
        return value
    if not math.isfinite(value):
        raise ValueError(TIME_RULE)
    return math.floor(value)


def _of_text(text: str) -> int:
    if _ISO.fullmatch(text) is None:
        raise ValueError(TIME_RULE)
    try:
        # Upper case: Python knows neither "z" nor "t".
        time = datetime.fromisoformat(text.upper())
        # utctimetuple takes a time without a zone for UTC, and leaves fractions out.
        return timegm(time.utctimetuple())
    except (ValueError, OverflowError):
        raise ValueError(TIME_RULE) from None
