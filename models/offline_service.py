"""A trained encoder over a training part, answering as the service would: the same state, the same ranker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from graph.node_text import item_text, text_digest
from graph.schema import RATING_DTYPE, ChangeSet, Item, TextVector, User
from graph.view import GraphView
from models.graph_encoder.features import extractor_from_config
from models.graph_encoder.state import build_state
from models.graph_encoder.training import TrainedEncoder
from models.interactions import Interactions
from models.ranking import Ranker, RankQuery
from models.ranking_metrics import top_items
from models.text_encoder.protocol import TextEncoder

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

_BLOCK_FLOATS = 16_000_000
_TEXTS_AT_ONCE = 1024


class OfflineService:
    """Recommendations to the users of a training part.

    Args:
        trained: the encoder with its second stage.
        train: the ratings it was trained on; they index `items` and `users`.
        items: metadata for features; their `row` plays no part.
        users: likewise.
        item_vectors: float32 [len(items), d], text vectors of the encoder's text model, zeros where there is
            none; None for an encoder without one.
        catalogue: places in `items` that may be recommended, ascending; None: the items with ratings.
    """

    def __init__(
        self,
        trained: TrainedEncoder,
        train: Interactions,
        items: Sequence[Item],
        users: Sequence[User],
        item_vectors: Float32 | None = None,
        catalogue: Int64 | None = None,
    ) -> None:
        self._trained = trained
        extractor = extractor_from_config(trained.parameters.features)
        view = view_of(train, items, users, item_vectors, extractor.text_model)
        self._state = build_state(trained.parameters, view)
        place = {item_id: position for position, item_id in enumerate(trained.parameters.item_ids)}
        self._positions = np.array([place.get(item.item_id, -1) for item in items], np.int64)
        self._rows = np.unique(train.items) if catalogue is None else catalogue

    def recommend(self, asked: Int64, n: int) -> Int64:
        """The way of a request, ranker and both stages: item places int64 [len(asked), n], -1 padded."""
        state, rows = self._state, self._rows
        ranker = Ranker(self._trained.parameters.dim, self._trained.similarity, self._trained.settings)
        ranker.upsert(
            rows,
            state.source[rows],
            state.target[rows],
            state.bias[rows],
            state.degree[rows],
            self._positions[rows],
        )
        served = np.full((len(asked), n), -1, np.int64)
        width = max(1, _BLOCK_FLOATS // state.num_item_rows)
        for first in range(0, len(asked), width):
            block = asked[first : first + width]
            queries = []
            for user, vector in zip(block.tolist(), state.user_vectors(block), strict=True):
                seen, weights = state.seen(user)
                known = bool((weights > 0).any())
                queries.append(
                    RankQuery(vector if known else None, seen.astype(np.int64), weights, n=n, explain=False)
                )
            for place, result in enumerate(ranker.recommend(queries), first):
                served[place, : len(result)] = result.rows
        return served

    def best(self, asked: Int64, n: int) -> Int64:
        """The exact best, by scores of every item: int64 [len(asked), n], -1 padded."""
        width = max(1, _BLOCK_FLOATS // self._state.num_item_rows)
        blocks = [
            top_items(self.scores(asked[first : first + width]), n) for first in range(0, len(asked), width)
        ]
        return np.concatenate(blocks) if blocks else np.empty((0, n), np.int64)

    def scores(self, asked: Int64, *, second_stage: bool = True) -> Float32:
        """What orders the recommendations of users, float32 [len(asked), len(items)].

        -inf outside the catalogue and for what a user has rated. `second_stage` adds the item-item term, or
        what is expected of it to items outside the matrix. Of users who like nothing known, every item
        scores its degree.
        """
        state, rows, similarity = self._state, self._rows, self._trained.similarity
        scores = np.full((len(asked), state.num_item_rows), -np.inf, np.float32)
        scores[:, rows] = state.user_vectors(asked) @ state.target[rows].T + state.bias[rows]
        indptr, liked = [0], list[Int64]()
        rated = [state.seen(user) for user in asked.tolist()]
        for place, (seen, weights) in enumerate(rated):
            positions = self._positions[seen[weights > 0]]
            liked.append(positions[positions >= 0])
            indptr.append(indptr[-1] + len(liked[-1]))
            if not (weights > 0).any():
                scores[place, rows] = state.degree[rows]
        if second_stage and self._trained.settings.similarity_weight > 0:
            known = rows[self._positions[rows] >= 0]
            matrix = sp.csr_matrix(
                (np.ones(indptr[-1], np.float32), np.concatenate(liked), indptr),
                shape=(len(asked), similarity.size),
            )
            term = similarity.product(matrix)[:, self._positions[known]]
            scores[:, known] += self._trained.settings.similarity_weight * term
            expected = self._trained.settings.expected_addend()
            outside = rows[self._positions[rows] < 0]
            # Those who like nothing known keep the degrees: their count is 0.
            if expected is not None and len(outside):
                counts = np.diff(indptr).astype(np.float32)[:, None]
                scores[:, outside] += counts * expected(scores[:, outside])
        for place, (seen, _) in enumerate(rated):
            scores[place, seen] = -np.inf
        return scores


def view_of(
    ratings: Interactions,
    items: Sequence[Item],
    users: Sequence[User],
    item_vectors: Float32 | None = None,
    text_model: str | None = None,
) -> GraphView:
    """A view with these ratings, written in file order; rows are places in `items` and `users`.

    With both given, items have the rows of `item_vectors` that are not zero as vectors of `text_model`.
    """
    records = np.zeros(len(ratings), RATING_DTYPE)
    records["user_row"], records["item_row"] = ratings.users, ratings.items
    records["value"], records["timestamp"], records["version"] = ratings.values, ratings.timestamps, 1
    vectors = []
    if item_vectors is not None and text_model is not None:
        vectors = [
            TextVector(
                "item",
                row,
                text_model,
                text_digest(item_text(items[row])),
                item_vectors[row].astype("<f2").tobytes(),
                1,
            )
            for row in np.flatnonzero(item_vectors.any(axis=1)).tolist()
        ]
    view = GraphView("evaluation")
    view.apply(
        ChangeSet(
            0,
            1,
            [User(row, user.user_id, user.attributes, 1) for row, user in enumerate(users)],
            [
                Item(row, item.item_id, item.title, item.tags, item.year, item.text, 1)
                for row, item in enumerate(items)
            ],
            ratings=records,
            text_vectors=vectors,
        )
    )
    return view


def embed_items(items: Sequence[Item], encoder: TextEncoder) -> Float32:
    """Vectors float32 [n, d] of items' texts, as the store would hold them."""
    vectors = [
        encoder.encode([item_text(item) for item in items[first : first + _TEXTS_AT_ONCE]])
        for first in range(0, len(items), _TEXTS_AT_ONCE)
    ]
    if not vectors:
        return np.zeros((0, encoder.fingerprint.dimensions), np.float32)
    # The store keeps float16.
    return np.concatenate(vectors).astype(np.float16).astype(np.float32)
