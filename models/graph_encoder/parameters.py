r"""What a trained `linear` encoder consists of, as plain numpy arrays.

For a user u with ratings N(u), a(.) the edge weight, d_u = sum of a over N(u), d_i likewise for items:

    q_j    = id_source[j] + f_j @ feature_source          what an item tells about the users who like it
    y_j    = id_target[j] + f_j @ feature_target
    u1_u   = sum_j a_uj q_j / d_u
    S_j    = sum_u a_uj d_u^-(1-p) u1_u                   maintained in float64
    i1_j   = d_j^-p S_j                                   zero where d_j = 0
    z_j    = w0 q_j + w1 i1_j + w2 y_j                    source vector
    user_u = sum_j a_uj z_j / d_u + g_u @ user_attributes zero first term where d_u = 0
    item_j = w3 y_j + w4 i1_j                             target vector
    bias_j = id_bias[j] + f_j @ feature_bias
    score(u, j) = user_u . item_j + bias_j

`f_j` and `g_u` are the feature rows of `features.py`; with text features f_j holds the item's text vector,
which is as much a part of the graph as its ratings. An item that is not in the id table has zero in place of
its id terms. `mix` is (w0, w1, w2, w3, w4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
EncoderKind: TypeAlias = Literal["linear", "sage"]


@dataclass(frozen=True, slots=True)
class EdgeWeights:
    """a(value): the weight of the greatest level that is not above the value, 0 below the first level.

    `levels` ascend; `weights` are non-negative.
    """

    levels: tuple[float, ...] = (0.5,)
    weights: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if len(self.levels) != len(self.weights) or list(self.levels) != sorted(self.levels):
            raise ValueError("levels must ascend and have one weight each")
        if any(not np.isfinite(w) or w < 0 for w in self.weights):
            raise ValueError("edge weights must be finite and non-negative")

    def __call__(self, values: npt.ArrayLike) -> Float32:
        """Weights [n] float32 of rating values [n]; NaN (no rating) weighs 0."""
        values = np.asarray(values, np.float32)
        table = np.array((0.0, *self.weights), np.float32)
        place = np.searchsorted(np.array(self.levels, np.float32), values, side="right")
        return np.where(np.isnan(values), np.float32(0), table[place])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EncoderParameters:
    """What every kind of encoder has; n items in the id table, F item and G user feature columns."""

    item_ids: tuple[str, ...]  # [n], the id table
    id_source: Float32  # [n, D]
    id_target: Float32  # [n, D]
    id_bias: Float32  # [n]
    feature_source: Float32  # [F, D]
    feature_target: Float32  # [F, D]
    feature_bias: Float32  # [F]
    user_attributes: Float32  # [G, D], or [0, D] in an encoder trained without users' attributes
    edge_weights: EdgeWeights
    features: Mapping[str, object] = field(default_factory=dict)
    """Configuration of the feature extractor, as its `config()` gives it."""

    @property
    def dim(self) -> int:
        return int(self.id_source.shape[1])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LinearParameters(EncoderParameters):
    """Parameters of the `linear` encoder."""

    mix: Float32  # [5]
    degree_exponent: float  # p
