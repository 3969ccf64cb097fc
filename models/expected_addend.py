r"""What the item-item term would add to items that have no place in its matrix.

Items made since training, or without ratings then, are in no pair of the matrix B, while items of a user's
taste get large sums from it: without an amount of their own the former never come first. They get what such
items got on average where it could be seen. For a user with c liked items inside the matrix and an item
outside of encoder score s,

    amount(s, c) = c * g(s)

where g, the expected addend of one liked item, is piecewise linear, never falls and is constant beyond its
first and last knot. `graph_encoder/outside_items.py` chooses it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

Float32 = npt.NDArray[np.float32]

_LEAST_PAIRS = 500


class ExpectedAddend:
    """The function g, by its knots.

    Args:
        scores: encoder scores, ascending.
        addends: expected addends there, not negative, none smaller than the one before.

    Raises:
        ValueError: the knots are not such a function.
    """

    def __init__(self, scores: Sequence[float], addends: Sequence[float]) -> None:
        if len(scores) != len(addends) or not scores:
            raise ValueError(f"an expected addend needs knots: {len(scores)} scores, {len(addends)} addends")
        if not all(map(math.isfinite, (*scores, *addends))):
            raise ValueError("knots of an expected addend must be finite")
        if any(b <= a for a, b in pairwise(scores)):
            raise ValueError("scores of an expected addend must ascend")
        if addends[0] < 0 or any(b < a for a, b in pairwise(addends)):
            raise ValueError("an expected addend must not be negative and must not fall")
        self._scores = np.array(scores, np.float64)
        self._addends = np.array(addends, np.float64)

    def __call__(self, scores: Float32) -> Float32:
        """What one liked item is expected to add at encoder scores of any shape, float32."""
        return np.interp(scores, self._scores, self._addends).astype(np.float32)


def fit_expected_addend(
    scores: Float32, addends: Float32
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Knots (scores, addends) of g from observed pairs, None where there are too few.

    The pairs, in order of score, are cut in half again and again, each time the upper part, down to some
    hundreds: few constants, and finest where recommendations are made. A knot is a part's means, made to
    rise by isotonic regression.

    Args:
        scores: float32 [m], encoder scores of items whose ratings were withheld.
        addends: float32 [m], what the matrix added per liked item.
    """
    order = np.argsort(scores, kind="stable")
    scores, addends = scores[order].astype(np.float64), addends[order].astype(np.float64)
    first, knots, sizes = 0, list[tuple[float, float]](), list[int]()
    while len(scores) - first >= _LEAST_PAIRS:
        rest = len(scores) - first
        last = first + (rest // 2 if rest >= 2 * _LEAST_PAIRS else rest)
        knots.append((float(scores[first:last].mean()), float(addends[first:last].mean())))
        sizes.append(last - first)
        first = last
    distinct = [k for k, knot in enumerate(knots) if k == 0 or knot[0] > knots[k - 1][0]]
    if not distinct:
        return None
    rising = isotonic_regression([knots[k][1] for k in distinct], weights=[sizes[k] for k in distinct]).x
    return tuple(knots[k][0] for k in distinct), tuple(max(0.0, value) for value in rising.tolist())
