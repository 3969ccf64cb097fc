"""Recommenders to compare with, each with settings chosen on the same validation cut as Weft's own.

`als` and `bpr` are those of the package `implicit` (Hu, Koren and Volinsky 2008; Rendle et al. 2009).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from graph.errors import InvalidInput
from models.ease import fit_ease
from models.graph_encoder.selection import Validation
from models.item_similarity import ItemSimilarity, cut_columns

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

Settings: TypeAlias = Mapping[str, Any]
Scorer: TypeAlias = Callable[[Int64], Float32]
"""Scores float32 [len(users), n] of all items for users int64."""

_BLOCK_FLOATS = 16_000_000


@dataclass(frozen=True, slots=True)
class Baseline:
    """`fit(liked, settings, seed)` takes the binary matrix of ratings, scipy.sparse CSR [U, n]."""

    name: str
    fit: Callable[[Any, Settings, int], Scorer]
    grid: tuple[Settings, ...] = ({},)


def choose_settings(baseline: Baseline, validation: Validation, seed: int) -> Settings:
    """The settings of the grid with the greatest nDCG@10, averaged over the parts of the cut."""
    if len(baseline.grid) == 1:
        return baseline.grid[0]
    train = validation.cut.train
    liked = sp.csr_matrix(
        (np.ones(len(train), np.float32), (train.users, train.items)),
        shape=(train.num_users, train.num_items),
    )
    figures = [
        float(validation.ndcg(baseline.fit(liked, settings, seed)(validation.users)).mean())
        for settings in baseline.grid
    ]
    return baseline.grid[int(np.argmax(figures))]


def _popularity(liked: Any, _: Settings, __: int) -> Scorer:
    counts = np.asarray(liked.sum(0), np.float32).ravel()
    return lambda users: np.tile(counts, (len(users), 1))


def _item_knn(liked: Any, settings: Settings, _: int) -> Scorer:
    """Sum over a user's items of their cosine with the target, where they are among its k nearest."""
    norms = np.sqrt(np.asarray(liked.sum(0), np.float64).ravel())
    unit = sp.csr_matrix(liked @ sp.diags(1 / np.maximum(norms, 1)), dtype=np.float32)
    transposed, size = unit.T.tocsr(), unit.shape[1]
    blocks = []
    width = max(1, _BLOCK_FLOATS // size)
    for first in range(0, size, width):
        last = min(first + width, size)
        cosines = transposed @ unit[:, first:last].toarray()
        cosines[np.arange(first, last), np.arange(last - first)] = 0
        blocks.append(cut_columns(cosines, settings["neighbours"]))
    similarity = ItemSimilarity(sp.hstack(blocks, "csr"))
    return lambda users: similarity.product(liked[users])


def _ease(liked: Any, settings: Settings, _: int) -> Scorer:
    entries = liked.tocoo()
    similarity = fit_ease(
        entries.row.astype(np.int64), entries.col.astype(np.int64), liked.shape[1], settings["l2"]
    )
    return lambda users: similarity.product(liked[users])


def _als(liked: Any, settings: Settings, seed: int) -> Scorer:
    make = _implicit("als", "AlternatingLeastSquares")
    return _factors(lambda: make(random_state=seed, use_gpu=False, **settings), liked)


def _bpr(liked: Any, settings: Settings, seed: int) -> Scorer:
    # One thread: several race for the same rows, and no two runs would agree.
    make = _implicit("bpr", "BayesianPersonalizedRanking")
    return _factors(lambda: make(random_state=seed, num_threads=1, use_gpu=False, **settings), liked)


def _implicit(module: str, name: str) -> Callable[..., Any]:
    try:
        import implicit.als
        import implicit.bpr
    except ImportError as error:
        raise InvalidInput(
            "the baselines als and bpr need the package `implicit`: "
            "pip install 'weft[dev]', or leave out the baselines"
        ) from error
    found: Callable[..., Any] = getattr(getattr(implicit, module), name)
    return found


def _factors(make: Callable[[], Any], liked: Any) -> Scorer:
    with warnings.catch_warnings():
        # implicit advises one BLAS thread; that is the caller's choice.
        warnings.simplefilter("ignore")
        model = make()
        model.fit(liked, show_progress=False)
    users, items = np.asarray(model.user_factors), np.asarray(model.item_factors)
    return lambda rows: np.asarray(users[rows] @ items.T, np.float32)


def _grid(**options: tuple[Any, ...]) -> tuple[Settings, ...]:
    return tuple(dict(zip(options, values, strict=True)) for values in product(*options.values()))


BASELINES = (
    Baseline("popularity", _popularity),
    Baseline("item_knn", _item_knn, _grid(neighbours=(10, 20, 50, 100, 200, 500))),
    Baseline("ease", _ease, _grid(l2=(30.0, 100.0, 200.0, 400.0, 800.0))),
    Baseline("als", _als, _grid(factors=(32, 64), regularization=(1.0, 10.0), alpha=(2.0, 10.0))),
    Baseline(
        "bpr",
        _bpr,
        _grid(factors=(64,), learning_rate=(0.02, 0.05), regularization=(0.005, 0.02), iterations=(150,)),
    ),
)
"""All of them, weakest first on most data."""
