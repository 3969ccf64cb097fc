"""Co-liked items equal a count over all pairs of users, as long as everything is read."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest

from graph.neighbours import LIKED_FROM, MIN_SUPPORT, neighbours
from tests.graph.small_worlds import World

ME = "me"


def random_world(seed: int, users: int = 25, items: int = 15, share: float = 0.35) -> World:
    rng = np.random.default_rng(seed)
    ratings = [
        (f"u{u}" if u else ME, f"i{i}", float(rng.integers(1, 11)) / 2)
        for u in range(users)
        for i in range(items)
        if rng.random() < share
    ]
    return World({f"i{n}": (f"Film {n}", ()) for n in range(items)}, ratings, users=[ME])


def brute_force(world: World, liked: list[str]) -> dict[str, tuple[float, list[str]]]:
    values = {(user, item): value for user, item, value in world.ratings}
    raters = defaultdict(set)
    for user, item in values:
        raters[item].add(user)
    found = {}
    for item in world.items:
        if item in liked or (ME, item) in values:
            continue
        pairs = []
        for near in liked:
            both = [
                user
                for user in raters[item] & raters[near]
                if user != ME and min(values[user, item], values[user, near]) >= LIKED_FROM
            ]
            if len(both) >= MIN_SUPPORT:
                pairs.append((len(both) / math.sqrt(len(raters[item]) * len(raters[near])), near))
        if pairs:
            pairs.sort(key=lambda pair: (-pair[0], liked.index(pair[1])))
            found[item] = sum(score for score, _ in pairs), [near for _, near in pairs[:2]]
    return found


@pytest.mark.parametrize("seed", range(8))
def test_equal_to_a_count_over_all_pairs(seed: int) -> None:
    world = random_world(seed)
    view = world.view()
    liked = [i for u, i, value in world.ratings if u == ME and value >= LIKED_FROM]
    expected = brute_force(world, liked)
    rows = [view.item(i).row for i in liked]
    found = neighbours(view, view.user(ME).row, rows, 100)
    ids = [item.item_id for near in found if (item := view.item_at(near.item_row)) is not None]
    order = sorted(expected, key=lambda i: (-round(expected[i][0], 9), i))
    assert [round(n.score, 9) for n in found] == [round(expected[i][0], 9) for i in order]
    assert set(ids) == set(expected)
    for item_id, near in zip(ids, found, strict=True):
        assert near.score == pytest.approx(expected[item_id][0])
        assert [view.item_at(row).item_id for row in near.reasons] == expected[item_id][1]  # type: ignore[union-attr]
    assert neighbours(view, view.user(ME).row, rows, 3) == found[:3]


def test_one_other_users_taste_stays_hidden() -> None:
    world = World({f"i{n}": (f"Film {n}", ()) for n in range(3)})
    world.ratings = [(ME, "i0", 5.0), ("ben", "i0", 5.0), ("ben", "i1", 5.0)]
    view = world.view()
    assert neighbours(view, view.user(ME).row, [0], 10) == []
    world.ratings += [("cleo", "i0", 4.0), ("cleo", "i1", 3.0)]  # rated, not liked
    view = world.view()
    assert neighbours(view, view.user(ME).row, [0], 10) == []
    world.ratings.append(("cleo", "i1", 4.0))
    view = world.view()
    assert [near.item_row for near in neighbours(view, view.user(ME).row, [0], 10)] == [1]


@pytest.mark.parametrize("seed", range(4))
def test_caps_leave_what_a_sample_of_raters_and_their_last_ratings_show(seed: int) -> None:
    world = random_world(seed, users=40)
    view = world.view()
    row = view.user(ME).row
    liked = [i for u, i, value in world.ratings if u == ME and value >= LIKED_FROM]
    rows = [view.item(i).row for i in liked]
    found = neighbours(view, row, rows, 100, max_raters=8, max_ratings=3)
    kept: list[tuple[str, str, float]] = []
    for user in dict.fromkeys(u for u, _, _ in world.ratings):
        kept += [rating for rating in world.ratings if rating[0] == user][-3:]
    expected: dict[int, float] = defaultdict(float)
    for item_row in range(len(world.items)):
        if view.rating(row, item_row) is not None:
            continue
        for near in rows:
            raters = view.raters_of(near)
            everybody = zip(raters.user_rows.tolist(), raters.values.tolist(), strict=True)
            read = sorted(everybody, key=lambda rating: rating[0] * 0x9E3779B1 % 2**32)[:8]
            ids = {
                user.user_id
                for u, value in read
                if value >= LIKED_FROM and (user := view.user_at(u)) is not None
            }
            both = [1 for u, i, v in kept if u in ids - {ME} and i == f"i{item_row}" and v >= LIKED_FROM]
            if len(both) >= MIN_SUPPORT:
                scale = len(raters.user_rows) / len(read)
                expected[item_row] += (
                    scale
                    * len(both)
                    / math.sqrt(len(raters.user_rows) * len(view.raters_of(item_row).user_rows))
                )
    assert {near.item_row: near.score for near in found} == pytest.approx(expected)


def test_nothing_liked_and_nothing_there() -> None:
    view = random_world(1).view()
    assert neighbours(view, view.user(ME).row, [], 10) == []
    assert neighbours(view, view.user(ME).row, [0], 0) == []
