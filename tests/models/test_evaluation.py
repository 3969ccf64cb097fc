"""Metrics against hand-made figures and a slow reference, splits against their definition, one whole run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp

from graph.errors import InvalidInput
from graph.schema import Item, User
from models.evaluation import Report, candidate_recall, evaluate_protocol
from models.graph_encoder.fitting import FitConfig
from models.graph_encoder.training import TrainingConfig
from models.interactions import Interactions, split_recommenders, split_temporal, validation_cut
from models.ranking_metrics import hits_of, ranking_metrics, top_items


def interactions(pairs: list[tuple[int, int, int]]) -> Interactions:
    """From (user, item, timestamp)."""
    users, items, times = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    values = np.full(len(pairs), 4, np.float32)
    return Interactions(users, items, values, times, int(users.max()) + 1, int(items.max()) + 1)


def random_interactions(num_users: int, num_items: int, seed: int = 0, timed: bool = True) -> Interactions:
    rng = np.random.default_rng(seed)
    users, items = (rng.random((num_users, num_items)) < 0.4).nonzero()
    order = rng.permutation(len(users))
    times = rng.integers(1, 50, len(users)) if timed else np.zeros(len(users), np.int64)
    values = rng.choice(np.array([1, 3, 5], np.float32), len(users))
    return Interactions(users[order], items[order], values, times, num_users, num_items)


def pairs(ratings: Interactions) -> set[tuple[int, int]]:
    return set(zip(ratings.users.tolist(), ratings.items.tolist(), strict=True))


# ------------------------------------------------------------------------------------------------ metrics


def test_metrics_by_hand() -> None:
    # Hits at places 1 and 3 of 4, of 3 held-out items.
    found = ranking_metrics(np.array([[True, False, True, False]]), np.array([3]), 4)
    assert found.precision == pytest.approx(2 / 4)
    assert found.recall == pytest.approx(2 / 3)
    assert found.map == pytest.approx((1 / 1 + 2 / 3) / 3)
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert found.ndcg == pytest.approx((1 + 1 / math.log2(4)) / ideal)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_metrics_equal_a_slow_reference(k: int) -> None:
    rng = np.random.default_rng(k)
    relevant = rng.random((30, 40)) < 0.1
    relevant[:, 0] |= ~relevant.any(1)
    lists = [rng.permutation(40)[: rng.integers(0, 12)] for _ in range(30)]
    sums = np.zeros(4)
    for row, items in zip(relevant, lists, strict=True):
        held = set(np.flatnonzero(row).tolist())
        hits = [int(item in held) for item in items[:k].tolist()]
        sums += (
            sum(sum(hits[: r + 1]) / (r + 1) for r in range(len(hits)) if hits[r]) / len(held),
            sum(hit / math.log2(r + 2) for r, hit in enumerate(hits))
            / sum(1 / math.log2(r + 2) for r in range(min(len(held), k))),
            sum(hits) / k,
            sum(hits) / len(held),
        )
    top = np.full((30, 12), -1)
    for place, items in enumerate(lists):
        top[place, : len(items)] = items
    found = ranking_metrics(hits_of(top, sp.csr_matrix(relevant)), relevant.sum(1), k)
    assert (found.map, found.ndcg, found.precision, found.recall) == pytest.approx((sums / 30).tolist())


def test_lists_that_are_too_short_are_refused() -> None:
    with pytest.raises(ValueError, match="at 3"):
        ranking_metrics(np.zeros((1, 2), np.bool_), np.array([1]), 3)


@pytest.mark.parametrize("k", [1, 5, 12, 20])
def test_top_items_equal_a_stable_sort(k: int) -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (20, 12)).astype(np.float32)
    scores[rng.random((20, 12)) < 0.3] = -np.inf
    scores[7] = -np.inf
    for row, found in zip(scores, top_items(scores, k), strict=True):
        expected = [i for i in np.argsort(-row, kind="stable").tolist() if np.isfinite(row[i])][:k]
        assert found.tolist() == expected + [-1] * (k - len(expected))


def test_candidate_recall_counts_what_was_found() -> None:
    served, best = np.array([[1, 2, 3], [4, -1, -1]]), np.array([[2, 1, 9], [4, 5, -1]])
    assert candidate_recall(served, best, 3) == pytest.approx(3 / 5)
    assert candidate_recall(served, best, 1) == pytest.approx(1 / 2)


# ------------------------------------------------------------------------------------------------- splits


def test_the_stratified_split_is_the_published_one() -> None:
    ratings = random_interactions(40, 15)
    train, test = split_recommenders(ratings)
    np.random.seed(42)
    draws = np.random.rand(len(ratings))
    expected = set()
    for item in range(15):
        places = np.flatnonzero(ratings.items == item)
        places = places[np.argsort(draws[places])]
        expected |= {(int(ratings.users[p]), item) for p in places[: round(0.75 * len(places))]}
    assert pairs(train) == expected
    assert pairs(train) | pairs(test) == pairs(ratings) and not pairs(train) & pairs(test)


def test_the_temporal_split_takes_the_last_by_time_then_file_order() -> None:
    ratings = interactions(
        [(0, 0, 9), (0, 1, 5), (0, 2, 5), (0, 3, 5), (0, 4, 1), (1, 0, 3), (1, 1, 2), (0, 5, 9), (0, 6, 1)]
        + [(0, item, 2) for item in (7, 8, 9)]
    )
    train, test = split_temporal(ratings)
    # User 0 has ten, so two; user 1 has two, so none.
    assert pairs(test) == {(0, 0), (0, 5)}
    assert pairs(train) == pairs(ratings) - pairs(test)


def test_the_validation_cut_is_disjoint_and_seeded() -> None:
    ratings = random_interactions(40, 30)
    cut = validation_cut(ratings, seed=3)
    parts = [pairs(cut.train), *(pairs(part) for part in cut.parts)]
    assert len(parts) == 3 and sum(map(len, parts)) == len(ratings) == len(set.union(*parts))
    last = cut.parts[1]
    for user in range(40):
        newest = ratings.timestamps[ratings.users == user].max()
        assert newest in last.timestamps[last.users == user] or (last.users == user).sum() == 0
    assert pairs(validation_cut(ratings, seed=3).train) == parts[0]
    assert pairs(validation_cut(ratings, seed=4).train) != parts[0]
    assert len(validation_cut(random_interactions(40, 30, timed=False), 0).parts) == 1


# ---------------------------------------------------------------------------------------------- a whole run


def tastes(seed: int = 0) -> tuple[Interactions, list[Item], list[User]]:
    """Sixty users of three tastes and ninety items, thirty to each taste."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(60):
        odds = np.where(np.arange(90) % 3 == user % 3, 5.0, 0.3) / (1 + np.arange(90) / 30)
        chosen = rng.choice(90, 14, replace=False, p=odds / odds.sum())
        rows += [(user, int(item), int(rng.integers(1, 1000))) for item in chosen]
    rows += [(0, item, 1) for item in range(90) if (0, item) not in {row[:2] for row in rows}]
    items = [Item(i, f"i{i}", f"Item {i}", (f"taste {i % 3}",), 2000, "", 1) for i in range(90)]
    return interactions(rows), items, [User(u, f"u{u}", {}, 1) for u in range(60)]


