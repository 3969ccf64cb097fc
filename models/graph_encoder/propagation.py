"""The full encode: sparse products over the whole graph, on any device."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graph.schema import Item, User
from graph.view import GraphView
from models.graph_encoder.features import FeatureExtractor
from models.graph_encoder.item_tables import item_tables, text_vectors_of
from models.graph_encoder.parameters import EdgeWeights, EncoderParameters, LinearParameters


class Propagation(ABC):
    """The equations of an encoder over one version of a graph, with its matrices held on the device.

    Calling it returns live users [U, D] and live items [n, D], both in row order, in O(ratings * D).

    Args:
        parameters: the trained encoder.
        degree_exponent: p of `rating_matrices`.
    """

    def __init__(
        self,
        parameters: EncoderParameters,
        extractor: FeatureExtractor,
        view: GraphView,
        device: torch.device,
        dtype: torch.dtype,
        compile: bool,
        degree_exponent: float,
    ) -> None:
        self.version = view.version
        # Sums over hundreds of addends lose what half precision can hold: only the results are rounded.
        self._dtype, self._wide = dtype, torch.float64 if dtype == torch.float64 else torch.float32
        self._device = device
        users, items = list(view.users()), list(view.items())
        to_users, to_items = rating_matrices(view, users, items, parameters.edge_weights, degree_exponent)
        self._to_users = to_users.to(device, self._wide)
        self._to_items = to_items.to(device, self._wide)
        q, y, _ = item_tables(parameters, extractor, items, vectors=text_vectors_of(view, extractor, items))
        self._q, self._y = self.put(q), self.put(y)
        self._own: Tensor | None = None
        """What a user has besides ratings, [U, D]."""
        if len(parameters.user_attributes) and any(user.attributes for user in users):
            own = np.asarray(extractor.user_features(users) @ parameters.user_attributes, np.float32)
            self._own = self.put(own)
        self._pass = torch.compile(self.propagate) if compile else self.propagate

    def __call__(self) -> tuple[Tensor, Tensor]:
        users, items = self._pass()
        if self._own is not None:
            users = users + self._own
        return users.to(self._dtype), items.to(self._dtype)

    @abstractmethod
    def propagate(self) -> tuple[Tensor, Tensor]:
        """Users without what they have besides ratings, and items."""

    def put(self, array: npt.NDArray[np.generic]) -> Tensor:
        """A copy on the device, in the type that sums are taken in."""
        return torch.from_numpy(array).to(self._device, self._wide)


class LinearPropagation(Propagation):
    """The equations of `parameters.py`."""

    def __init__(
        self,
        parameters: LinearParameters,
        extractor: FeatureExtractor,
        view: GraphView,
        device: torch.device,
        dtype: torch.dtype,
        compile: bool = False,
    ) -> None:
        super().__init__(parameters, extractor, view, device, dtype, compile, parameters.degree_exponent)
        w = [float(weight) for weight in parameters.mix]
        self._source_base, self._target_base = w[0] * self._q + w[2] * self._y, w[3] * self._y
        self._w1, self._w4 = w[1], w[4]

    def propagate(self) -> tuple[Tensor, Tensor]:
        i1 = self._to_items @ (self._to_users @ self._q)
        users = self._to_users @ torch.add(self._source_base, i1, alpha=self._w1)
        return users, torch.add(self._target_base, i1, alpha=self._w4)


def rating_matrices(
    view: GraphView, users: list[User], items: list[Item], edge_weights: EdgeWeights, degree_exponent: float
) -> tuple[Tensor, Tensor]:
    """Sparse matrices, float64 on the CPU, to users [U, n] and to items [n, U]; degrees are folded in.

    An entry to a user is a_ui / d_u, one to an item a_ui d_u^-(1-p) d_i^-p: with p = 1 both take means.
    """
    user_places = _places([user.row for user in users], len(view.user_degrees))
    item_places = _places([item.row for item in items], len(view.item_degrees))
    edges = view.edges()
    weights = edge_weights(edges.values)
    rows, columns = user_places[edges.user_rows], item_places[edges.item_rows]
    kept = (weights > 0) & (rows >= 0) & (columns >= 0)
    rows, columns, weights = rows[kept], columns[kept], weights[kept].astype(np.float64)
    d_u = np.bincount(rows, weights, len(users))
    d_i = np.bincount(columns, weights, len(items))
    safe_u, safe_i = np.where(d_u > 0, d_u, 1.0), np.where(d_i > 0, d_i, 1.0)
    p = degree_exponent
    by_item = np.lexsort((rows, columns))
    by_user = np.lexsort((columns, rows))
    mean = weights / safe_u[rows]
    back = weights * safe_u[rows] ** -(1 - p) * safe_i[columns] ** -p
    shape = (len(users), len(items))
    return (
        _csr(rows[by_user], columns[by_user], mean[by_user], shape),
        _csr(columns[by_item], rows[by_item], back[by_item], shape[::-1]),
    )


def _places(rows: list[int], count: int) -> npt.NDArray[np.int64]:
    """For each row its place among `rows`, -1 where it is not among them."""
    places = np.full(count, -1, np.int64)
    places[rows] = np.arange(len(rows))
    return places


def _csr(
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    values: npt.NDArray[np.float64],
    shape: tuple[int, ...],
) -> Tensor:
    """A CSR tensor from entries sorted by row."""
    pointers = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))]).astype(np.int64)
    with warnings.catch_warnings():
        # torch says once per process that its CSR support is in beta.
        warnings.simplefilter("ignore")
        return torch.sparse_csr_tensor(
            torch.from_numpy(pointers), torch.from_numpy(columns), torch.from_numpy(values), shape
        )
