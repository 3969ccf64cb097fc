"""Times in and out: ISO 8601 and Unix seconds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.schema import MAX_UNIX_S
from graph.times import iso_time, unix_seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0),
        (1.9, 1),
        (MAX_UNIX_S, MAX_UNIX_S),
        ("1970-01-01", 0),
        ("2026-03-01T00:00:00Z", 1_772_323_200),
        ("2026-03-01T00:00:00", 1_772_323_200),
        ("2026-03-01t02:30+02:30", 1_772_323_200),
        ("2026-03-01 00:00:00.999999z", 1_772_323_200),
        ("9999-12-31T23:59:59Z", MAX_UNIX_S),
    ],
)
def test_what_is_a_time(value: object, seconds: int) -> None:
    assert unix_seconds(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        None, True, "", "now", "5", [], -1, -0.5, MAX_UNIX_S + 1, 10**400, math.nan, math.inf, "1969-12-31",
        "2026-02-30", "2026-03-01T24:00:00Z", "20260301", "2026-W09-7", "10000-01-01", "0001-01-01",
    ],
)  # fmt: skip
def test_what_is_not(value: object) -> None:
    with pytest.raises(ValueError, match="ISO 8601"):
        unix_seconds(value)


@settings(deadline=None)
@given(st.integers(0, MAX_UNIX_S))
def test_a_time_survives_its_text(seconds: int) -> None:
    assert unix_seconds(iso_time(seconds)) == seconds
