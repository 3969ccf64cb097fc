"""Choosing what items outside the matrix get, on worlds where the truth can be worked out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from models import expected_addend
from models.ease import fit_ease
from models.graph_encoder import outside_items, selection, training
from models.graph_encoder.features import HashedFeatures
from models.graph_encoder.fitting import FitConfig
from models.graph_encoder.incremental import LinearState
from models.graph_encoder.network_fitter import NetworkFitter
from models.graph_encoder.outside_items import NOTHING_OUTSIDE, OutsideChoice, choose_outside
from models.graph_encoder.parameters import EdgeWeights
from models.graph_encoder.selection import Validation
from models.graph_encoder.training import train_on
from models.graph_encoder.training_features import TrainingFeatures
from models.interactions import validation_cut
from models.offline_service import OfflineService, view_of
from models.ranking_metrics import top_items
from tests.models.test_training import EXTRACTOR, NEW, NUM_ITEMS, NUM_USERS, SMALL_SEARCH, world

WEIGHTS = EdgeWeights((0.5, 3.0), (0.0, 1.0))
WEIGHT = 5.0


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pairs will do; the first 50 of 90 items would be most of what a user has not rated."""
    monkeypatch.setattr(expected_addend, "_LEAST_PAIRS", 40)
    monkeypatch.setattr(selection, "LONG_CUTOFF", 10)


def validation() -> Validation:
    ratings = world()[0]
    return Validation(validation_cut(ratings, 3), WEIGHTS, (50.0,), (0.0, WEIGHT))


def tastes(validation: Validation) -> np.ndarray:
    """Scores of an encoder that knows the tastes and nothing else."""
    own = validation.users[:, None] % 3 == np.arange(NUM_ITEMS + 1) % 3
    return (own + 0.01 * np.random.default_rng(0).random(own.shape)).astype(np.float32)


def choose(
    weight: float = WEIGHT,
    tolerance: float = 0.5,
    factors: tuple[float, ...] = (0.5, 1.0),
    cut: Validation | None = None,
) -> tuple[OutsideChoice, list[np.ndarray]]:
    cut = cut or validation()
    similarity = fit_ease(cut.liked_users, cut.liked_items, NUM_ITEMS + 1, cut.strength)
    asked: list[np.ndarray] = []

    def scorer(unknown: np.ndarray) -> np.ndarray:
        asked.append(unknown)
        return tastes(cut)

    return choose_outside(cut, similarity, weight, scorer, factors, tolerance, 0), asked


def test_all_of_it_is_added_where_quality_allows() -> None:
    found, asked = choose()
    assert found.factor == 1.0
    assert found.recall[1.0] > found.recall[0.0]
    # Tastes decide the addends: those of another taste get next to nothing.
    assert found.addends[-1] > 3 * found.addends[0]
    half, _ = choose(factors=(0.5,))
    assert half.addends == pytest.approx([0.5 * addend for addend in found.addends])
    # Folds have nothing in common, and hold only what training knows.
    together = np.sum(asked, axis=0)
    assert len(asked) == outside_items.NUM_FOLDS and together.max() == 1
    known = np.unique(validation().cut.train.items)
    assert set(np.flatnonzero(together)) <= set(known.tolist())


def test_nothing_is_added_that_costs_too_much_or_helps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(weight=0.0)[0] == NOTHING_OUTSIDE
    assert choose(factors=())[0] == NOTHING_OUTSIDE
    cut = validation()
    figures = [0.5, 0.49, 0.4]  # of the factors 0, 0.5 and 1
    calls = itertools.cycle(figures)
    monkeypatch.setattr(Validation, "ndcg", lambda *_: np.array([next(calls)]))
    assert choose(cut=cut, tolerance=0.03)[0].factor == 0.5
    none = choose(cut=cut, tolerance=0.002)[0]
    assert none.factor == 0 and none.scores == none.addends == ()
    assert none.ndcg == pytest.approx(dict(zip((0, 0.5, 1), figures, strict=True)))
    monkeypatch.setattr(Validation, "recall", lambda *_: 0.1)
    assert choose(cut=cut)[0].factor == 0


