"""The `sage` encoder as a torch-geometric module: the equations of `sage_parameters.py`, differentiable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from models.graph_encoder.network import BipartiteEdges, FeatureRows, ItemTables, WeightedSum, as_array
from models.graph_encoder.parameters import EdgeWeights
from models.graph_encoder.sage_parameters import UNTRAINED_GATE, SageParameters


class WeightedSage(torch.nn.Module):
    r"""GraphSAGE with weighted means, :math:`\sum_j a_{ij} x_j / d_i\,W_n + x_i W_r + b`, without activation.

    Shapes:
        x [num_sources, D], root [num_targets, D] or None; output [num_targets, D].
    """

    def __init__(self, dim: int, generator: torch.Generator, *, root: bool) -> None:
        super().__init__()
        self.neighbours = torch.nn.Parameter(dense_weights(dim, generator))
        self.root = torch.nn.Parameter(dense_weights(dim, generator)) if root else None
        self.bias = torch.nn.Parameter(torch.zeros(dim))
        self.aggregate = WeightedSum()

    def forward(
        self,
        x: Tensor,
        root: Tensor | None,
        edges: Tensor,
        transposed: Tensor,
        degrees: Tensor,
        kept: Tensor | None = None,
    ) -> Tensor:
        """`edges` [num_targets, num_sources] hold the weights, `degrees` [num_targets] their sums.

        Where `kept` [num_targets, 1] is zero, a node hears nothing from its neighbours.
        """
        divisor = torch.where(degrees > 0, degrees, 1).unsqueeze(1)
        mean: Tensor = self.aggregate(x, edges, transposed) / divisor
        out: Tensor = (mean if kept is None else mean * kept) @ self.neighbours + self.bias
        return out if self.root is None or root is None else out + root @ self.root


def dense_weights(dim: int, generator: torch.Generator) -> Tensor:
    """Square weights that keep the scale of what they are multiplied with."""
    return torch.randn(dim, dim, generator=generator) / math.sqrt(dim)


class SageEncoderNetwork(ItemTables):
    """Trainable parameters and the forward pass of the part of `sage` that ratings and items make.

    Attributes and memories are not in here: they are fitted behind it, see `private_fitting.py`.

    Args:
        num_items: items n in the id table.
        num_item_features: F, columns of the items' feature matrix.
        dim: D, dimension of all vectors.
        seed: seeds the initialisation; the same on every device.
    """

    def __init__(self, num_items: int, num_item_features: int, dim: int, *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        super().__init__(num_items, num_item_features, dim, generator)
        self.to_users = WeightedSage(dim, generator, root=False)
        self.to_items = WeightedSage(dim, generator, root=True)
        self.source_root = torch.nn.Parameter(torch.eye(dim))
        self.source_hidden = torch.nn.Parameter(dense_weights(dim, generator))
        self.target_hidden = torch.nn.Parameter(dense_weights(dim, generator))
        self.user_root = torch.nn.Parameter(dense_weights(dim, generator))

    def dense_parameters(self) -> list[torch.nn.Parameter]:
        """Everything but the tables of items and features."""
        return [
            *self.to_users.parameters(),
            *self.to_items.parameters(),
            self.source_root,
            self.source_hidden,
            self.target_hidden,
            self.user_root,
        ]

    def forward(
        self,
        edges: BipartiteEdges,
        item_features: FeatureRows,
        user_features: FeatureRows | None = None,
        kept_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of all users and items from the messages in `edges`, as `LinearEncoderNetwork` gives them.

        `user_features` take no part: attributes are private to their user.
        """
        kept = None if kept_ids is None else kept_ids.to(self.id_source.dtype).unsqueeze(1)
        x, y, bias = self.item_inputs(item_features, kept)
        users, items = self.propagate(edges, x, y, kept)
        return users, items, bias

    def propagate(
        self, edges: BipartiteEdges, x: Tensor, y: Tensor, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Users [U, D] and items [n, D] from the items' inputs x and y, [n, D] each.

        Where `kept` [n, 1] is zero, an item hears nothing from its users.
        """
        u1 = self.to_users(x, None, edges.to_users, edges.to_items, edges.user_degrees).relu()
        hidden = self.to_items(u1, x, edges.to_items, edges.to_users, edges.item_degrees, kept).relu()
        z = x @ self.source_root + hidden @ self.source_hidden
        divisor = torch.where(edges.user_degrees > 0, edges.user_degrees, 1).unsqueeze(1)
        users = self.to_users.aggregate(z, edges.to_users, edges.to_items) / divisor + u1 @ self.user_root
        return users, y + hidden @ self.target_hidden

    def to_parameters(
        self, item_ids: Sequence[str], edge_weights: EdgeWeights, features: Mapping[str, object]
    ) -> SageParameters:
        """The parameters as numpy copies, with an untrained branch of memories and none of attributes.

        Untrained, a memory speaks like an item of its text, and like those it is related to.
        """
        assert self.to_items.root is not None
        one = np.eye(self.dim, dtype=np.float32)
        return SageParameters(
            **self.item_arrays(item_ids),
            user_neighbours=as_array(self.to_users.neighbours),
            user_bias=as_array(self.to_users.bias),
            user_root=as_array(self.user_root),
            item_neighbours=as_array(self.to_items.neighbours),
            item_root=as_array(self.to_items.root),
            item_bias=as_array(self.to_items.bias),
            source_root=as_array(self.source_root),
            source_hidden=as_array(self.source_hidden),
            target_hidden=as_array(self.target_hidden),
            user_attributes=np.zeros((0, self.dim), np.float32),
            memory_root=one.copy(),
            memory_items=one.copy(),
            memory_memories=np.float32(0.5) * one,
            memory_gate=np.float32(UNTRAINED_GATE) * one,
            edge_weights=edge_weights,
            features=dict(features),
        )

    @classmethod
    def from_parameters(cls, parameters: SageParameters) -> SageEncoderNetwork:
        """A network that computes what `parameters` say of ratings and items."""
        network = cls(len(parameters.item_ids), len(parameters.feature_source), parameters.dim)
        renamed = {
            "to_users.neighbours": "user_neighbours",
            "to_users.bias": "user_bias",
            "to_items.neighbours": "item_neighbours",
            "to_items.root": "item_root",
            "to_items.bias": "item_bias",
        }
        with torch.no_grad():
            for name, tensor in network.named_parameters():
                tensor.copy_(torch.as_tensor(getattr(parameters, renamed.get(name, name))))
        return network
