"""What a memory is to the `sage` encoder: its text, the items and the memories it is related to.

Only read by vectors of memories and of their owner; see `sage_parameters.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from graph.schema import Item, Memory
from graph.view import GraphView
from models.graph_encoder.features import FeatureExtractor
from models.graph_encoder.item_features import ItemFeatures
from models.graph_encoder.sage_parameters import SageParameters

Float32: TypeAlias = npt.NDArray[np.float32]
Int64: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class MemoryInputs:
    """Three inputs of each of M memories, float32 [M, D], in the space of the items' x."""

    own: Float32
    """Of its text; zero without one that the features know."""
    items: Float32
    """Mean of x over related items; zero without any."""
    memories: Float32
    """Mean of x over related memories of the same owner; zero without any."""


class MemoryTexts:
    """x of memories from their texts alone, kept as long as a memory and its vector stay what they are.

    A user's vector reads all of the user's memories: hashing their words again for each request would take a
    tenth of a millisecond for every one.
    """

    def __init__(
        self, parameters: SageParameters, extractor: FeatureExtractor, max_kept: int = 65_536
    ) -> None:
        self._parameters, self._extractor, self._max_kept = parameters, extractor, max_kept
        self._kept: dict[int, tuple[int, bytes | None, Float32]] = {}  # by row: version, text vector

    def x(self, view: GraphView, memories: Sequence[Memory]) -> Float32:
        """float32 [n, D], in order."""
        model = self._extractor.text_model
        table = None if model is None else view.text_vectors("memory", model)
        found = np.empty((len(memories), self._parameters.dim), np.float32)
        missing: list[tuple[int, Memory, bytes | None]] = []
        for place, memory in enumerate(memories):
            vector = None if table is None else table.raw(memory.row)
            kept = self._kept.get(memory.row)
            if kept is not None and kept[:2] == (memory.version, vector):
                found[place] = kept[2]
            else:
                missing.append((place, memory, vector))
        if not missing:
            return found
        fresh = _features(self._extractor, view, [memory for _, memory, _ in missing])
        places = [place for place, _, _ in missing]
        found[places] = fresh @ self._parameters.feature_source
        for place, memory, vector in missing:
            self._kept[memory.row] = memory.version, vector, found[place].copy()
        while len(self._kept) > self._max_kept:
            del self._kept[next(iter(self._kept))]
        return found


def memory_inputs(
    texts: MemoryTexts, view: GraphView, memories: Sequence[Memory], items_x: Callable[[Int64], Float32]
) -> MemoryInputs:
    """Inputs of live memories, in order; `items_x` gives x [n, D] of item rows [n]."""
    places = {memory.row: n for n, memory in enumerate(memories)}
    known = list(memories)  # and, behind them, those they are related to
    to_items: list[tuple[int, int]] = []
    to_memories: list[tuple[int, int]] = []
    for place, memory in enumerate(memories):
        for relation in view.relations_of(memory.row):
            if relation.target_kind == "item":
                if view.item_at(relation.target_row) is not None:
                    to_items.append((place, relation.target_row))
                continue
            target = view.memory_at(relation.target_row)
            # The writer keeps relations within one owner; another's text must not come in by any way.
            if target is None or target.user_row != memory.user_row:
                continue
            if target.row not in places:
                places[target.row] = len(known)
                known.append(target)
            to_memories.append((place, places[target.row]))
    x = texts.x(view, known)
    rows, columns = np.unique([item for _, item in to_items], return_inverse=True)
    edges = [(place, column) for (place, _), column in zip(to_items, columns.tolist(), strict=True)]
    count = len(memories)
    return MemoryInputs(
        x[:count],
        _means(count, edges, items_x(rows.astype(np.int64))),
        _means(count, to_memories, x),
    )


def memory_vectors(parameters: SageParameters, inputs: MemoryInputs) -> Float32:
    """memory_m, float32 [M, D]; whatever has no input has what the biases make of nothing."""
    p = parameters
    joined = inputs.own @ p.memory_root + inputs.items @ p.memory_items + inputs.memories @ p.memory_memories
    hidden = np.maximum(joined @ p.item_root + p.item_bias, np.float32(0))
    vectors: Float32 = joined @ p.source_root + hidden @ p.source_hidden
    return vectors


def _features(extractor: FeatureExtractor, view: GraphView, memories: Sequence[Memory]) -> ItemFeatures:
    """Feature rows [n, F] of memories: those of an item that has a text and nothing else."""
    # Words of titles and of texts have columns of their own where words are the features: a memory has both.
    texts = [Item(m.row, m.memory_id, m.text, (), None, m.text, m.version) for m in memories]
    vectors = None
    if extractor.text_model is not None:
        table = view.text_vectors("memory", extractor.text_model)
        if len(table):
            vectors = table.get(np.array([m.row for m in memories], np.int64))[0]
    return extractor.item_features(texts, vectors)


def _means(count: int, edges: Sequence[tuple[int, int]], x: Float32) -> Float32:
    """Means [count, D] over edges (place, row of x), zero without any."""
    if not edges:
        return np.zeros((count, x.shape[1]), np.float32)
    places, rows = np.array(edges, np.int64).T
    matrix = sp.csr_matrix((np.ones(len(edges), np.float32), (places, rows)), shape=(count, len(x)))
    degrees = np.bincount(places, minlength=count).astype(np.float32)
    return np.asarray((matrix @ x) / np.maximum(degrees, np.float32(1))[:, None], np.float32)
