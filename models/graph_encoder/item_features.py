"""Feature rows of items: hashed columns, which are sparse, and a text vector's columns, which are dense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from models.graph_encoder.feature_tokens import FeatureMatrix

Float32: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ItemFeatures:
    """The matrix [n, S + T] of a sparse part [n, S] beside a dense part [n, T]; float32.

    Two parts because a text vector has no zeros: as sparse entries its columns would cost several times a
    dense product.
    """

    sparse: FeatureMatrix
    dense: Float32 | None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.sparse.shape
        return rows, columns + (0 if self.dense is None else self.dense.shape[1])

    def __matmul__(self, weights: Float32) -> Float32:
        """[n, S + T] @ [S + T, D] -> [n, D]; a vector [S + T] gives [n]."""
        columns = self.sparse.shape[1]
        product = np.asarray(self.sparse @ weights[:columns], np.float32)
        if self.dense is not None:
            product += self.dense @ weights[columns:]
        return product

    def toarray(self) -> Float32:
        """All columns, dense."""
        sparse = np.asarray(self.sparse.toarray(), np.float32)
        return sparse if self.dense is None else np.concatenate([sparse, self.dense], axis=1)
