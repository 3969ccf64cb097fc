"""What an item is to the encoder before any rating: the id table and its features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graph.schema import Item
from models.graph_encoder.features import FeatureExtractor
from models.graph_encoder.parameters import LinearParameters

Float32: TypeAlias = npt.NDArray[np.float32]


def item_tables(
    parameters: LinearParameters,
    extractor: FeatureExtractor,
    items: Sequence[Item],
    id_rows: Mapping[str, int] | None = None,
) -> tuple[Float32, Float32, Float32]:
    """Tables q [n, D], y [n, D] and bias [n] of items, in order; what does not depend on any rating.

    `id_rows` is the id table as a mapping, for callers who ask often.
    """
    if id_rows is None:
        id_rows = {item_id: n for n, item_id in enumerate(parameters.item_ids)}
    features = extractor.item_features(items)
    q = np.asarray(features @ parameters.feature_source, np.float32)
    y = np.asarray(features @ parameters.feature_target, np.float32)
    bias = np.asarray(features @ parameters.feature_bias, np.float32)
    known = np.array([id_rows.get(item.item_id, -1) for item in items], np.int64)
    here, there = np.flatnonzero(known >= 0), known[known >= 0]
    q[here] += parameters.id_source[there]
    y[here] += parameters.id_target[there]
    bias[here] += parameters.id_bias[there]
    return q, y, bias
