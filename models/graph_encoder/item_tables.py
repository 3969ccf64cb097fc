"""What an item is to the encoder before any rating: the id table and its features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graph.delta import Delta
from graph.schema import Item
from graph.view import GraphView
from models.graph_encoder.features import FeatureExtractor
from models.graph_encoder.parameters import EncoderParameters

Float32: TypeAlias = npt.NDArray[np.float32]


def item_tables(
    parameters: EncoderParameters,
    extractor: FeatureExtractor,
    items: Sequence[Item],
    id_rows: Mapping[str, int] | None = None,
    vectors: Float32 | None = None,
) -> tuple[Float32, Float32, Float32]:
    """Tables q [n, D], y [n, D] and bias [n] of items, in order; what does not depend on any rating.

    `id_rows` is the id table as a mapping, for callers who ask often; `vectors` are the items' text vectors,
    as `FeatureExtractor.item_features` takes them.
    """
    if id_rows is None:
        id_rows = {item_id: n for n, item_id in enumerate(parameters.item_ids)}
    features = extractor.item_features(items, vectors)
    q = features @ parameters.feature_source
    y = features @ parameters.feature_target
    bias = features @ parameters.feature_bias
    known = np.array([id_rows.get(item.item_id, -1) for item in items], np.int64)
    here, there = np.flatnonzero(known >= 0), known[known >= 0]
    q[here] += parameters.id_source[there]
    y[here] += parameters.id_target[there]
    bias[here] += parameters.id_bias[there]
    return q, y, bias


def text_vectors_of(view: GraphView, extractor: FeatureExtractor, items: Sequence[Item]) -> Float32 | None:
    """Text vectors [n, d] of items by the extractor's model, zeros where there is none; None: it takes none.

    Also None while the view has no vector of that model at all: then nobody knows d.
    """
    if extractor.text_model is None:
        return None
    table = view.text_vectors("item", extractor.text_model)
    return table.get(np.array([item.row for item in items], np.int64))[0] if len(table) else None


def changed_items(delta: Delta, view: GraphView, extractor: FeatureExtractor) -> list[Item]:
    """Items whose features a delta may have changed, each once; those removed come as their tombstones.

    `view` is at the delta's end. Vectors of other text models than the extractor's change nothing.
    """
    items = {after.row: after for _, after in delta.items}
    for vector in delta.text_vectors:
        if vector.kind == "item" and vector.model == extractor.text_model:
            item = view.item_at(vector.row)
            # Of an item that is gone a vector says nothing.
            if item is not None:
                items.setdefault(item.row, item)
    return list(items.values())
