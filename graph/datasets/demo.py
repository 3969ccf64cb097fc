"""The generated demo catalogue: invented films, viewers with tastes, facts about them, and their ratings.

The same for the same seed on every platform (docs in `demo_dice`). `PERSONA` is the viewer to show; the last
NUM_UNRATED films are new releases that nobody has rated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from graph.datasets.demo_dice import Dice
from graph.datasets.demo_films import LAST_YEAR, Film, make_films
from graph.datasets.demo_people import PERSONA, make_viewers
from graph.datasets.demo_tastes import make_tastes, pin, rate
from graph.datasets.records import Progress, Records, no_progress
from graph.datasets.rejects import Rejects

__all__ = ["NUM_FILMS", "NUM_RATINGS", "NUM_UNRATED", "NUM_VIEWERS", "PERSONA", "DemoDataset"]

NUM_FILMS, NUM_VIEWERS, NUM_RATINGS = 1_200, 900, 60_000
NUM_UNRATED = 20
_PERSONA_RATINGS = 36


@dataclass(frozen=True, slots=True)
class DemoDataset:
    """About NUM_RATINGS ratings of NUM_FILMS films by NUM_VIEWERS viewers."""

    seed: int = 7

    @property
    def name(self) -> str:
        return f"demo catalogue (seed {self.seed})"

    def load(self, rejects: Rejects, progress: Progress = no_progress) -> Records:
        """See `graph.datasets.records.Dataset.load`; nothing is ever rejected. About a second."""
        dice = Dice(self.seed)
        films = make_films(dice, NUM_FILMS)
        films[-NUM_UNRATED:] = [_new_release(film) for film in films[-NUM_UNRATED:]]
        viewers = make_viewers(dice, NUM_VIEWERS)
        tastes = make_tastes(dice, NUM_VIEWERS, [viewer.favourites for viewer in viewers], NUM_RATINGS)
        pin(tastes, 0, viewers[0].favourites, _PERSONA_RATINGS)
        unrated = frozenset(range(NUM_FILMS - NUM_UNRATED, NUM_FILMS))
        ratings = rate(dice, films, [viewer.user.user_id for viewer in viewers], tastes, unrated)
        records = Records(
            tuple(film.item for film in films),
            tuple(viewer.user for viewer in viewers),
            ratings,
            tuple(memory for viewer in viewers for memory in viewer.memories),
        )
        return replace(records, rows_read=len(records))


def _new_release(film: Film) -> Film:
    return replace(film, item=replace(film.item, year=LAST_YEAR + 1))