QUICK = TrainingConfig(search=False, fit=FitConfig(dim=16, steps=40))


@pytest.fixture(scope="module")
def report() -> Report:
    stages: list[str] = []
    found = evaluate_protocol(
        *tastes(), "recommenders", baselines=True, config=QUICK, progress=lambda p: stages.append(p.stage)
    )
    assert stages[-1] == "baselines" and "final" in stages
    return found


def test_a_run_reports_every_system(report: Report) -> None:
    assert [s.system for s in report.systems] == ["weft", "popularity", "item_knn", "ease", "als", "bpr"]
    assert report.num_train + report.num_test == len(tastes()[0])
    for system in report.systems:
        for k in (10, 20):
            metrics = system.metrics[k]
            assert 0 < metrics.map <= metrics.recall <= 1 and 0 < metrics.ndcg <= 1


def test_what_is_served_beats_popularity(report: Report) -> None:
    figures = {s.system: s.metrics[10].ndcg for s in report.systems}
    assert figures["weft"] > 1.3 * figures["popularity"]


def test_what_is_served_is_the_exact_best_on_a_small_catalogue(report: Report) -> None:
    assert report.candidate_recall == {10: 1.0, 20: 1.0}


def test_text_vectors_are_features_where_they_are_given() -> None:
    ratings, items, users = tastes()
    vectors = np.eye(3, dtype=np.float32)[np.arange(90) % 3] + 0.1
    bare = [Item(item.row, item.item_id, item.title, (), None, "", 1) for item in items]
    found = evaluate_protocol(
        ratings, bare, users, "temporal", config=QUICK, item_vectors=vectors, text_model="m"
    )
    assert found.training["text_model"] == "m" and found.training["items_with_text_vector"] == 1
    assert found.candidate_recall == {10: 1.0, 20: 1.0}
    assert evaluate_protocol(ratings, bare, users, "temporal", config=QUICK).training["text_model"] is None


def test_protocols_that_cannot_be_run_are_refused() -> None:
    ratings, items, users = tastes()
    with pytest.raises(InvalidInput, match="unknown"):
        evaluate_protocol(ratings, items, users, "weekly", config=QUICK)  # type: ignore[arg-type]
    still = Interactions(
        ratings.users,
        ratings.items,
        ratings.values,
        np.zeros_like(ratings.timestamps),
        ratings.num_users,
        ratings.num_items,
    )
    with pytest.raises(InvalidInput, match="timestamps"):
        evaluate_protocol(still, items, users, "temporal", config=QUICK)
