"""The demo catalogue: the same every time, and worth recommending from."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pytest

from graph.datasets import PERSONA, DemoDataset, Records, Rejects
from graph.datasets.demo import NUM_UNRATED
from graph.schema import RATING_HIGH, RATING_LOW

DIGEST = "95b18ea3990aff64372cdacceb348f6d6cd6e345dd79451679f0ceaac3a7d4c0"
"""Of all operations for seed 7. A change here changes every demo store: say so in the changelog."""


def digest(records: Records) -> str:
    hashed = hashlib.sha256()
    for batch in records.batches():
        for operation in batch:
            hashed.update(repr(operation).encode())
    return hashed.hexdigest()


@pytest.fixture(scope="module")
def demo() -> Records:
    return DemoDataset().load(Rejects())


def test_same_seed_same_catalogue(demo: Records) -> None:
    assert digest(demo) == digest(DemoDataset().load(Rejects())) == DIGEST
    assert digest(DemoDataset(seed=8).load(Rejects())) != DIGEST


def test_counts(demo: Records) -> None:
    assert (len(demo.items), len(demo.users)) == (1_200, 900)
    assert 57_000 < len(demo.ratings) < 63_000
    assert 1_800 <= len(demo.memories) <= 3_600
    assert demo.rows_read == len(demo)


def test_ids_and_titles_are_unique(demo: Records) -> None:
    for names in (
        [item.item_id for item in demo.items],
        [item.title.lower() for item in demo.items],
        [user.user_id for user in demo.users],
        [memory.memory_id for memory in demo.memories],
    ):
        assert len(set(names)) == len(names)
    pairs = demo.ratings.users.astype(np.int64) * len(demo.items) + demo.ratings.items
    assert len(np.unique(pairs)) == len(pairs)


def test_films_read_well(demo: Records) -> None:
    tags = {tag for item in demo.items for tag in item.tags}
    assert 25 <= len(tags) <= 45
    for item in demo.items:
        assert item.year is not None and 1950 <= item.year <= 2025
        assert 2 <= item.text.count(".") <= 3
        assert 2 <= len(item.tags) <= 8
        assert "{" not in item.text + item.title
        assert item.title[0].isupper() or item.title[0].isdigit()


def test_ratings_are_on_half_stars_and_after_the_release(demo: Records) -> None:
    ratings = demo.ratings
    assert ratings.values.min() >= RATING_LOW and ratings.values.max() <= RATING_HIGH
    assert np.array_equal(ratings.values * 2, np.rint(ratings.values * 2))
    years = np.array([item.year for item in demo.items])[ratings.items]
    rated = ratings.timestamps.astype("datetime64[s]").astype("datetime64[Y]").astype(int) + 1970
    assert (rated >= years).all()
    assert rated.min() >= 2016 and rated.max() <= 2024


def test_new_releases_have_no_ratings_and_there_is_a_long_tail(demo: Records) -> None:
    counts = np.bincount(demo.ratings.items, minlength=len(demo.items))
    assert (counts[-NUM_UNRATED:] == 0).all()
    assert (counts[:-NUM_UNRATED] == 0).mean() < 0.02
    top = np.sort(counts)[::-1][:120].sum() / counts.sum()
    assert 0.25 < top < 0.5
    assert np.median(counts) < counts.mean()
    assert np.bincount(demo.ratings.users).min() >= 10


def test_the_persona_rates_space_operas_higher(demo: Records) -> None:
    assert demo.users[0].user_id == PERSONA
    mine = demo.ratings.users == 0
    space = np.array(["space-opera" in item.tags for item in demo.items])[demo.ratings.items[mine]]
    values = demo.ratings.values[mine]
    assert space.mean() > 0.6
    assert values[space].mean() > values[~space].mean()


def test_taste_predicts_better_than_popularity(demo: Records) -> None:
    seen, held = _split(demo)
    popular = _ndcg_at_10(np.tile(seen.sum(0), (len(seen), 1)), seen, held)
    inverse = np.linalg.inv(seen.T @ seen + 100 * np.eye(seen.shape[1]))  # EASE (Steck 2019)
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    ease = _ndcg_at_10(seen @ weights, seen, held)
    print(f"nDCG@10: popularity {popular:.3f}, EASE {ease:.3f}")
    assert popular > 0.04
    assert ease > 2 * popular


def _split(demo: Records) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Each user's last fifth by time held out; dense [users, items]."""
    ratings = demo.ratings
    seen = np.zeros((len(demo.users), len(demo.items)))
    held = np.zeros(seen.shape, bool)
    for user in range(len(seen)):
        mine = np.flatnonzero(ratings.users == user)
        mine = mine[np.argsort(ratings.timestamps[mine], kind="stable")]
        cut = int(len(mine) * 0.8)
        seen[user, ratings.items[mine[:cut]]] = 1
        held[user, ratings.items[mine[cut:]]] = True
    return seen, held


def _ndcg_at_10(
    scores: npt.NDArray[np.float64], seen: npt.NDArray[np.float64], held: npt.NDArray[np.bool_]
) -> float:
    top = np.argsort(-np.where(seen > 0, -np.inf, scores), axis=1, kind="stable")[:, :10]
    discount = 1 / np.log2(np.arange(10) + 2)
    gained = (np.take_along_axis(held, top, 1) * discount).sum(1)
    return float((gained / np.cumsum(discount)[np.minimum(held.sum(1), 10) - 1]).mean())
