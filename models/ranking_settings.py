"""How the two stages of ranking are put together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RankingSettings:
    """Chosen by training on a validation cut and stored with the encoder.

    The first stage unites the `num_candidates` items of greatest encoder score with the
    `neighbours_per_recent` strongest item-item neighbours of each of the user's `num_recent` last seen
    items; the second orders them by encoder score + `similarity_weight` * item-item sum.
    """

    similarity_weight: float
    num_candidates: int = 500
    num_recent: int = 5
    neighbours_per_recent: int = 50

    def __post_init__(self) -> None:
        if not 0 <= self.similarity_weight < float("inf"):
            raise ValueError(
                f"similarity_weight is {self.similarity_weight}, must be finite and not negative"
            )
        if self.num_candidates < 1 or self.num_recent < 0 or self.neighbours_per_recent < 0:
            raise ValueError(
                "num_candidates must be positive, num_recent and neighbours_per_recent not negative"
            )
