"""Chance that is the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
Float64 = npt.NDArray[np.float64]


class Dice:
    """Draws built on PCG64's uniform doubles alone.

    numpy promises the bit stream of PCG64 for good, but not that `Generator.choice` or `normal` use it the
    same way in its next release.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def uniform(self, *shape: int) -> Float64:
        """Float64 in [0, 1)."""
        return self._rng.random(shape)

    def normal(self, *shape: int) -> Float64:
        """Close to standard normal: the sum of twelve uniforms, exact in any libm, cut at 6 deviations."""
        total: Float64 = self._rng.random((*shape, 12)).sum(-1) - 6.0
        return total

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        return int(self._rng.random() * n)

    def chance(self, probability: float) -> bool:
        return bool(self._rng.random() < probability)

    def pick(self, of: Sequence[T]) -> T:
        return of[self.below(len(of))]

    def sample(self, of: Sequence[T], count: int) -> list[T]:
        """`count` different elements, in random order."""
        order = np.argsort(self._rng.random(len(of)), kind="stable")
        return [of[int(place)] for place in order[:count]]
