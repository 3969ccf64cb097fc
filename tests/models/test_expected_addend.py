"""What items outside the matrix get: the fit finds a rising expectation, the knots are checked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.expected_addend import ExpectedAddend, fit_expected_addend


def test_between_knots_are_straight_lines_and_beyond_them_nothing_changes() -> None:
    expected = ExpectedAddend((0.0, 2.0, 3.0), (0.1, 0.1, 0.5))
    scores = np.array([[-9, 0, 1], [2.5, 3, 9]], np.float32)
    found = expected(scores)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.1, 0.1, 0.1], [0.3, 0.5, 0.5]], rtol=1e-6)


def test_the_fit_finds_the_expectation_under_noise() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=400_000).astype(np.float32)
    truth = np.exp(scores)
    knots = fit_expected_addend(scores, (truth + rng.normal(size=len(scores))).astype(np.float32))
    assert knots is not None and len(knots[0]) < 20
    at = np.array([0, 1, 2, 2.5], np.float32)
    np.testing.assert_allclose(ExpectedAddend(*knots)(at), np.exp(at), rtol=0.2)


@given(st.integers(0, 2**32 - 1), st.integers(0, 4000), st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_whatever_is_seen_makes_knots_that_are_accepted(seed: int, count: int, distinct: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, distinct, count).astype(np.float32)
    knots = fit_expected_addend(scores, rng.normal(size=count).astype(np.float32))
    if count < 500:
        assert knots is None
    else:
        assert knots is not None
        ExpectedAddend(*knots)


def test_what_falls_is_made_level() -> None:
    scores = np.arange(4000, dtype=np.float32)
    knots = fit_expected_addend(scores, (5000 - scores) / 1000)
    assert knots is not None
    assert np.ptp(knots[1]) == pytest.approx(0, abs=1e-9)
    assert knots[1][0] == pytest.approx(3.0005, rel=1e-4)
