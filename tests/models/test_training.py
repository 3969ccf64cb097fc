"""Training on small worlds whose structure is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from graph.errors import InvalidInput
from graph.schema import Item, User
from graph.view import GraphView
from models import ease, item_similarity
from models.evaluation import recommend_served, view_of
from models.graph_encoder import fitting, selection, training
from models.graph_encoder.features import HashedFeatures
from models.graph_encoder.fitting import FitConfig
from models.graph_encoder.incremental import LinearState
from models.graph_encoder.parameters import EdgeWeights
from models.graph_encoder.training import (
    ALL_POSITIVE,
    Progress,
    TrainedEncoder,
    TrainingConfig,
    ratings_of,
    train,
    train_on,
)
from models.interactions import Interactions
from models.ranking_metrics import hits_of, ranking_metrics, top_items

NUM_USERS, NUM_ITEMS, NUM_TASTES = 60, 90, 3
NEW = NUM_ITEMS  # an item of taste 1 that nobody has rated
QUICK = TrainingConfig(search=False, edge_weights=(ALL_POSITIVE,), fit=FitConfig(dim=16, steps=60))
EXTRACTOR = HashedFeatures(item_buckets=64, user_buckets=16)


def world(seed: int = 0, timed: bool = False) -> tuple[Interactions, list[Item], list[User]]:
    """Every user rates items of one taste, told by the items' tags, and a few others."""
    rng = np.random.default_rng(seed)
    users, items = [], []
    for user in range(NUM_USERS):
        own = np.arange(NUM_ITEMS) % NUM_TASTES == user % NUM_TASTES
        odds = np.where(own, 5.0, 0.3) / (1 + np.arange(NUM_ITEMS) / 30)
        chosen = rng.choice(NUM_ITEMS, 14, replace=False, p=odds / odds.sum())
        users += [user] * 14
        items += chosen.tolist()
    times = rng.integers(1, 1000, len(users)) if timed else np.zeros(len(users), np.int64)
    values = rng.choice(np.array([2, 4, 5], np.float32), len(users))
    ratings = Interactions(
        np.array(users, np.int64), np.array(items, np.int64), values, times, NUM_USERS, NUM_ITEMS + 1
    )
    tastes = [i % NUM_TASTES for i in range(NUM_ITEMS)] + [1]
    catalogue = [Item(i, f"i{i}", "", (f"taste {taste}",), None, "", 1) for i, taste in enumerate(tastes)]
    return ratings, catalogue, [User(u, f"u{u}", {}, 1) for u in range(NUM_USERS)]


def quick(config: TrainingConfig = QUICK, seed: int = 0) -> TrainedEncoder:
    return train_on(*world(), replace(config, seed=seed), extractor=EXTRACTOR)


def same(one: TrainedEncoder, other: TrainedEncoder) -> bool:
    return all(
        np.array_equal(getattr(one.parameters, name), getattr(other.parameters, name))
        for name in ("id_source", "id_target", "id_bias", "feature_source", "mix")
    )


@pytest.fixture(scope="module")
def trained() -> TrainedEncoder:
    return quick()


def own_share(trained: TrainedEncoder) -> float:
    """Share of recommendations that are of the user's own taste."""
    ratings, items, users = world()
    served, _ = recommend_served(trained, ratings, items, users, np.arange(NUM_USERS), 5)
    return float((served % NUM_TASTES == np.arange(NUM_USERS)[:, None] % NUM_TASTES).mean())


def test_held_out_ratings_are_found_better_than_by_popularity() -> None:
    ratings, items, users = world()
    held = np.random.default_rng(1).random(len(ratings)) < 0.25
    kept, test = ratings.select(~held), ratings.select(held)
    trained = train_on(kept, items, users, QUICK, extractor=EXTRACTOR)
    asked = np.unique(test.users)
    served, _ = recommend_served(trained, kept, items, users, asked, 10)
    relevant, seen = np.zeros((2, NUM_USERS, NUM_ITEMS + 1), np.bool_)
    relevant[test.users, test.items], seen[kept.users, kept.items] = True, True
    popular = np.where(seen, -np.inf, seen.sum(0)).astype(np.float32)
    counts = relevant[asked].sum(1)

    def ndcg(top: np.ndarray) -> float:
        return ranking_metrics(hits_of(top, sp.csr_matrix(relevant[asked])), counts, 10).ndcg

    assert ndcg(served) > 1.5 * ndcg(top_items(popular[asked], 10))


def test_recommendations_follow_the_users_taste(trained: TrainedEncoder) -> None:
    assert own_share(trained) > 0.8


def test_an_item_without_ratings_reaches_those_whose_taste_it_is(trained: TrainedEncoder) -> None:
    ratings, items, users = world()
    assert f"i{NEW}" not in trained.parameters.item_ids
    state = LinearState(trained.parameters, EXTRACTOR, view_of(ratings, items, users))
    scores = state.user_vectors(np.arange(NUM_USERS)) @ state.target.T + state.bias
    scores[ratings.users, ratings.items] = -np.inf
    place = (scores > scores[:, NEW : NEW + 1]).sum(1)
    own = np.arange(NUM_USERS) % NUM_TASTES == 1
    assert np.median(place[own]) < 20 < np.median(place[~own])
    assert (place[own] < 10).any()


def test_the_seed_decides_everything(trained: TrainedEncoder) -> None:
    assert same(trained, quick())
    assert not same(trained, quick(seed=1))


def test_the_shapes_fit_together(trained: TrainedEncoder) -> None:
    parameters = trained.parameters
    assert len(parameters.item_ids) == len(parameters.id_bias) == trained.similarity.size
    assert parameters.id_source.shape == (len(parameters.item_ids), 16)
    assert parameters.feature_source.shape == (64, 16)
    assert dict(parameters.features) == EXTRACTOR.config()
    assert 0 < parameters.degree_exponent < 2


