"""Tables with a row per item: room that grows, features of items, and which version changed a row last."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from graph.schema import Item
from graph.view import GraphView
from models.graph_encoder.features import FeatureExtractor
from models.graph_encoder.item_tables import item_tables, text_vectors_of
from models.graph_encoder.numerics import grown
from models.graph_encoder.parameters import EncoderParameters

Float32: TypeAlias = npt.NDArray[np.float32]
Float64: TypeAlias = npt.NDArray[np.float64]
Int64: TypeAlias = npt.NDArray[np.int64]

_GROWTH = 1.25
_FEATURE_CHUNK = 10_000


class ItemRows(ABC):
    """Source, target, bias and degree by item row; what `EncoderState` says of items."""

    _FEATURE_TABLES: ClassVar[tuple[str, ...]]
    """Names of the tables [rows, D] that `_put_tables` fills, zero in rows without a live item."""

    _TABLES = ("_q", "_source", "_target", "_bias", "_sums", "_degree", "_scale", "_liked", "_changed")

    def __init__(self, parameters: EncoderParameters, extractor: FeatureExtractor, view: GraphView) -> None:
        """Rows for every item of the view, with their features and no ratings yet."""
        self.parameters, self.extractor, self.version = parameters, extractor, view.version
        self._view = view
        self._id_rows = {item_id: n for n, item_id in enumerate(parameters.item_ids)}
        self._rows, dim = 0, parameters.dim
        self._q = np.zeros((0, dim), np.float32)
        self._source, self._target = self._q, self._q
        for name in self._FEATURE_TABLES:
            setattr(self, name, self._q)
        self._bias = np.zeros(0, np.float32)
        self._sums = np.zeros((0, dim), np.float64)
        self._degree = np.zeros(0, np.float64)
        self._scale = np.zeros(0, np.float64)
        self._liked = np.zeros(0, np.int32)  # number of edges with a positive weight
        self._changed = np.zeros(0, np.int64)
        self._ensure_rows(len(view.item_degrees))
        self._write_features(list(view.items()))

    @abstractmethod
    def _put_tables(self, rows: Int64, q: Float32, y: Float32) -> None:
        """Keep what is derived from the item tables q and y alone, in `_FEATURE_TABLES`."""

    @property
    def num_item_rows(self) -> int:
        return self._rows

    @property
    def source(self) -> Float32:
        """z, float32 [rows, D]; zero in rows without a live item."""
        return self._source[: self._rows]

    @property
    def target(self) -> Float32:
        """Item vectors, float32 [rows, D], not normalised; `score = user @ target + bias`."""
        return self._target[: self._rows]

    @property
    def bias(self) -> Float32:
        """float32 [rows]."""
        return self._bias[: self._rows]

    @property
    def degree(self) -> Float64:
        """Weighted degree d_i, float64 [rows]; exactly zero where no edge weighs anything."""
        return self._degree[: self._rows]

    @property
    def changed_version(self) -> Int64:
        """Version that last changed a row's source, target or bias, int64 [rows]."""
        return self._changed[: self._rows]

    def changed_since(self, version: int) -> Int64:
        """Rows whose vectors changed after `version`, ascending. O(rows)."""
        return np.flatnonzero(self.changed_version > version)

    @property
    def nbytes(self) -> int:
        """Bytes held by the item tables, slack included."""
        tables: list[int] = [getattr(self, name).nbytes for name in self._tables()]
        return sum(tables)

    def _write_features(self, items: Sequence[Item]) -> None:
        """Fill q, what is derived from the item tables alone, and the bias of live items."""
        for first in range(0, len(items), _FEATURE_CHUNK):
            chunk = items[first : first + _FEATURE_CHUNK]
            rows = np.array([item.row for item in chunk], np.int64)
            vectors = text_vectors_of(self._view, self.extractor, chunk)
            q, y, bias = item_tables(self.parameters, self.extractor, chunk, self._id_rows, vectors)
            self._q[rows], self._bias[rows] = q, bias
            self._put_tables(rows, q, y)

    def _ensure_rows(self, count: int) -> None:
        if count > len(self._q):
            size = max(count, int(len(self._q) * _GROWTH) + 16)
            for name in self._tables():
                setattr(self, name, grown(getattr(self, name), self._rows, size))
        # New rows of deleted or unknown items still are rows that changed: a follower must learn of them.
        self._changed[self._rows : count] = self.version
        self._rows = max(self._rows, count)

    def _tables(self) -> tuple[str, ...]:
        return self._TABLES + self._FEATURE_TABLES
