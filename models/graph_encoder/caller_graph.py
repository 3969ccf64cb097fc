"""Graphs that live outside Weft's store, as a `GraphView`: arrays, or a torch-geometric HeteroData."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graph.errors import InvalidInput
from graph.schema import RATING_DTYPE, RATING_HIGH, ChangeSet, Item, User
from graph.view import GraphView

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData


def view_from_arrays(
    users: Sequence[str | User],
    items: Sequence[str | Item],
    edge_index: npt.ArrayLike,
    values: npt.ArrayLike | None = None,
) -> GraphView:
    """A view of a graph of the caller's.

    Args:
        users: ids, or records where attributes matter; their order gives the rows.
        items: ids, or records where tags, year, title and text matter.
        edge_index: integers [2, e], user places over item places; of repeated pairs the last counts.
        values: ratings [e]; without them every edge counts as liked best.

    Raises:
        InvalidInput: ids repeat, or an array has the wrong shape, an index out of range or NaN.
    """
    edges = np.asarray(edge_index)
    if edges.ndim != 2 or edges.shape[0] != 2 or (edges.size and not np.issubdtype(edges.dtype, np.integer)):
        raise InvalidInput(f"edge_index is {edges.dtype}{list(edges.shape)}: expected integers [2, e]")
    count = edges.shape[1]
    ratings = np.full(count, RATING_HIGH) if values is None else np.asarray(values, np.float64)
    if ratings.shape != (count,) or not np.isfinite(ratings).all():
        raise InvalidInput(f"values must be {count} finite numbers, one per edge")
    for side, nodes, name in ((edges[0], users, "users"), (edges[1], items, "items")):
        if count and not 0 <= side.min() <= side.max() < len(nodes):
            raise InvalidInput(f"edge_index points outside the {len(nodes)} {name}")
    user_records = [
        dataclasses.replace(u, row=n, version=1) if isinstance(u, User) else User(n, u, {}, 1)
        for n, u in enumerate(users)
    ]
    item_records = [
        dataclasses.replace(i, row=n, version=1) if isinstance(i, Item) else Item(n, i, "", (), None, "", 1)
        for n, i in enumerate(items)
    ]
    if len({u.user_id for u in user_records}) != len(users) or len({i.item_id for i in item_records}) != len(
        items
    ):
        raise InvalidInput("ids of users and of items must not repeat")
    keys = edges[0].astype(np.int64) * max(1, len(items)) + edges[1]
    # The first of the reversed array is the last of the original.
    _, kept = np.unique(keys[::-1], return_index=True)
    kept = count - 1 - kept
    records = np.zeros(len(kept), RATING_DTYPE)
    records["user_row"], records["item_row"] = edges[0][kept], edges[1][kept]
    records["value"], records["version"] = ratings[kept], 1
    view = GraphView("caller")
    view.apply(ChangeSet(0, 1, users=user_records, items=item_records, ratings=records))
    return view


def view_from_hetero(data: HeteroData) -> GraphView:
    """A view of a HeteroData with node types `user` and `item` and one edge type from `user` to `item`.

    Ids are the nodes' `ids` where given, else their places as text; ratings are the edges' `value`, `rating`
    or `edge_attr`. Raises InvalidInput for anything else.
    """
    types = [kind for kind in data.edge_types if (kind[0], kind[2]) == ("user", "item")]
    if len(types) != 1:
        raise InvalidInput(f"the graph needs one edge type from 'user' to 'item', it has {len(types)}")
    edges = data[types[0]]
    values = next((edges[name] for name in ("value", "rating", "edge_attr") if name in edges), None)
    return view_from_arrays(
        _ids(data["user"]),
        _ids(data["item"]),
        edges.edge_index.cpu().numpy(),
        None if values is None else values.cpu().numpy().reshape(-1),
    )


def _ids(nodes: Any) -> Sequence[str]:
    if "ids" in nodes:
        return [str(i) for i in nodes["ids"]]
    count = nodes.num_nodes
    if count is None:
        raise InvalidInput("nodes of a HeteroData need `num_nodes`, features or `ids`")
    return [str(n) for n in range(count)]
