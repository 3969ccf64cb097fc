"""The items of one encoder generation, as a retriever holds and ranks them."""

from __future__ import annotations

import numpy as np

from deployments.messages import Int64, ItemVectors
from graph.view import GraphView
from models.graph_encoder.checkpoint import Checkpoint
from models.ranking import Ranker


class RankedItems:
    """A ranker and how new its vectors are. Vectors are computed elsewhere and come in pieces."""

    def __init__(self, digest: str, checkpoint: Checkpoint) -> None:
        self.digest = digest
        self.ranker = Ranker(checkpoint.parameters.dim, checkpoint.similarity, checkpoint.ranking)
        self.version = -1  # item vectors are at least this new
        # Item id -> place in the encoder's id table; items made after training are not in it.
        self._positions = {item_id: n for n, item_id in enumerate(checkpoint.parameters.item_ids)}

    def take(self, piece: ItemVectors, view: GraphView) -> None:
        """Take over vectors, except of rows that `view` does not know: they come again, by name."""
        items = [view.item_at(int(row)) for row in piece.rows]
        keep = np.array([n for n, item in enumerate(items) if item is not None], np.int64)
        if len(keep) == 0:
            return
        positions = [self._positions.get(item.item_id, -1) for item in items if item is not None]
        self.ranker.upsert(
            piece.rows[keep],
            piece.source[keep],
            piece.target[keep],
            piece.bias[keep],
            piece.degree[keep],
            np.array(positions, np.int64),
        )

    def missing(self, view: GraphView) -> Int64:
        """Rows of live items without a vector; items that are gone are dropped on the way."""
        live = np.array([item.row for item in view.items()], np.int64)
        have = self.ranker.rows()
        self.ranker.remove(np.setdiff1d(have, live))
        return np.setdiff1d(live, have)
