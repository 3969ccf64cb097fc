"""A conformance suite that every baseline passes: on two separate tastes nobody is offered the other one."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import scipy.sparse as sp

from graph.errors import InvalidInput
from models.baselines import BASELINES, Baseline, choose_settings
from models.graph_encoder.selection import Validation
from models.graph_encoder.training import ALL_POSITIVE
from models.interactions import Interactions, validation_cut

PERSONAL = [baseline for baseline in BASELINES if baseline.name != "popularity"]


def two_tastes() -> np.ndarray:
    """40 users, 20 items: even users like even items."""
    same = (np.arange(40)[:, None] + np.arange(20)) % 2 == 0
    return same & (np.random.default_rng(0).random((40, 20)) < 0.7)


def ratings() -> Interactions:
    users, items = two_tastes().nonzero()
    ones = np.ones(len(users))
    return Interactions(users, items, ones.astype(np.float32), ones.astype(np.int64), 40, 20)


def by_name(baseline: Baseline) -> str:
    return baseline.name


@pytest.mark.parametrize("baseline", BASELINES, ids=by_name)
def test_scores_are_finite_of_the_right_shape_and_repeatable(baseline: Baseline) -> None:
    liked = sp.csr_matrix(two_tastes(), dtype=np.float32)
    users = np.array([3, 0, 39])
    first = baseline.fit(liked, baseline.grid[0], 5)(users)
    assert first.shape == (3, 20) and first.dtype == np.float32
    assert np.isfinite(first).all()
    np.testing.assert_allclose(baseline.fit(liked, baseline.grid[0], 5)(users), first, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("baseline", PERSONAL, ids=by_name)
def test_unseen_items_of_the_own_taste_come_first(baseline: Baseline) -> None:
    x = two_tastes()
    scores = baseline.fit(sp.csr_matrix(x, dtype=np.float32), baseline.grid[0], 0)(np.arange(40))
    own = (np.arange(40)[:, None] + np.arange(20)) % 2 == 0
    right = [
        scores[user, own[user] & ~x[user]].mean() > scores[user, ~own[user]].mean()
        for user in range(40)
        if (own[user] & ~x[user]).any()
    ]
    assert np.mean(right) > 0.9


def test_popularity_counts_ratings() -> None:
    x = two_tastes()
    scores = BASELINES[0].fit(sp.csr_matrix(x, dtype=np.float32), {}, 0)(np.array([4]))
    np.testing.assert_array_equal(scores[0], x.sum(0))


def test_settings_are_those_that_do_best_on_the_cut() -> None:
    def fit(liked: sp.csr_matrix, settings: Mapping[str, float], seed: int) -> object:
        own = (np.arange(40)[:, None] + np.arange(20)) % 2 == 0
        return lambda users: (settings["sign"] * own[users]).astype(np.float32)

    baseline = Baseline("oracle", fit, ({"sign": -1.0}, {"sign": 1.0}, {"sign": 0.0}))  # type: ignore[arg-type]
    validation = Validation(validation_cut(ratings(), 0), ALL_POSITIVE, (1.0,), (0.0,))
    assert choose_settings(baseline, validation, 0) == {"sign": 1.0}


def test_without_implicit_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(
        name: str, globals_: object = None, locals_: object = None, from_: Sequence[str] = (), level: int = 0
    ):  # type: ignore[no-untyped-def]
        if name.startswith("implicit"):
            raise ImportError(name)
        return real(name, globals_, locals_, from_, level)  # type: ignore[arg-type]

    for name in [name for name in sys.modules if name.split(".")[0] == "implicit"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", missing)
    als = next(baseline for baseline in BASELINES if baseline.name == "als")
    with pytest.raises(InvalidInput, match="weft\\[dev\\]"):
        als.fit(sp.csr_matrix(two_tastes(), dtype=np.float32), als.grid[0], 0)
