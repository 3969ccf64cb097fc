"""The films of the demo catalogue."""

from __future__ import annotations

from dataclasses import dataclass

from graph.datasets.demo_dice import Dice
from graph.datasets.demo_words import NUMERALS, SUBTITLES, THEMES, WORLDS, World
from graph.schema import PutItem

FIRST_YEAR, LAST_YEAR = 1950, 2024


@dataclass(frozen=True, slots=True)
class Film:
    """An item and what only the generator knows of it."""

    item: PutItem
    world: int  # place in WORLDS
    second_world: int | None  # of a film between two kinds
    themes: tuple[int, ...]  # places in THEMES


def make_films(dice: Dice, count: int) -> list[Film]:
    """`count` films with unique titles, worlds evenly spread, about one in five part of a series."""
    films: list[Film] = []
    titles: set[str] = set()
    while len(films) < count:
        world = len(films) % len(WORLDS) if dice.chance(0.7) else dice.below(len(WORLDS))
        title, place = _title(dice, WORLDS[world], titles)
        length = 2 + dice.below(3) if dice.chance(0.09) else 1
        year = _year(dice)
        themes = tuple(_themes(dice, WORLDS[world]))
        second = dice.below(len(WORLDS)) if dice.chance(0.2) else None
        names = [title, *_sequels(dice, title, length - 1)]
        for number, name in enumerate(names):
            if len(films) == count or year + 3 * number > LAST_YEAR or (number and name in titles):
                break
            titles.add(name)
            films.append(
                _film(
                    dice, f"film-{len(films) + 1:04d}", name, year + 3 * number, world, second, themes, place
                )
            )
    return films


def _film(
    dice: Dice,
    item_id: str,
    title: str,
    year: int,
    world: int,
    second: int | None,
    themes: tuple[int, ...],
    place: str,
) -> Film:
    home = WORLDS[world]
    tags = list(home.genres)
    if second is not None:
        tags.append(WORLDS[second].genres[0])
    tags += [THEMES[theme] for theme in themes]
    item = PutItem(item_id, title, tuple(dict.fromkeys(tags)), year, _plot(dice, home, place))
    return Film(item, world, second if second != world else None, themes)


def _title(dice: Dice, world: World, taken: set[str]) -> tuple[str, str]:
    """A title nobody has, and the place where the film is set."""
    while True:
        adjective, place = dice.pick(world.adjectives), _place(dice, world)
        noun, other = dice.sample(world.nouns, 2)
        title = dice.pick(
            (
                f"The {adjective} {noun}",
                f"The {adjective} {noun}",
                f"The {noun} of {place}",
                f"{noun} and {other}",
                f"The {adjective} {noun} of {place}",
                f"No {noun} for {place}",
                f"{place} {noun}" if not place.startswith("the ") else f"{noun} at {place}",
                f"{adjective} {place}" if not place.startswith("the ") else f"{adjective} {noun}",
            )
        )
        if title not in taken:
            return title, place


def _sequels(dice: Dice, title: str, count: int) -> list[str]:
    if dice.chance(0.5):
        return [f"{title} {numeral}" for numeral in NUMERALS[:count]]
    return [f"{title}: {subtitle}" for subtitle in dice.sample(SUBTITLES, count)]


def _place(dice: Dice, world: World) -> str:
    return dice.pick(world.places).replace("-", " ")


def _plot(dice: Dice, world: World, place: str) -> str:
    setup = dice.pick(world.setups).format(place=place)
    sentences = [f"{dice.pick(world.heroes)} {setup}", dice.pick(world.turns)]
    if dice.chance(0.6):
        sentences.append(dice.pick(world.closes))
    return ". ".join(sentences) + "."


def _themes(dice: Dice, world: World) -> list[int]:
    usual = [THEMES.index(theme) for theme in dice.sample(world.themes, 1 + dice.below(2))]
    if dice.chance(0.3):
        usual.append(dice.below(len(THEMES)))
    return list(dict.fromkeys(usual))


def _year(dice: Dice) -> int:
    """More of the recent years: the larger of two throws."""
    span = LAST_YEAR - FIRST_YEAR + 1
    return FIRST_YEAR + max(dice.below(span), dice.below(span))