def test_what_is_fitted_is_what_the_matrix_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of a user and an unknown item they have not rated, from the likes that are left."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def keep(scores: np.ndarray, addends: np.ndarray) -> object:
        seen.append((scores, addends))
        return expected_addend.fit_expected_addend(scores, addends)

    monkeypatch.setattr(outside_items, "fit_expected_addend", keep)
    _, asked = choose()
    cut = validation()
    everything = np.arange(NUM_ITEMS + 1)
    matrix = fit_ease(cut.liked_users, cut.liked_items, NUM_ITEMS + 1, cut.strength).addends(
        everything, everything
    )
    expected = []
    for place, user in enumerate(cut.users.tolist()):
        rated = cut.cut.train.items[cut.cut.train.users == user]
        liked = cut.liked_items[cut.liked_users == user]
        liked = liked[~asked[0][liked]]
        for item in np.flatnonzero(asked[0]).tolist():
            if item not in rated and len(liked):
                addend = WEIGHT * float(matrix[liked, item].sum()) / len(liked)
                expected.append((float(tastes(cut)[place, item]), addend))
    found = np.stack(seen[0], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_item_treated_as_unknown_is_one_that_the_service_does_not_know() -> None:
    """The oracle is the incremental state over a view and an id table without these items."""
    ratings, items, users = world()
    ratings, items = replace(ratings, num_items=NUM_ITEMS), items[:NUM_ITEMS]
    features = TrainingFeatures(HashedFeatures(64, 16), items, users, None, 64)
    fitter = NetworkFitter(features, "cpu", lambda _: None)
    network = fitter.fit("", ratings, FitConfig(dim=8, steps=20), WEIGHTS)
    unknown = np.arange(NUM_ITEMS) % 7 == 2
    asked = np.arange(0, NUM_USERS, 3)
    scores = fitter.scores(network, ratings, WEIGHTS, asked, unknown)
    parameters = features.to_parameters(network, [item.item_id for item in items], WEIGHTS)
    known = np.flatnonzero(~unknown)
    smaller = replace(
        parameters,
        item_ids=tuple(items[row].item_id for row in known),
        **{name: getattr(parameters, name)[known] for name in ("id_source", "id_target", "id_bias")},
    )
    left = ratings.select(~unknown[ratings.items])
    state = LinearState(smaller, HashedFeatures(64, 16), view_of(left, items, users))
    expected = state.user_vectors(asked) @ state.target[:NUM_ITEMS].T + state.bias[:NUM_ITEMS]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert np.abs(scores - fitter.scores(network, ratings, WEIGHTS, asked)).max() > 0.01


def test_a_search_keeps_what_was_chosen_and_the_service_serves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Served by the ranker and by exact scores alike; the unrated item comes sooner than without."""
    ratings, items, users = world()
    chosen = OutsideChoice((-50.0, 50.0), (0.0, 5.0), 0.5, {0.0: 0.3, 0.5: 0.3}, {0.0: 0.1, 0.5: 0.2})
    asked: list[np.ndarray] = []

    def choose(
        cut: Validation, similarity: object, weight: float, scorer: Callable[..., np.ndarray], *_: object
    ) -> OutsideChoice:
        asked.append(scorer(np.arange(cut.cut.train.num_items) % 9 == 0))
        assert asked[0].shape == (len(cut.users), cut.cut.train.num_items) and weight == 10
        return chosen

    monkeypatch.setattr(training, "choose_outside", choose)
    config = replace(SMALL_SEARCH, l2=(), dims=(), similarity_weights=(10.0,))
    trained = train_on(ratings, items, users, config, extractor=EXTRACTOR)
    assert (trained.settings.outside_scores, trained.settings.outside_addends) == ((-50, 50), (0, 5))
    assert trained.metadata["chosen"]["outside"] == {  # type: ignore[index]
        "factor": 0.5,
        "ndcg": {"0.0": 0.3, "0.5": 0.3},
        "recall": {"0.0": 0.1, "0.5": 0.2},
    }
    everything, asking = np.arange(len(items)), np.arange(NUM_USERS)
    places = []
    for settings in (replace(trained.settings, outside_scores=(), outside_addends=()), trained.settings):
        service = OfflineService(replace(trained, settings=settings), ratings, items, users, None, everything)
        scores = service.scores(asking)
        np.testing.assert_array_equal(service.recommend(asking, 5), top_items(scores, 5))
        places.append((scores > scores[:, NEW : NEW + 1]).sum(1))
    before, after = places
    assert (after <= before).all() and after.mean() < before.mean() - 5
