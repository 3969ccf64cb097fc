"""Exact incremental inference of the `sage` encoder over a live graph: the equations of `sage_parameters.py`.

A message of user u to its items is u1_u, which is not linear in what changes: old and new are computed as a
whole and their difference is pushed. What is pushed and what is pulled when is in `maintained_items.py`.
Memories, their relations and users' attributes are pulled, so no write of them changes anything here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import scipy.sparse as sp

from graph.errors import UnknownMemory
from graph.schema import Memory
from graph.view import GraphView
from models.graph_encoder.features import FeatureExtractor
from models.graph_encoder.maintained_items import Float32, Float64, Int64, MaintainedItems
from models.graph_encoder.memory_inputs import MemoryTexts, memory_inputs, memory_vectors
from models.graph_encoder.numerics import segment_sums
from models.graph_encoder.parameters import EncoderParameters
from models.graph_encoder.sage_parameters import SageParameters


class SageState(MaintainedItems):
    """Item tables and vectors of users and memories of one `SageParameters` over one `GraphView`."""

    parameters: SageParameters
    _FEATURE_TABLES = ("_hidden_base", "_source_base", "_target_base")
    _hidden_base: Float32
    _source_base: Float32
    _target_base: Float32

    def __init__(
        self,
        parameters: SageParameters,
        extractor: FeatureExtractor,
        view: GraphView,
        device: str = "cpu",
    ) -> None:
        """Build in full, O(ratings * D), the sums over ratings on `device`."""
        # Messages that were added are taken away again: both in float64, like the sums.
        self._user_neighbours = parameters.user_neighbours.astype(np.float64)
        self._user_bias = parameters.user_bias.astype(np.float64)
        self._texts = MemoryTexts(parameters, extractor)
        super().__init__(parameters, extractor, view, -1.0, device)

    # ------------------------------------------------------------------------------------------- reading

    def user_vector(self, user_row: int) -> Float32:
        """float32 [D], as of the view's version. O((d_u + memories) * D)."""
        vector: Float32 = self.user_vectors([user_row])[0]
        return vector

    def user_vectors(self, user_rows: Sequence[int] | Int64) -> Float32:
        """float32 [n, D] of several users. O(sum of (d_u + memories) * D)."""
        user_rows = np.asarray(user_rows, np.int64)
        indptr, items, values = self._view.ratings_of_many(user_rows)
        weights = self._weigh(values)
        matrix = sp.csr_matrix((weights, items, indptr), shape=(len(user_rows), len(self._source)))
        totals = segment_sums(weights, indptr)
        totals = np.where(totals > 0, totals, np.float32(1))[:, None]
        vectors = np.asarray(matrix @ self._source, np.float32) / totals
        vectors += self._user_hidden(np.asarray(matrix @ self._q, np.float32) / totals)
        self._add_attributes(vectors, user_rows)
        self._add_memories(vectors, user_rows)
        return vectors

    def session_vector(self, item_rows: Sequence[int] | Int64, values: Sequence[float] | Float32) -> Float32:
        """The vector, float32 [D], that a new user without attributes or memories would get.

        The session's own message joins the sums it reads, (S_j + a_j u1) / (d_j + a_j), without writing.
        Of repeated items the last counts. Raises IndexError for a row never given out.
        """
        rows, weights = self._session(item_rows, values)
        total = weights.sum()
        liked = weights > 0
        rows, weights = rows[liked], weights[liked]
        shares = weights / (total or 1.0)
        mean = shares @ self._q[rows].astype(np.float64)  # zeros [D] where nothing is liked
        message = self._messages(mean[None] * total, np.array([total]))[0]
        scale = 1.0 / (self._degree[rows] + weights)
        aggregated = (self._sums[rows] + weights[:, None] * message) * scale[:, None]
        source, _ = self._derive(rows, aggregated.astype(np.float32))
        vector = shares @ source + self._user_hidden(mean.astype(np.float32)[None])[0]
        return np.asarray(vector, np.float32)

    def memory_vectors(self, memory_rows: Sequence[int] | Int64) -> Float32:
        """Vectors of live memories, float32 [n, D]; `memory @ target` is how near items are to them.

        O(n + their relations). Raises UnknownMemory for a row without a live memory.
        """
        memories = []
        for row in np.asarray(memory_rows, np.int64).tolist():
            memory = self._view.memory_at(row)
            if memory is None:
                raise UnknownMemory(f"there is no memory in row {row}")
            memories.append(memory)
        return self._memory_vectors(memories)

    # ----------------------------------------------------------------------------------------- the equations

    @classmethod
    def _over(cls, parameters: EncoderParameters, extractor: FeatureExtractor, view: GraphView) -> Self:
        assert isinstance(parameters, SageParameters)
        return cls(parameters, extractor, view)

    def _messages(self, sums: Float64, totals: Float64) -> Float64:
        here = totals > 0
        sums /= np.where(here, totals, 1.0)[:, None]
        messages = sums @ self._user_neighbours
        messages += self._user_bias
        np.maximum(messages, 0.0, out=messages)
        messages[~here] = 0.0
        return messages

    def _put_tables(self, rows: Int64, q: Float32, y: Float32) -> None:
        p = self.parameters
        self._hidden_base[rows] = q @ p.item_root + p.item_bias
        self._source_base[rows] = q @ p.source_root
        self._target_base[rows] = y

    def _derive(self, rows: Int64, aggregated: Float32) -> tuple[Float32, Float32]:
        p = self.parameters
        hidden: Float32 = aggregated @ p.item_neighbours
        hidden += self._hidden_base[rows]
        np.maximum(hidden, np.float32(0), out=hidden)
        source = hidden @ p.source_hidden + self._source_base[rows]
        target = hidden @ p.target_hidden + self._target_base[rows]
        return source, target

    def _user_hidden(self, mean: Float32) -> Float32:
        """u1 @ user_root [n, D] from the means of x [n, D]."""
        p = self.parameters
        hidden: Float32 = np.maximum(mean @ p.user_neighbours + p.user_bias, np.float32(0)) @ p.user_root
        return hidden

    def _add_memories(self, vectors: Float32, user_rows: Int64) -> None:
        """Add each user's part of the own memories to its vector, in place."""
        owned = [self._view.memories_of(row) for row in user_rows.tolist()]
        places = [n for n, memories in enumerate(owned) if memories]
        if not places:
            return
        found = self._memory_vectors([memory for memories in owned for memory in memories])
        counts = np.array([len(owned[n]) for n in places])
        means = np.add.reduceat(found, np.cumsum(counts) - counts, axis=0) / counts[:, None]
        vectors[places] += means.astype(np.float32) @ self.parameters.memory_gate

    def _memory_vectors(self, memories: Sequence[Memory]) -> Float32:
        inputs = memory_inputs(self._texts, self._view, memories, lambda rows: self._q[rows])
        return memory_vectors(self.parameters, inputs)
