"""The protocol `cold`: the split keeps what it says, and the figures are those of the definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from graph.errors import InvalidInput
from graph.schema import Item, User
from models.cold_start import ColdReport, _Judge, evaluate_cold
from models.graph_encoder.fitting import FitConfig
from models.graph_encoder.training import Progress, TrainingConfig
from models.interactions import Interactions, split_cold
from models.offline_service import embed_items
from models.text_encoder.hashing_encoder import HashingEncoder

QUICK = TrainingConfig(search=False, fit=FitConfig(dim=16, steps=60))
USERS, ITEMS, TASTES = 80, 120, 3
TITLES = ("storm over grey harbour", "quiet garden spring wedding", "robot planet signal engine")


def world(seed: int = 0) -> tuple[Interactions, list[Item], list[User]]:
    """Users of three tastes; only words of the titles say which items are of which."""
    rng = np.random.default_rng(seed)
    users, rated = [], []
    for user in range(USERS):
        odds = np.where(np.arange(ITEMS) % TASTES == user % TASTES, 6.0, 0.3)
        chosen = rng.choice(ITEMS, 24, replace=False, p=odds / odds.sum())
        users += [user] * 24
        rated += chosen.tolist()
    count = len(users)
    ratings = Interactions(
        np.array(users),
        np.array(rated),
        np.full(count, 4, np.float32),
        np.arange(count),
        USERS,
        ITEMS + 1,
    )
    items = []
    for item in range(ITEMS + 1):
        words = TITLES[item % TASTES].split()
        title = " ".join(rng.permutation(words)[:3])
        items.append(Item(item, f"i{item}", f"{title} {item}", (), None, "", 1))
    return ratings, items, [User(u, f"u{u}", {}, 1) for u in range(USERS)]


def counts(ratings: Interactions) -> np.ndarray:
    return np.bincount(ratings.items, minlength=ratings.num_items)


def test_a_tenth_of_the_items_loses_all_ratings_and_another_all_but_a_few() -> None:
    ratings, _, _ = world()
    train, test = split_cold(ratings, seed=3)
    assert len(train) + len(test) == len(ratings)
    pairs = {(u, i) for part in (train, test) for u, i in zip(part.users, part.items, strict=True)}
    assert len(pairs) == len(ratings)
    before, left = counts(ratings), counts(train)
    assert ((left == 0) & (before > 0)).sum() == 12
    few = (left > 0) & (left <= 5)
    assert 12 <= few.sum() <= 15 and len(np.unique(left[few])) > 2
    rest = left > 5
    assert 1 - left[rest].sum() / before[rest].sum() == pytest.approx(0.2, abs=0.03)


def test_the_split_depends_on_its_seed_alone() -> None:
    ratings, _, _ = world()
    assert np.array_equal(split_cold(ratings)[0].items, split_cold(ratings)[0].items)
    assert not np.array_equal(counts(split_cold(ratings, seed=1)[0]), counts(split_cold(ratings, seed=2)[0]))


def pairs(rows: list[tuple[int, int]], users: int, items: int) -> Interactions:
    table = np.array(rows, np.int64)
    return Interactions(
        table[:, 0],
        table[:, 1],
        np.full(len(rows), 4, np.float32),
        np.zeros(len(rows), np.int64),
        users,
        items,
    )


def test_figures_are_those_of_the_definition() -> None:
    """Items 0 and 1 are unrated, 2 has two ratings, 3 has seven; user 0 has one test rating of each kind."""
    train = pairs([(u, 3) for u in range(1, 8)] + [(0, 2), (1, 2), (0, 4)], 8, 60)
    test = pairs([(0, 0), (0, 3), (1, 1)], 8, 60)
    judge = _Judge(train, test)
    assert judge.users.tolist() == [0, 1]
    assert [(s.bucket, s.num_items, s.num_test, s.num_users) for s in judge.sizes] == [
        ("0", 57, 2, 2),
        ("1-5", 2, 0, 0),
        ("more", 1, 1, 1),
    ]
    scores = np.tile(-np.arange(60, dtype=np.float32), (2, 1))  # best first: item 0, 1, 2, ...
    scores[0, [2, 4]] = scores[1, [2, 3]] = -np.inf
    scores[1, 20:] += 100  # user 1: forty others before item 1
    found = judge._measure("weft", scores)
    unrated, _, more = found.buckets
    # User 0 finds item 0 first; of user 1's item 1 the 42nd place is found at 50.
    assert unrated.among_all.ndcg_at_10 == pytest.approx(0.5)
    assert unrated.among_all.recall_at_10 == pytest.approx(0.5)
    assert unrated.among_all.recall_at_50 == pytest.approx(1.0)
    # Item 3 comes third for user 0: after 0 and 1, 2 being seen. Among its own it is first.
    assert more.among_all.ndcg_at_10 == pytest.approx(1 / np.log2(4))
    assert more.among_own is not None and more.among_own.ndcg_at_10 == 1
    expected = (1 + 1 / np.log2(4)) / (1 + 1 / np.log2(3))
    assert found.overall.ndcg_at_10 == pytest.approx(expected / 2)


@pytest.fixture(scope="module")
def report() -> ColdReport:
    ratings, items, users = world()
    encoder = HashingEncoder(32, "words")
    vectors = embed_items(items, encoder)
    assert vectors.shape == (ITEMS + 1, 32) and vectors.dtype == np.float32
    steps: list[Progress] = []
    found = evaluate_cold(
        ratings,
        items,
        users,
        item_vectors=vectors,
        text_model=encoder.fingerprint.name,
        config=QUICK,
        progress=steps.append,
    )
    assert {step.stage for step in steps} >= {"hashed features: final", "text features: done"}
    return found


def test_a_run_reports_every_system_in_every_bucket(report: ColdReport) -> None:
    assert [s.system for s in report.systems] == [
        "popularity",
        "weft, hashed features",
        "encoder, hashed features",
        "weft, text features",
        "encoder, text features",
    ]
    assert [size.bucket for size in report.sizes] == ["0", "1-5", "more"]
    assert report.num_test == sum(size.num_test for size in report.sizes)
    # The item nobody ever rated is in the catalogue, too.
    assert report.sizes[0].num_items == 13
    for system in report.systems:
        for bucket in system.buckets:
            if system.system == "popularity" and bucket.bucket == "0":
                assert bucket.among_own is None
            else:
                assert bucket.among_own is not None
                assert 0 < bucket.among_own.recall_at_10 <= bucket.among_own.recall_at_50 <= 1
    assert report.training["text"]["items_with_text_vector"] > 0.95  # hashed words may cancel
    assert report.training["hashed"]["text_model"] is None


def test_words_tell_which_unrated_items_to_show(report: ColdReport) -> None:
    found = {system.system: system.buckets[0] for system in report.systems}
    # Four of twelve are of a user's taste; in random order that is about 0.6.
    for features in ("hashed", "text"):
        own = found[f"encoder, {features} features"].among_own
        assert own is not None and own.ndcg_at_10 > 0.7
    assert found["popularity"].among_all.recall_at_50 == 0


def test_without_vectors_only_hashed_words_are_measured() -> None:
    quick = replace(QUICK, fit=FitConfig(dim=4, steps=3))
    found = evaluate_cold(*world(), config=quick)
    assert list(found.training) == ["hashed"] and len(found.systems) == 3


def test_nobody_to_measure_is_said() -> None:
    ratings, items, users = world()
    first = np.unique(ratings.users, return_index=True)[1]
    one_each = ratings.select(np.isin(np.arange(len(ratings)), first))
    with pytest.raises(InvalidInput, match="no user"):
        evaluate_cold(one_each, items, users, config=QUICK)
