"""Choosing what items outside the item-item matrix get in its stead.

On the validation cut some of the items that training knows are treated as if they had been made afterwards:
their ratings leave the users' profiles and their own vectors, which come from features alone. What the matrix
would have added to them is known, so its expectation given the encoder's score can be fitted; and as the held
out ratings are of them too, it can be measured what adding it does to everything recommended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from models.expected_addend import ExpectedAddend, fit_expected_addend
from models.graph_encoder.selection import Validation
from models.item_similarity import ItemSimilarity

Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

NUM_FOLDS = 4
SHARE = 0.1
"""Of the items, treated as unknown in each fold; folds have no item in common."""

_MAX_PAIRS = 2_000_000


@dataclass(frozen=True, slots=True)
class OutsideChoice:
    """Knots as in `RankingSettings`, empty where nothing is to be added; and by factor what was measured."""

    scores: tuple[float, ...]
    addends: tuple[float, ...]
    factor: float
    ndcg: dict[float, float]
    """nDCG@10 of everything held out, mean over folds."""
    recall: dict[float, float]
    """Recall@50 of what was held out of the items treated as unknown."""


NOTHING_OUTSIDE = OutsideChoice((), (), 0.0, {}, {})


def choose_outside(
    validation: Validation,
    similarity: ItemSimilarity,
    weight: float,
    scorer: Callable[[Bool], Float32],
    factors: tuple[float, ...],
    tolerance: float,
    seed: int,
) -> OutsideChoice:
    """Fit the expected addend and take the greatest share of it that costs no overall quality.

    Args:
        validation: the cut that the weight was chosen on.
        similarity: fitted on that cut's training part.
        weight: of the item-item term.
        scorer: encoder scores float32 [len(validation.users), n], given which items bool [n] are unknown.
        factors: shares to choose from; 0 is always among them.
        tolerance: share of the overall nDCG@10 that may be given up.
        seed: draws the folds.
    """
    factors = tuple(sorted({0.0, *factors}))
    if weight == 0 or len(factors) == 1:
        return NOTHING_OUTSIDE
    pairs: list[tuple[Float32, Float32]] = []
    ndcg, recall = [], []
    for unknown in _folds(validation, seed):
        scores = scorer(unknown)
        liked = sp.csr_matrix(validation.liked.multiply(~unknown))
        liked.eliminate_zeros()
        counts = np.diff(liked.indptr).astype(np.float32)
        term = np.float32(weight) * similarity.product(liked)
        observed = _observed(validation, unknown, scores, term, counts, seed)
        knots = fit_expected_addend(*observed)
        if knots is None:
            continue
        pairs.append(observed)
        own = scores[:, unknown]
        amount = counts[:, None] * ExpectedAddend(*knots)(own)
        total = scores + term
        figures, found = [], []
        for factor in factors:
            total[:, unknown] = own + np.float32(factor) * amount
            figures.append(float(validation.ndcg(total).mean()))
            found.append(validation.recall(total, unknown))
        ndcg.append(figures)
        recall.append(found)
    if not pairs:
        return NOTHING_OUTSIDE
    overall, surfaced = np.mean(ndcg, axis=0), np.mean(recall, axis=0)
    kept = [k for k in range(len(factors)) if overall[k] >= overall[0] * (1 - tolerance)]
    chosen = kept[-1] if surfaced[kept[-1]] > surfaced[0] else 0
    knots = fit_expected_addend(*(np.concatenate(column) for column in zip(*pairs, strict=True)))
    assert knots is not None
    factor = factors[chosen]
    return OutsideChoice(
        knots[0] if factor else (),
        tuple(factor * addend for addend in knots[1]) if factor else (),
        factor,
        dict(zip(factors, overall.tolist(), strict=True)),
        dict(zip(factors, surfaced.tolist(), strict=True)),
    )


def _folds(validation: Validation, seed: int) -> Iterator[Bool]:
    train = validation.cut.train
    known = np.random.default_rng(seed).permutation(np.unique(train.items))
    size = int(SHARE * len(known))
    for fold in range(NUM_FOLDS if size else 0):
        unknown = np.zeros(train.num_items, np.bool_)
        unknown[known[fold * size : (fold + 1) * size]] = True
        yield unknown


def _observed(
    validation: Validation, unknown: Bool, scores: Float32, term: Float32, counts: Float32, seed: int
) -> tuple[Float32, Float32]:
    """(encoder score, addend per liked item) of users and unknown items that could be recommended to them."""
    # What a user has rated is not: and those pairs the matrix was fitted on.
    open_pairs = ~validation.rated[:, unknown].toarray().astype(np.bool_)
    open_pairs[counts == 0] = False
    per_liked = term[:, unknown] / np.maximum(counts, 1)[:, None]
    seen = (scores[:, unknown][open_pairs], per_liked[open_pairs])
    if len(seen[0]) <= _MAX_PAIRS:
        return seen
    sample = np.random.default_rng(seed).choice(len(seen[0]), _MAX_PAIRS, replace=False)
    return seen[0][sample], seen[1][sample]
