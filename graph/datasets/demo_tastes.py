"""Who watches what in the demo catalogue, and how they like it.

A viewer's taste is a mixture over few worlds plus a leaning towards some themes, and it drifts over three
periods. What is watched follows taste and renown, how it is rated follows taste, the film's quality, the
viewer's temper and chance. Renown is skewed, so that the catalogue has a long tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graph.datasets.demo_dice import Dice, Float64
from graph.datasets.demo_films import Film
from graph.datasets.demo_words import THEMES, WORLDS
from graph.datasets.records import RatingColumns
from graph.schema import RATING_HIGH, RATING_LOW

PERIODS = ((2016, 1451606400), (2019, 1546300800), (2022, 1640995200))
"""First year of each period and its start in Unix seconds; each lasts three years."""

_YEAR_SECONDS = 366 * 86_400
_PERIOD_SECONDS = 3 * 365 * 86_400
_TASTE_PULL, _RENOWN_PULL = 2.3, 0.85
MIN_RATINGS, MAX_RATINGS = 12, 420


@dataclass(frozen=True, slots=True, eq=False)
class Tastes:
    """Leanings of all viewers, float64; the mean viewer has about 0 everywhere."""

    worlds: Float64  # [3 periods, users, worlds]
    themes: Float64  # [users, themes]
    temper: Float64  # [users] added to every rating
    appetite: npt.NDArray[np.int64]  # [users] how many films to rate


def make_tastes(dice: Dice, num_users: int, favourites: Sequence[Sequence[int]], num_ratings: int) -> Tastes:
    """Tastes around each viewer's favourite worlds, appetites adding up to about `num_ratings`."""
    worlds = dice.normal(num_users, len(WORLDS)) * 0.35 - 0.35
    for user, own in enumerate(favourites):
        for rank, world in enumerate(own):
            worlds[user, world] += 1.9 - 0.35 * rank + (0.7 if len(own) == 1 else 0.0)
    periods = [worlds]
    for _ in PERIODS[1:]:
        periods.append(periods[-1] * 0.9 + dice.normal(num_users, len(WORLDS)) * 0.22)
    # A product of uniforms has a long tail without needing an exponential.
    raw = 1.0 / (0.12 + dice.uniform(num_users)) * (0.5 + dice.uniform(num_users))
    appetite = np.clip(raw * (num_ratings / raw.sum()), MIN_RATINGS, MAX_RATINGS)
    appetite = np.clip(appetite * (num_ratings / appetite.sum()), MIN_RATINGS, MAX_RATINGS)
    return Tastes(
        np.stack(periods),
        dice.normal(num_users, len(THEMES)) * 0.55,
        dice.normal(num_users) * 0.3,
        np.rint(appetite).astype(np.int64),
    )


def pin(tastes: Tastes, user: int, favourites: Sequence[int], appetite: int) -> None:
    """Give one viewer a plain taste, whatever the seed: `favourites`, and little else."""
    tastes.worlds[:, user] = -0.7
    tastes.worlds[:, user, list(favourites)] = 2.0
    tastes.themes[user] = 0.0
    tastes.temper[user] = 0.0
    tastes.appetite[user] = appetite


def rate(
    dice: Dice, films: Sequence[Film], user_ids: Sequence[str], tastes: Tastes, unrated: frozenset[int]
) -> RatingColumns:
    """Ratings by user and, within a user, by time; films at the places in `unrated` get none."""
    num_films = len(films)
    of_world, of_theme = _loadings(films)
    quality = dice.normal(num_films) * 0.55
    renown = 1.6 * dice.normal(num_films) + 0.9 * quality
    years = np.array([film.item.year or 0 for film in films])
    blocked = np.zeros(num_films, bool)
    blocked[list(unrated)] = True
    users, items, values, stamps = [], [], [], []
    for user in range(len(user_ids)):
        seen = blocked.copy()
        for period, (year, start) in enumerate(PERIODS):
            liking = of_world @ tastes.worlds[period, user] + of_theme @ tastes.themes[user]
            keys = _TASTE_PULL * liking + _RENOWN_PULL * renown + _gumbel(dice, num_films)
            keys[seen | (years > year + 2)] = -np.inf
            count = int(tastes.appetite[user]) * (period + 1) // 3 - int(tastes.appetite[user]) * period // 3
            chosen = np.argsort(-keys, kind="stable")[:count]
            chosen = chosen[np.isfinite(keys[chosen])]
            seen[chosen] = True
            score = 2.75 + 0.75 * liking[chosen] + quality[chosen] + tastes.temper[user]
            score += 0.5 * dice.normal(len(chosen))
            released = np.maximum(years[chosen] - year, 0) * _YEAR_SECONDS  # nobody rates before the release
            when = start + released + dice.uniform(len(chosen)) * (_PERIOD_SECONDS - released)
            by_time = np.argsort(when, kind="stable")
            users.append(np.full(len(chosen), user, np.int32))
            items.append(chosen[by_time].astype(np.int32))
            values.append(np.clip(np.rint(score[by_time] * 2) / 2, RATING_LOW, RATING_HIGH))
            stamps.append(when[by_time])
    return RatingColumns(
        tuple(user_ids),
        tuple(film.item.item_id for film in films),
        np.concatenate(users),
        np.concatenate(items),
        np.concatenate(values).astype(np.float32),
        np.concatenate(stamps).astype(np.uint32),
    )


def _loadings(films: Sequence[Film]) -> tuple[Float64, Float64]:
    """How much of each world and theme is in each film, float64 [films, worlds] and [films, themes]."""
    of_world = np.zeros((len(films), len(WORLDS)))
    of_theme = np.zeros((len(films), len(THEMES)))
    for place, film in enumerate(films):
        of_world[place, film.world] = 1.0
        if film.second_world is not None:
            of_world[place, film.world], of_world[place, film.second_world] = 0.65, 0.5
        of_theme[place, list(film.themes)] = 0.6
    return of_world, of_theme


def _gumbel(dice: Dice, n: int) -> Float64:
    """Noise that turns a sort into a draw without replacement, weighted by exp(key)."""
    noise: Float64 = -np.log(-np.log(dice.uniform(n) * (1 - 2e-12) + 1e-12))
    return noise
