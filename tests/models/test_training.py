"""Training on small worlds whose structure is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from graph.errors import InvalidInput
from graph.schema import Item, User
from graph.view import GraphView
from models import ease, item_similarity
from models.evaluation import recommend_served
from models.graph_encoder import fitting, network_fitter, selection, training
from models.graph_encoder.features import HashedFeatures, TextFeatures, extractor_from_config
from models.graph_encoder.fitting import FitConfig
from models.graph_encoder.incremental import LinearState
from models.graph_encoder.parameters import EdgeWeights
from models.graph_encoder.text_projection import TextProjection
from models.graph_encoder.training import (
    ALL_POSITIVE,
    Progress,
    TrainedEncoder,
    TrainingConfig,
    default_extractor,
    ratings_of,
    train,
    train_on,
)
from models.interactions import Interactions
from models.offline_service import OfflineService, view_of
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


TEXT = TextFeatures("model-a", 8, item_buckets=64, user_buckets=16)


def told_by_text(missing: int = 0) -> tuple[Interactions, list[Item], list[User], np.ndarray]:
    """The same world, but the tastes are in the text vectors alone; the first `missing` items have none."""
    ratings, items, users = world()
    rng = np.random.default_rng(7)
    tastes = np.array([int(item.tags[0][-1]) for item in items])
    vectors = 3 + rng.normal(size=(NUM_TASTES, 8))[tastes] + 0.2 * rng.normal(size=(len(items), 8))
    vectors[:missing] = 0
    return ratings, [replace(item, tags=()) for item in items], users, vectors.astype(np.float16).astype("f4")


def test_an_unrated_item_with_a_text_vector_reaches_those_whose_taste_it_is() -> None:
    ratings, items, users, vectors = told_by_text()
    trained = train_on(ratings, items, users, QUICK, extractor=TEXT, item_vectors=vectors)
    assert extractor_from_config(trained.parameters.features) == TEXT
    everything = np.arange(len(items))
    own = np.arange(NUM_USERS) % NUM_TASTES == 1

    def places(vectors: np.ndarray) -> np.ndarray:
        """Of the new item in each user's list, as the service would order it."""
        service = OfflineService(trained, ratings, items, users, vectors, everything)
        scores = service.scores(np.arange(NUM_USERS))
        np.testing.assert_array_equal(service.recommend(np.arange(NUM_USERS), 5), top_items(scores, 5))
        return (scores > scores[:, NEW : NEW + 1]).sum(1)

    # Some 18 items of a user's own taste are unseen: 20 is where those of the other tastes begin.
    place = places(vectors)
    assert np.median(place[own]) < 20 < np.median(place[~own])
    # Without its vector nobody can know, and with another taste's it reaches others.
    blank, other = vectors.copy(), vectors.copy()
    blank[NEW], other[NEW] = 0, vectors[0]
    assert abs(np.median(places(blank)[own]) - np.median(places(blank)[~own])) < 15
    theirs = np.arange(NUM_USERS) % NUM_TASTES == 0
    assert np.median(places(other)[theirs]) < 20 < np.median(places(other)[own])


def test_parameters_take_text_vectors_as_they_are() -> None:
    """What training measured on projected vectors is what the graph state computes from stored ones."""
    ratings, items, users, vectors = told_by_text(missing=5)
    config = replace(QUICK, fit=FitConfig(dim=8, steps=20), text_columns=3)
    networks = []

    def keep(*arguments: object, **options: object) -> object:
        networks.append(fitting.fit_network(*arguments, **options))  # type: ignore[arg-type]
        return networks[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_fitter, "fit_network", keep)
        trained = train_on(ratings, items, users, config, extractor=TEXT, item_vectors=vectors)
    assert networks[0].feature_source.shape == (64 + 3, 8)
    assert trained.parameters.feature_source.shape == (TEXT.item_columns, 8)
    assert trained.metadata["features"] == "text"
    assert trained.metadata["text_model"] == "model-a"
    rated = np.unique(ratings.items)
    assert trained.metadata["items_with_text_vector"] == pytest.approx(np.mean(rated >= 5), abs=1e-4)
    features = TEXT.item_features([items[row] for row in rated], vectors[rated])
    projection = TextProjection.fit(features.dense, 3)
    edges = fitting.EdgeList(
        ratings.users, np.searchsorted(rated, ratings.items), np.ones(len(ratings), "f4"), 60, len(rated)
    )
    rows = fitting.FeatureRows(features.sparse, dense=projection.project(features.dense))
    with torch.no_grad():
        _, theirs, bias = networks[0](edges.matrices(), rows)
    state = LinearState(trained.parameters, TEXT, view_of(ratings, items, users, vectors, "model-a"))
    np.testing.assert_allclose(state.target[rated], theirs.numpy(), atol=1e-4)
    np.testing.assert_allclose(state.bias[rated], bias.numpy(), atol=1e-4)


def test_a_view_with_text_vectors_trains_like_its_arrays() -> None:
    ratings, items, users, vectors = told_by_text(missing=3)
    view = view_of(ratings, items, users, vectors, "model-a")
    config = replace(QUICK, fit=FitConfig(dim=4, steps=3))
    extractor = default_extractor(view, "model-a")
    assert extractor == TextFeatures("model-a", 8)
    by_view = train(view, config, extractor=extractor)
    assert same(by_view, train_on(ratings, items, users, config, None, extractor, vectors))
    assert by_view.metadata["text_model"] == "model-a"


def test_hashed_words_stand_in_while_most_items_have_no_vector() -> None:
    ratings, items, users, vectors = told_by_text(missing=NUM_ITEMS // 2 + 5)
    view = view_of(ratings, items, users, vectors, "model-a")
    for model in (None, "model-a", "model-b"):
        assert default_extractor(view, model) == HashedFeatures()
    assert train(view, replace(QUICK, fit=FitConfig(dim=4, steps=3))).metadata["features"] == "hashed"


def test_text_features_train_without_any_vector() -> None:
    ratings, items, users = world()
    trained = train_on(ratings, items, users, QUICK, extractor=TEXT)
    assert trained.metadata["items_with_text_vector"] == 0
    assert np.isfinite(trained.parameters.feature_source).all()
    assert not trained.parameters.feature_source[64:].any()


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
