"""The full encode: three sparse products over the whole graph, on any device."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graph.view import GraphView
from models.graph_encoder.features import FeatureExtractor
from models.graph_encoder.item_tables import item_tables, text_vectors_of
from models.graph_encoder.parameters import LinearParameters


class Propagation:
    """The equations of `parameters.py` over one version of a graph, with its matrices held on the device.

    Calling it returns live users [U, D] and live items [n, D], both in row order, in O(ratings * D).
    """

    def __init__(
        self,
        parameters: LinearParameters,
        extractor: FeatureExtractor,
        view: GraphView,
        device: torch.device,
        dtype: torch.dtype,
        compile: bool = False,
    ) -> None:
        self.version = view.version
        # Sums over hundreds of addends lose what half precision can hold: only the results are rounded.
        self._dtype, wide = dtype, torch.float64 if dtype == torch.float64 else torch.float32

        def put(array: npt.NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(array).to(device, wide)

        users, items = list(view.users()), list(view.items())
        user_places = _places([user.row for user in users], len(view.user_degrees))
        item_places = _places([item.row for item in items], len(view.item_degrees))
        edges = view.edges()
        weights = parameters.edge_weights(edges.values)
        rows, columns = user_places[edges.user_rows], item_places[edges.item_rows]
        kept = (weights > 0) & (rows >= 0) & (columns >= 0)
        rows, columns, weights = rows[kept], columns[kept], weights[kept].astype(np.float64)
        d_u = np.bincount(rows, weights, len(users))
        d_i = np.bincount(columns, weights, len(items))
        safe_u, safe_i = np.where(d_u > 0, d_u, 1.0), np.where(d_i > 0, d_i, 1.0)
        p = parameters.degree_exponent
        by_item = np.lexsort((rows, columns))
        by_user = np.lexsort((columns, rows))
        # The norms are folded into the entries, so that a pass is products and nothing else.
        mean = weights / safe_u[rows]
        back = weights * safe_u[rows] ** -(1 - p) * safe_i[columns] ** -p
        shape = (len(users), len(items))
        self._to_users = _csr(rows[by_user], columns[by_user], mean[by_user], shape).to(device, wide)
        self._to_items = _csr(columns[by_item], rows[by_item], back[by_item], shape[::-1]).to(device, wide)
        q, y, _ = item_tables(parameters, extractor, items, vectors=text_vectors_of(view, extractor, items))
        w = parameters.mix
        self._q = put(q)
        self._source_base, self._target_base = put(w[0] * q + w[2] * y), put(w[3] * y)
        self._w1, self._w4 = float(w[1]), float(w[4])
        self._own = None
        if len(parameters.user_attributes) and any(user.attributes for user in users):
            own = np.asarray(extractor.user_features(users) @ parameters.user_attributes, np.float32)
            self._own = put(own)
        self._pass = torch.compile(self._propagate) if compile else self._propagate

    def __call__(self) -> tuple[Tensor, Tensor]:
        users, items = self._pass()
        return users.to(self._dtype), items.to(self._dtype)

    def _propagate(self) -> tuple[Tensor, Tensor]:
        i1 = self._to_items @ (self._to_users @ self._q)
        users = self._to_users @ torch.add(self._source_base, i1, alpha=self._w1)
        if self._own is not None:
            users = users + self._own
        return users, torch.add(self._target_base, i1, alpha=self._w4)


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
