"""The viewers of the demo catalogue and what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graph.datasets.demo_dice import Dice
from graph.datasets.demo_words import AGE_GROUPS, COUNTRIES, FIRST_NAMES, HABITS, LAST_NAMES, WORLDS
from graph.schema import PutMemory, PutUser

PERSONA = "ada-lind"
"""The viewer for examples: loves space operas, and little else."""

_PERSONA_WORLDS = ("space opera",)
_PERSONA_FACTS = (
    "loves space operas, the longer the better",
    "prefers films in which a crew becomes a family",
    "watches with two kids on Sundays",
)


@dataclass(frozen=True, slots=True)
class Viewer:
    user: PutUser
    favourites: tuple[int, ...]  # places in WORLDS, dearest first
    memories: tuple[PutMemory, ...]


def make_viewers(dice: Dice, count: int) -> list[Viewer]:
    """PERSONA and `count - 1` others, with unique ids such as "tove-berg"."""
    ids = [f"{first}-{last}" for first in FIRST_NAMES for last in LAST_NAMES]
    ids.remove(PERSONA)
    viewers = [_persona(dice)]
    for user_id in sorted(dice.sample(ids, count - 1)):
        favourites = tuple(dice.sample(range(len(WORLDS)), 1 + dice.below(3)))
        facts = [_taste_fact(dice, favourites), *dice.sample(HABITS, 1 + dice.below(3))]
        viewers.append(_viewer(user_id, favourites, dice.pick(AGE_GROUPS), dice.pick(COUNTRIES), facts))
    return viewers


def _persona(dice: Dice) -> Viewer:
    names = [world.name for world in WORLDS]
    favourites = tuple(names.index(name) for name in _PERSONA_WORLDS)
    return _viewer(PERSONA, favourites, "35-44", "Norway", _PERSONA_FACTS)


def _viewer(
    user_id: str, favourites: tuple[int, ...], age_group: str, country: str, facts: Sequence[str]
) -> Viewer:
    names = [WORLDS[world].name for world in favourites]
    user = PutUser(user_id, {"favourites": names, "age_group": age_group, "country": country})
    memories = tuple(PutMemory(f"{user_id}-{n}", user_id, fact) for n, fact in enumerate(facts, start=1))
    return Viewer(user, favourites, memories)


def _taste_fact(dice: Dice, favourites: Sequence[int]) -> str:
    form = dice.pick(
        (
            "could watch {} films every evening",
            "grew up on {} films",
            "recommends {} films to everyone",
            "asks for {} films after a long week",
        )
    )
    return form.format(WORLDS[favourites[0]].name)
