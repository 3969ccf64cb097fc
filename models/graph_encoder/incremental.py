"""Exact incremental inference of the `linear` encoder over a live graph: the equations of `parameters.py`.

A message of user u to its items is m_u = d_u^-(2-p) * sum_j a_uj q_j, and S_j = sum_u a_uj m_u. What is
pushed and what is pulled when is in `maintained_items.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import scipy.sparse as sp

from graph.errors import InvalidInput
from graph.view import GraphView
from models.graph_encoder.features import FeatureExtractor
from models.graph_encoder.maintained_items import Float32, Float64, Int64, MaintainedItems
from models.graph_encoder.numerics import Matrix, dense, power, row_sums, segment_sums
from models.graph_encoder.parameters import EncoderParameters, LinearParameters


class LinearState(MaintainedItems):
    """Item tables and user vectors of one `LinearParameters` over one `GraphView`, at `version`."""

    parameters: LinearParameters
    _FEATURE_TABLES = ("_source_base", "_target_base")
    _source_base: Float32
    _target_base: Float32

    def __init__(
        self,
        parameters: LinearParameters,
        extractor: FeatureExtractor,
        view: GraphView,
        device: str = "cpu",
    ) -> None:
        """Build in full, O(ratings * D), the sums over ratings on `device`."""
        self._message_exponent = -(2.0 - parameters.degree_exponent)
        self._mix = parameters.mix.astype(np.float32)
        self._w1, self._w4 = float(self._mix[1]), float(self._mix[4])
        super().__init__(parameters, extractor, view, -parameters.degree_exponent, device)

    # ------------------------------------------------------------------------------------------- reading

    def user_vector(self, user_row: int) -> Float32:
        """float32 [D], as of the view's version. O(d_u * D)."""
        rows, weights = self.seen(user_row)
        total = weights.sum()
        if total > 0:
            vector: Float32 = (weights @ self._source.take(rows, axis=0)) / total
        else:
            vector = np.zeros(self.parameters.dim, np.float32)
        own = self._attribute_vector(user_row)
        return vector if own is None else vector + own

    def user_vectors(self, user_rows: Sequence[int] | Int64) -> Float32:
        """float32 [n, D] of several users. O(sum of d_u * D)."""
        user_rows = np.asarray(user_rows, np.int64)
        indptr, items, values = self._view.ratings_of_many(user_rows)
        weights = self._weigh(values)
        matrix = sp.csr_matrix((weights, items, indptr), shape=(len(user_rows), len(self._source)))
        totals = segment_sums(weights, indptr)
        vectors = np.asarray(matrix @ self._source, np.float32)
        vectors /= np.where(totals > 0, totals, np.float32(1))[:, None]
        self._add_attributes(vectors, user_rows)
        return vectors

    def session_vector(self, item_rows: Sequence[int] | Int64, values: Sequence[float] | Float32) -> Float32:
        """The vector, float32 [D], that a new user without attributes would get from these ratings.

        The session's own message joins the sums it reads, (d_j + a_j)^-p (S_j + a_j m), without writing.
        Of repeated items the last counts. Raises IndexError for a row never given out.
        """
        rows, weights = self._session(item_rows, values)
        total = weights.sum()
        if total == 0:
            return np.zeros(self.parameters.dim, np.float32)
        message = total**self._message_exponent * (weights @ self._q[rows].astype(np.float64))
        scale = power(self._degree[rows] + weights, self._degree_exponent)
        i1 = (self._sums[rows] + weights[:, None] * message) * scale[:, None]
        vector = weights @ (self._source_base[rows] + self._w1 * i1) / total
        return np.asarray(vector, np.float32)

    def memory_vectors(self, memory_rows: Sequence[int] | Int64) -> Float32:
        """Raises InvalidInput: this kind of encoder knows users and items alone."""
        raise InvalidInput(
            "the active encoder is of kind `linear` and has no vectors of memories: train one with "
            "`weft train --encoder sage`",
            param="kind",
        )

    # ----------------------------------------------------------------------------------------- the equations

    @classmethod
    def _over(cls, parameters: EncoderParameters, extractor: FeatureExtractor, view: GraphView) -> Self:
        assert isinstance(parameters, LinearParameters)
        return cls(parameters, extractor, view)

    def _messages(self, sums: Float64, totals: Float64) -> Float64:
        sums *= power(totals, self._message_exponent)[:, None]
        return sums

    def _exchange(self, sums: Float64, before: float, after: float) -> Float64:
        sums[0] *= -(before**self._message_exponent) if before else 0.0
        sums[1] *= after**self._message_exponent if after else 0.0
        return sums

    def _moved_sums(self, weights: Matrix, touched: Int64, columns: Matrix, moves: Float64) -> Float64:
        """A rank-1 update per item whose q moved.

        S_j += c_j dq with c_j = sum over users v of both of a_vj a_vi d_v^-(2-p).
        """
        factors = sp.diags_array(power(row_sums(weights), self._message_exponent))
        # Both orders are exact; which is cheaper depends on how many items moved.
        if len(moves) < self.parameters.dim:
            return np.asarray((weights.T @ (factors @ columns)).toarray() @ moves, np.float64)
        return dense(weights.T @ (factors @ (columns @ moves)))

    def _put_tables(self, rows: Int64, q: Float32, y: Float32) -> None:
        self._source_base[rows] = self._mix[0] * q + self._mix[2] * y
        self._target_base[rows] = self._mix[3] * y

    def _derive(self, rows: Int64, aggregated: Float32) -> tuple[Float32, Float32]:
        source, target = self._source_base.take(rows, axis=0), self._target_base.take(rows, axis=0)
        source += aggregated * self._w1
        aggregated *= self._w4
        target += aggregated
        return source, target
