"""Features of the nodes that training works with, and the way back to parameters for those of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from graph.schema import Item, User
from models.graph_encoder.features import FeatureExtractor
from models.graph_encoder.fitting import EncoderNetwork
from models.graph_encoder.item_features import ItemFeatures
from models.graph_encoder.network import FeatureRows
from models.graph_encoder.parameters import EdgeWeights, LinearParameters
from models.graph_encoder.sage_parameters import SageParameters
from models.graph_encoder.text_projection import TextProjection

Float32: TypeAlias = npt.NDArray[np.float32]


class TrainingFeatures:
    """Feature matrices of the items of the id table and of all users; text vectors are projected.

    Args:
        extractor: of the features.
        items: those of the id table, in its order.
        users: all.
        vectors: float32 [len(items), d], the items' text vectors, where the extractor takes any.
        text_columns: principal axes of the vectors that are kept.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        items: Sequence[Item],
        users: Sequence[User],
        vectors: Float32 | None,
        text_columns: int,
    ) -> None:
        self.extractor = extractor
        self.items = extractor.item_features(items, vectors)
        self.text_share = 0.0
        self._projection: TextProjection | None = None
        if self.items.dense is not None:
            self.text_share = float(np.mean(self.items.dense[:, 0] > 0))
            self._projection = TextProjection.fit(self.items.dense, text_columns)
            self.items = ItemFeatures(self.items.sparse, self._projection.project(self.items.dense))
        user_features = extractor.user_features(users)
        self.users = user_features if user_features.nnz else None

    def rows(self, device: torch.device | str) -> tuple[FeatureRows, FeatureRows | None]:
        """Matrices of items and users on a device; None where no user has attributes."""
        users = None if self.users is None else FeatureRows(self.users, device)
        return FeatureRows(self.items.sparse, device, self.items.dense), users

    def to_parameters(
        self, network: EncoderNetwork, item_ids: Sequence[str], edge_weights: EdgeWeights
    ) -> LinearParameters | SageParameters:
        """What the network learned, for text vectors as they are in place of projected ones."""
        parameters = network.to_parameters(item_ids, edge_weights, self.extractor.config())
        if self._projection is None:
            return parameters
        first, projection = self.items.sparse.shape[1], self._projection

        def unfold(weights: Float32) -> Float32:
            return np.concatenate([weights[:first], projection.unfold(weights[first:])])

        return replace(
            parameters,
            feature_source=unfold(parameters.feature_source),
            feature_target=unfold(parameters.feature_target),
            feature_bias=unfold(parameters.feature_bias),
        )

    def metadata(self) -> dict[str, object]:
        return {
            "features": str(self.extractor.config()["kind"]),
            "text_model": self.extractor.text_model,
            "items_with_text_vector": round(self.text_share, 4),
        }
