"""From the text vectors of the items trained on to the few columns that training works with.

Vectors of a text model share a large common component, and most of their directions say little about taste.
Training therefore sees them centred, on their strongest principal axes. All of that is linear in the columns
(1, v) of `TextFeatures`, so it is one matrix, and what is trained behind it is multiplied with it once: a
trained encoder takes text vectors as they are and holds nothing of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Float32: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class TextProjection:
    """The matrix [1 + d, k] from the dense columns of `TextFeatures` to those of training."""

    matrix: Float32

    @classmethod
    def fit(cls, columns: Float32, dim: int) -> TextProjection:
        """Principal axes of some items' dense columns.

        Scaled so that the mean square of a projected vector's norm is that of the vectors before, whatever
        their spread and `dim`: the weight of the field keeps its meaning. O(n * d^2 + d^3).

        Args:
            columns: float32 [n, 1 + d] as `TextFeatures` gives them; items without a vector do not count.
            dim: axes k kept, strongest first; fewer where the vectors do not span as many.
        """
        width = columns.shape[1] - 1
        present = columns[columns[:, 0] > 0].astype(np.float64)
        if len(present) < 2:
            return cls(np.zeros((1 + width, 0), np.float32))
        vectors = present[:, 1:] / present[:, :1]
        mean = vectors.mean(0)
        centred = vectors - mean
        variances, axes = np.linalg.eigh(centred.T @ centred / len(vectors))  # ascending
        # Of unit vectors: below this there is rounding and nothing else.
        kept = np.flatnonzero(variances > 1e-10)[::-1][:dim]
        variances, axes = variances[kept], axes[:, kept]
        if len(kept) == 0:
            return cls(np.zeros((1 + width, 0), np.float32))
        # The largest component positive: which of two signs comes out of eigh is anyone's guess.
        axes *= np.sign(axes[np.abs(axes).argmax(0), np.arange(len(kept))])
        basis = axes / np.sqrt(variances.sum())
        return cls(np.concatenate([-(mean @ basis)[None], basis]).astype(np.float32))

    def project(self, columns: Float32) -> Float32:
        """[n, 1 + d] -> [n, k]; an item without a vector gets the mean's place, zero."""
        return columns @ self.matrix

    def unfold(self, weights: Float32) -> Float32:
        """Weights [1 + d, D] of the columns as they are from those [k, D] of the projected ones."""
        product: Float32 = (self.matrix.astype(np.float64) @ weights).astype(np.float32)
        return product
