r"""The `linear` encoder as a torch-geometric module: the equations of `parameters.py`, differentiable.

Linear propagation in the spirit of LightGCN (He et al. 2020, arXiv:2002.02126), but without ID state on the
users' side: a user is the weighted mean of what was rated, so a new user needs no training.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.graph_encoder.parameters import EdgeWeights, LinearParameters

with warnings.catch_warnings():
    # Neither is ours to fix: torch-geometric 2.8 still uses torch.jit.script, and torch says once per
    # process, at the first CSR tensor, that CSR is in beta.
    warnings.simplefilter("ignore")
    from torch_geometric.nn import MessagePassing
    from torch_geometric.utils import spmm

    torch.sparse_csr_tensor([0], [], torch.empty(0), (0, 0))

NUM_MIX = 5


@dataclass(frozen=True, slots=True, eq=False)
class BipartiteEdges:
    """Weighted ratings in both directions, as sparse CSR matrices that share their entries.

    `to_users` [U, n] gathers from items, `to_items` [n, U] from users. Holding the transpose spares autograd
    the sort that transposing a CSR matrix costs.
    """

    to_users: Tensor
    to_items: Tensor
    user_degrees: Tensor  # [U] float32, sums of weights
    item_degrees: Tensor  # [n] float32


class EdgeList:
    """Edges sorted once in both directions, so that any subset of them becomes a matrix in O(edges).

    Args:
        user_rows: int64 [e], in [0, num_users).
        item_rows: int64 [e], in [0, num_items); pairs are unique.
        weights: float32 [e], non-negative.
    """

    def __init__(
        self,
        user_rows: npt.NDArray[np.int64],
        item_rows: npt.NDArray[np.int64],
        weights: npt.NDArray[np.float32],
        num_users: int,
        num_items: int,
        device: torch.device | str = "cpu",
    ) -> None:
        order = np.lexsort((item_rows, user_rows))
        self.user_rows = torch.from_numpy(user_rows[order]).to(device)
        self.item_rows = torch.from_numpy(item_rows[order]).to(device)
        self.weights = torch.from_numpy(weights[order].astype(np.float32)).to(device)
        self.num_users, self.num_items = num_users, num_items
        self._by_item = torch.argsort(self.item_rows, stable=True)

    def __len__(self) -> int:
        return len(self.user_rows)

    def matrices(self, kept: Tensor | None = None) -> BipartiteEdges:
        """The edges where `kept` (bool [e], in this list's order) holds; all of them without it."""
        weights = self.weights if kept is None else self.weights * kept
        # Edges of weight zero carry no message: leaving them out is exact and keeps products short.
        used = weights > 0
        first = used.nonzero().squeeze(1)
        second = self._by_item[used[self._by_item]]
        return BipartiteEdges(
            _csr(
                self.user_rows[first], self.item_rows[first], weights[first], self.num_users, self.num_items
            ),
            _csr(
                self.item_rows[second],
                self.user_rows[second],
                weights[second],
                self.num_items,
                self.num_users,
            ),
            torch.zeros(self.num_users, device=weights.device).index_add_(0, self.user_rows, weights),
            torch.zeros(self.num_items, device=weights.device).index_add_(0, self.item_rows, weights),
        )


class WeightedSum(MessagePassing):  # type: ignore[misc]
    r"""Sum aggregation :math:`out_i = \sum_{j \in N(i)} a_{ij} x_j`, fused into one sparse product.

    Shapes:
        x [num_sources, D], `forward_edges` [num_targets, num_sources], `backward_edges` its transpose;
        output [num_targets, D].
    """

    def __init__(self) -> None:
        super().__init__(aggr="sum")

    def forward(self, x: Tensor, forward_edges: Tensor, backward_edges: Tensor) -> Tensor:
        result: Tensor = self.propagate(forward_edges, x=x, transposed=backward_edges)
        return result

    def message_and_aggregate(self, edge_index: Tensor, x: Tensor, transposed: Tensor) -> Tensor:
        result: Tensor = _SparseProduct.apply(edge_index, transposed, x)  # type: ignore[no-untyped-call]
        return result


class ItemTables(torch.nn.Module):
    """The trainable tables of items and features that every kind of encoder begins with.

    Args:
        num_items: items n in the id table.
        num_item_features: F, columns of the items' feature matrix.
        dim: D, dimension of all vectors.
        generator: draws the initial values; the same on every device.
    """

    def __init__(self, num_items: int, num_item_features: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()

        def table(rows: int, deviation: float) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(rows, dim, generator=generator) * deviation)

        self.id_source = table(num_items, 0.1)
        self.id_target = table(num_items, 0.1)
        self.id_bias = torch.nn.Parameter(torch.zeros(num_items))
        self.feature_source = table(num_item_features, 0.02)
        self.feature_target = table(num_item_features, 0.02)
        self.feature_bias = torch.nn.Parameter(torch.zeros(num_item_features))

    @property
    def dim(self) -> int:
        return self.id_source.shape[1]

    def item_inputs(self, features: FeatureRows, kept: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Sources [n, D], targets [n, D] and bias [n] of items before any rating.

        Where `kept` [n, 1] is zero an item is unknown: its features speak for it alone.
        """

        def with_features(ids: Tensor, weights: Tensor) -> Tensor:
            return (ids if kept is None else ids * kept) + features @ weights

        bias = with_features(self.id_bias.unsqueeze(1), self.feature_bias.unsqueeze(1)).squeeze(1)
        return (
            with_features(self.id_source, self.feature_source),
            with_features(self.id_target, self.feature_target),
            bias,
        )

    def item_arrays(self, item_ids: Sequence[str]) -> dict[str, Any]:
        """The tables as numpy copies by the names that `EncoderParameters` has for them, ids included.

        Raises ValueError for ids that are not as many as the table's.
        """
        if len(item_ids) != len(self.id_bias):
            raise ValueError(f"{len(item_ids)} item ids for an id table of {len(self.id_bias)}")
        tables = (
            "id_source",
            "id_target",
            "id_bias",
            "feature_source",
            "feature_target",
            "feature_bias",
        )
        return {"item_ids": tuple(item_ids)} | {name: as_array(getattr(self, name)) for name in tables}


class LinearEncoderNetwork(ItemTables):
    """Trainable parameters and the forward pass of the `linear` encoder.

    Args:
        num_items: items n in the id table.
        num_item_features: F, columns of the items' feature matrix.
        num_user_features: G, columns of the users' feature matrix; may be 0.
        dim: D, dimension of all vectors.
        seed: seeds the initialisation; the same on every device.
    """

    def __init__(
        self, num_items: int, num_item_features: int, num_user_features: int, dim: int, *, seed: int = 0
    ) -> None:
        super().__init__(num_items, num_item_features, dim, torch.Generator().manual_seed(seed))
        # Zero: attributes start without influence and gain it only where they help.
        self.user_attributes = torch.nn.Parameter(torch.zeros(num_user_features, dim))
        self.mix = torch.nn.Parameter(torch.ones(NUM_MIX))
        self.degree_exponent = torch.nn.Parameter(torch.tensor(0.5))
        self.aggregate = WeightedSum()

    def forward(
        self,
        edges: BipartiteEdges,
        item_features: FeatureRows,
        user_features: FeatureRows | None = None,
        kept_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of all users and items from the messages in `edges`.

        Args:
            edges: the visible ratings.
            item_features: f, [n, F].
            user_features: g, [U, G]; None leaves the attribute term out.
            kept_ids: bool [n]; where False the item is treated as unknown: its ID terms and, as a target, its
                neighbours' message are zero. None keeps all.

        Returns:
            users [U, D], items [n, D] and bias [n]; score(u, j) = users[u] . items[j] + bias[j].
        """
        kept = None if kept_ids is None else kept_ids.to(self.id_source.dtype).unsqueeze(1)
        q, y, bias = self.item_inputs(item_features, kept)
        w, p = self.mix, self.degree_exponent

        # Nodes without messages have empty sums: their divisor does not matter but must not be zero.
        d_u = torch.where(edges.user_degrees > 0, edges.user_degrees, 1).unsqueeze(1)
        d_i = torch.where(edges.item_degrees > 0, edges.item_degrees, 1).unsqueeze(1)
        u1 = self.aggregate(q, edges.to_users, edges.to_items) / d_u  # [U, D]
        i1 = self.aggregate(u1 * d_u ** (p - 1), edges.to_items, edges.to_users) * d_i**-p  # [n, D]
        z = w[0] * q + w[1] * i1 + w[2] * y
        users = self.aggregate(z, edges.to_users, edges.to_items) / d_u
        if user_features is not None:
            users = users + user_features @ self.user_attributes
        items = w[3] * y + w[4] * (i1 if kept is None else i1 * kept)
        return users, items, bias

    def to_parameters(
        self, item_ids: Sequence[str], edge_weights: EdgeWeights, features: Mapping[str, object]
    ) -> LinearParameters:
        """The parameters as numpy copies, with the id table [n] and the feature extractor's config."""
        return LinearParameters(
            **self.item_arrays(item_ids),
            user_attributes=as_array(self.user_attributes),
            mix=as_array(self.mix),
            degree_exponent=float(self.degree_exponent.detach()),
            edge_weights=edge_weights,
            features=dict(features),
        )

    @classmethod
    def from_parameters(cls, parameters: LinearParameters) -> LinearEncoderNetwork:
        """A network that computes what `parameters` describe."""
        network = cls(
            len(parameters.item_ids),
            len(parameters.feature_source),
            len(parameters.user_attributes),
            parameters.dim,
        )
        with torch.no_grad():
            for name, tensor in network.named_parameters():
                tensor.copy_(torch.as_tensor(np.asarray(getattr(parameters, name), np.float32)))
        return network


class FeatureRows:
    """A constant feature matrix [rows, S + T], multiplied with trainable weights.

    Args:
        matrix: the sparse part [rows, S], scipy.sparse, float32.
        dense: the part [rows, T] that has no zeros, float32; None where there is none.
    """

    def __init__(
        self,
        matrix: Any,
        device: torch.device | str = "cpu",
        dense: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self._columns: int = matrix.shape[1]
        self.shape: tuple[int, int] = matrix.shape
        self._forward = _from_scipy(matrix.tocsr(), device)
        self._backward = _from_scipy(matrix.T.tocsr(), device)
        self._dense = None
        if dense is not None:
            self.shape = (matrix.shape[0], matrix.shape[1] + dense.shape[1])
            self._dense = torch.from_numpy(np.ascontiguousarray(dense, np.float32)).to(device)

    def mean_squares(self) -> Tensor:
        """Mean square of each column, float32 [columns]."""
        sums = torch.zeros(self._columns, device=self._forward.device)
        sums.index_add_(0, self._forward.col_indices(), self._forward.values().square())
        if self._dense is not None:
            sums = torch.cat([sums, self._dense.square().sum(0)])
        return sums / max(1, self.shape[0])

    def __matmul__(self, weights: Tensor) -> Tensor:
        """[rows, columns] @ [columns, D] -> [rows, D]."""
        sparse = weights[: self._columns]
        result: Tensor = _SparseProduct.apply(self._forward, self._backward, sparse)  # type: ignore[no-untyped-call]
        return result if self._dense is None else result + self._dense @ weights[self._columns :]


class _SparseProduct(torch.autograd.Function):
    """matrix @ x, whose gradient is transposed @ gradient; neither matrix gets one."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        ctx.transposed = transposed
        result: Tensor = spmm(matrix, x)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor]:
        return None, None, spmm(ctx.transposed, gradients[0].contiguous())


def _csr(rows: Tensor, columns: Tensor, values: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """A CSR tensor from entries already sorted by row."""
    counts = torch.bincount(rows, minlength=num_rows)
    crow = torch.zeros(num_rows + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum(counts, 0, out=crow[1:])
    return torch.sparse_csr_tensor(crow, columns, values, (num_rows, num_columns), check_invariants=False)


def _from_scipy(matrix: Any, device: torch.device | str) -> Tensor:
    return torch.sparse_csr_tensor(
        torch.from_numpy(matrix.indptr.astype(np.int64)),
        torch.from_numpy(matrix.indices.astype(np.int64)),
        torch.from_numpy(matrix.data.astype(np.float32)),
        matrix.shape,
        check_invariants=False,
    ).to(device)


def as_array(tensor: Tensor) -> npt.NDArray[np.float32]:
    """A copy as numpy, float32."""
    return tensor.detach().cpu().numpy().astype(np.float32, copy=True)
