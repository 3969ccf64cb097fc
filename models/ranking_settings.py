"""How the two stages of ranking are put together."""

from __future__ import annotations

from dataclasses import dataclass

from models.expected_addend import ExpectedAddend


@dataclass(frozen=True, slots=True)
class RankingSettings:
    """Chosen by training on a validation cut and stored with the encoder.

    The first stage unites the `num_candidates` items of greatest encoder score with the
    `neighbours_per_recent` strongest item-item neighbours of each of the user's `num_recent` last seen
    items; the second orders them by encoder score + `similarity_weight` * item-item sum.

    Items outside the item-item matrix get, per liked item, the amount that goes with their encoder score
    (`expected_addend.py`): at `outside_scores` it is `outside_addends`, weight included. Without these they
    get nothing.
    """

    similarity_weight: float
    num_candidates: int = 500
    num_recent: int = 5
    neighbours_per_recent: int = 50
    outside_scores: tuple[float, ...] = ()
    outside_addends: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.similarity_weight < float("inf"):
            raise ValueError(
                f"similarity_weight is {self.similarity_weight}, must be finite and not negative"
            )
        if self.num_candidates < 1 or self.num_recent < 0 or self.neighbours_per_recent < 0:
            raise ValueError(
                "num_candidates must be positive, num_recent and neighbours_per_recent not negative"
            )
        # From JSON they come as lists.
        object.__setattr__(self, "outside_scores", tuple(self.outside_scores))
        object.__setattr__(self, "outside_addends", tuple(self.outside_addends))
        self.expected_addend()

    def expected_addend(self) -> ExpectedAddend | None:
        """For items outside the matrix; None where they get nothing. Raises ValueError for bad knots."""
        if not (self.outside_scores or self.outside_addends):
            return None
        expected = ExpectedAddend(self.outside_scores, self.outside_addends)
        return expected if self.similarity_weight > 0 else None