def test_users_in_turn_and_sampled_negatives_learn_the_same_tastes(monkeypatch: pytest.MonkeyPatch) -> None:
    # 20 users per step instead of 60: three times the steps.
    longer = replace(QUICK, fit=replace(QUICK.fit, steps=180))
    monkeypatch.setattr(fitting, "MAX_LOGITS", 20 * NUM_ITEMS)
    assert own_share(quick(longer)) > 0.8
    monkeypatch.setattr(fitting, "MAX_SOFTMAX_ITEMS", 10)
    monkeypatch.setattr(fitting, "NUM_NEGATIVES", 40)
    assert own_share(quick(longer)) > 0.8


SMALL_SEARCH = TrainingConfig(
    fit=FitConfig(dim=8, steps=30),
    l2=(1.0,),
    dims=(16,),
    similarity_l2=(10.0, 100.0),
    entries_per_column=(20, None),
)


@pytest.mark.parametrize("timed", [False, True])
def test_a_search_says_what_it_tried_and_keeps_the_best(timed: bool) -> None:
    reports: list[Progress] = []
    found = train_on(*world(timed=timed), SMALL_SEARCH, reports.append, EXTRACTOR)
    trials = found.metadata["trials"]
    assert isinstance(trials, list) and len(trials) == 4
    fit, chosen = found.metadata["fit"], found.metadata["chosen"]
    assert isinstance(fit, dict) and isinstance(chosen, dict)
    figures = {(t["l2"], t["dim"]): t["validation_ndcg"] for t in trials}
    assert figures[fit["l2"], fit["dim"]] >= max(figures.values()) / 1.03
    assert len(chosen["validation_parts"]) == (2 if timed else 1)
    assert chosen["validation_ndcg"] > 0.1
    done = [report.done for report in reports]
    assert done == sorted(done)
    assert reports[-1].stage == "done" and reports[-1].done == reports[-1].total
    assert all(report.done <= report.total for report in reports)


def test_a_view_trains_like_its_arrays() -> None:
    ratings, items, users = world()
    view = view_of(ratings, items, users)
    flat = ratings_of(view, list(view.users()), list(view.items()))
    assert sorted(zip(flat.users.tolist(), flat.items.tolist(), flat.values.tolist(), strict=True)) == sorted(
        zip(ratings.users.tolist(), ratings.items.tolist(), ratings.values.tolist(), strict=True)
    )
    config = replace(QUICK, fit=FitConfig(dim=4, steps=3))
    by_view = train(view, config, extractor=EXTRACTOR)
    assert same(by_view, train_on(ratings, items, users, config, extractor=EXTRACTOR))


def test_edges_that_weigh_nothing_are_no_messages() -> None:
    """What is disliked may be anything: the item-item matrix does not know it."""
    ratings, _, _ = world()
    disliked = EdgeWeights((0.5, 3.0), (0.0, 1.0))
    trained = quick(replace(QUICK, edge_weights=(disliked,)))
    assert trained.parameters.edge_weights == disliked
    never_liked = np.setdiff1d(ratings.items, ratings.items[ratings.values >= 3])
    place = {item_id: position for position, item_id in enumerate(trained.parameters.item_ids)}
    everything = np.arange(trained.similarity.size)
    for item in never_liked.tolist():
        assert not trained.similarity.addends(np.array([place[f"i{item}"]]), everything).any()


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_ratings_are_refused(count: int) -> None:
    ratings, items, users = world()
    few = ratings.select(np.arange(len(ratings)) < count)
    with pytest.raises(InvalidInput, match="at least two items"):
        train_on(few, items, users, QUICK, extractor=EXTRACTOR)


def test_a_large_catalogue_keeps_no_dense_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ease, item_similarity, selection, training):
        monkeypatch.setattr(module, "MAX_DENSE_ITEMS", 10)
    found = train_on(*world(), replace(SMALL_SEARCH, entries_per_column=(5, 20)), extractor=EXTRACTOR)
    assert set(found.similarity.tensors()) == {"indptr", "columns", "values"}
    assert found.similarity.nnz <= 20 * found.similarity.size
    assert own_share(found) > 0.6


def test_one_rating_each_and_nothing_liked_still_trains() -> None:
    count = 120
    ratings = Interactions(
        np.arange(count),
        np.arange(count) % 4,
        np.full(count, 1, np.float32),
        np.zeros(count, np.int64),
        count,
        4,
    )
    items = [Item(i, f"i{i}", "", (), None, "", 1) for i in range(4)]
    users = [User(u, f"u{u}", {}, 1) for u in range(count)]
    found = train_on(ratings, items, users, SMALL_SEARCH, extractor=EXTRACTOR)
    assert np.isfinite(found.parameters.id_source).all()
    assert found.parameters.edge_weights == ALL_POSITIVE


def test_an_empty_view_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no users"):
        train(GraphView(), QUICK, extractor=EXTRACTOR)


def test_attributes_help_those_without_ratings() -> None:
    """Users who say what they like get it before they have rated anything."""
    ratings, items, _ = world()
    users = [User(u, f"u{u}", {"taste": u % NUM_TASTES}, 1) for u in range(NUM_USERS)]
    trained = train_on(ratings, items, users, QUICK, extractor=EXTRACTOR)
    silent = ratings.select(ratings.users > 2)
    state = LinearState(trained.parameters, EXTRACTOR, view_of(silent, items, users))
    scores = state.user_vectors(np.arange(3)) @ state.target[:NUM_ITEMS].T + state.bias[:NUM_ITEMS]
    for user in range(3):
        best = np.argsort(-scores[user])[:10]
        assert (best % NUM_TASTES == user).mean() > 0.7
