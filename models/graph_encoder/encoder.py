"""The structural encoder for use without Ray: load, attach a graph, ask for vectors.

encoder = StructuralEncoder.load(path, device="cuda").attach(view)
users, items = encoder.encode_all()
vector = encoder.encode_single("some item", kind="item")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from graph.delta import Delta
from graph.errors import InvalidInput, UnknownItem, UnknownMemory
from graph.schema import Item, Memory, User
from graph.view import GraphView
from models.graph_encoder.caller_graph import view_from_hetero
from models.graph_encoder.checkpoint import load_checkpoint
from models.graph_encoder.embedding_lru import EmbeddingLru
from models.graph_encoder.features import extractor_from_config
from models.graph_encoder.parameters import EncoderParameters
from models.graph_encoder.propagation import Propagation
from models.graph_encoder.sage_propagation import build_propagation
from models.graph_encoder.state import EncoderState, build_state

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData

NodeKind: TypeAlias = Literal["item", "user", "memory"]

_ARTICLES: dict[NodeKind, str] = {"item": "an", "user": "a", "memory": "a"}


@dataclass(frozen=True, slots=True)
class EncoderStatistics:
    """Counts since the encoder was made; sizes as they are now."""

    hits: int
    """Vectors answered from the cache."""
    misses: int
    """Vectors asked for by id and computed."""
    encodes: int
    """Full encodes."""
    cached_entries: int
    cached_bytes: int
    state_bytes: int
    """Item tables of the incremental state; 0 until a vector was asked for by id."""


class StructuralEncoder:
    """Vectors of the nodes of one graph, by an encoder of any kind; of memories by `sage` alone.

    Item vectors are `target` without the bias, user vectors the vectors that score them, and a memory's
    vector scores items by how near they are to it. See `parameters.py` and `sage_parameters.py`.
    All answers are those of the attached graph as it is: a cached vector counts only while no write moved it.
    Not thread-safe.

    Args:
        parameters: the trained encoder.
        device: where full encodes run and all results lie.
        dtype: of the results. Sums are taken in float64 if this is float64, else in float32.
        compile: pass the full encode through torch.compile.
        cache_embeddings: keep vectors asked for by id.
        max_entries: vectors kept at most.
        max_age_s: seconds a vector is kept at most; None for as long as it is right.
        clock: monotonic seconds, for tests.
    """

    def __init__(
        self,
        parameters: EncoderParameters,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
        *,
        cache_embeddings: bool = True,
        max_entries: int = 100_000,
        max_age_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not dtype.is_floating_point:
            raise InvalidInput(f"dtype is {dtype}: vectors need a floating-point type")
        self.parameters, self.device, self.dtype = parameters, torch.device(device), dtype
        self._extractor = extractor_from_config(parameters.features)
        self._compile = compile
        self._cache = EmbeddingLru(max_entries if cache_embeddings else 0, max_age_s, clock)
        self._hits = self._misses = self._encodes = 0
        self._view: GraphView | None = None
        self._state: EncoderState | None = None
        self._propagation: Propagation | None = None

    @classmethod
    def load(
        cls,
        path: Path | str,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
        *,
        graph: GraphView | HeteroData | None = None,
        cache_embeddings: bool = True,
        max_entries: int = 100_000,
        max_age_s: float | None = None,
    ) -> StructuralEncoder:
        """The encoder saved at `path` by `save_checkpoint`; raises Corrupt or InvalidInput."""
        encoder = cls(
            load_checkpoint(Path(path)).parameters,
            device,
            dtype,
            compile,
            cache_embeddings=cache_embeddings,
            max_entries=max_entries,
            max_age_s=max_age_s,
        )
        return encoder if graph is None else encoder.attach(graph)

    def attach(self, graph: GraphView | HeteroData) -> StructuralEncoder:
        """Encode this graph from now on. A HeteroData is copied; a view is followed."""
        self._view = graph if isinstance(graph, GraphView) else view_from_hetero(graph)
        self.invalidate()
        return self

    @property
    def view(self) -> GraphView:
        """The attached graph; raises InvalidInput when there is none."""
        if self._view is None:
            raise InvalidInput("the encoder has no graph: call attach(view) first")
        return self._view

    @property
    def user_ids(self) -> list[str]:
        """Ids of the users that `encode_all` returns, in its order."""
        return [user.user_id for user in self.view.users()]

    @property
    def item_ids(self) -> list[str]:
        return [item.item_id for item in self.view.items()]

    @torch.inference_mode()
    def encode_all(self) -> tuple[Tensor, Tensor]:
        """Users [U, D] and items [n, D] by full propagation, in the order of `user_ids` and `item_ids`.

        The graph's matrices stay on the device until the graph changes; then they are built again first.
        """
        view = self.view
        if self._propagation is None or self._propagation.version != view.version:
            self._propagation = build_propagation(
                self.parameters, self._extractor, view, self.device, self.dtype, self._compile
            )
        self._encodes += 1
        return self._propagation()

    def encode_single(self, node_id: str, kind: NodeKind | None = None) -> Tensor:
        """The vector [D] of one node; see `encode_by_id`."""
        return self.encode_by_id([node_id], kind)[0]

    @torch.inference_mode()
    def encode_by_id(self, ids: Sequence[str], kind: NodeKind | None = None) -> Tensor:
        """Vectors [n, D] of nodes, in order; O(ratings and memories of the users asked for).

        Without `kind` an id may be an item's, a user's or a memory's. Raises UnknownItem, UnknownUser or
        UnknownMemory, and InvalidInput for an id of several kinds, or a memory's where the encoder has no
        vectors of memories.
        """
        state = self._current_state()
        nodes = [self._find(node_id, kind) for node_id in ids]
        found: dict[tuple[NodeKind, int], Tensor] = {}
        missing: dict[NodeKind, list[int]] = {"item": [], "user": [], "memory": []}
        for node in dict.fromkeys(nodes):
            # A user's vector reads every item the user rated, a memory's what it is related to: any write
            # may have moved one of them.
            oldest = int(state.changed_version[node[1]]) if node[0] == "item" else state.version
            vector = self._cache.get(node, oldest)
            if vector is None:
                missing[node[0]].append(node[1])
            else:
                found[node] = vector
        self._hits += len(found)
        self._misses += sum(map(len, missing.values()))
        if items := missing["item"]:
            self._remember(found, "item", items, state.target[items])
        if users := missing["user"]:
            self._remember(found, "user", users, state.user_vectors(users))
        if memories := missing["memory"]:
            self._remember(found, "memory", memories, state.memory_vectors(memories))
        if not nodes:
            return torch.empty(0, self.parameters.dim, dtype=self.dtype, device=self.device)
        return torch.stack([found[node] for node in nodes])

    def apply(self, delta: Delta) -> None:
        """Follow one `GraphView.apply` of the attached view, in time proportional to what it touched.

        Calling this is never needed for right answers: a view that moved on by itself costs a rebuild.
        """
        if self._state is not None and self._state.version == delta.from_version:
            self._state.apply(delta, self.view)

    def invalidate(self, ids: Sequence[str] | None = None) -> None:
        """Forget cached vectors: those of `ids`, as nodes of any kind, or all and everything derived."""
        if ids is None:
            self._cache.clear()
            self._state = self._propagation = None
            return
        for node_id in ids:
            for node in self._nodes(node_id).items():
                self._cache.discard(node)

    def statistics(self) -> EncoderStatistics:
        return EncoderStatistics(
            self._hits,
            self._misses,
            self._encodes,
            len(self._cache),
            self._cache.nbytes,
            0 if self._state is None else self._state.nbytes,
        )

    def _current_state(self) -> EncoderState:
        if self._state is None or self._state.version != self.view.version:
            self._state = build_state(self.parameters, self.view)
            self._cache.clear()
        return self._state

    def _nodes(self, node_id: str) -> dict[NodeKind, int]:
        """Rows of the nodes of that id, by kind."""
        view = self.view
        found: dict[NodeKind, Item | User | Memory | None] = {
            "item": view.find_item(node_id),
            "user": view.find_user(node_id),
            "memory": view.find_memory(node_id),
        }
        return {kind: node.row for kind, node in found.items() if node is not None}

    def _find(self, node_id: str, kind: NodeKind | None) -> tuple[NodeKind, int]:
        view = self.view
        if kind == "item":
            return "item", view.item(node_id).row
        if kind == "user":
            return "user", view.user(node_id).row
        found = self._nodes(node_id)
        if kind == "memory":
            if kind not in found:
                raise UnknownMemory(f"no memory {node_id!r} in the attached graph")
            return kind, found[kind]
        if kind is not None:
            raise InvalidInput(f"kind is {kind!r}: allowed are 'item', 'user' and 'memory'", param="kind")
        if not found:
            raise UnknownItem(f"no item, user or memory {node_id!r} in the attached graph")
        if len(found) > 1:
            kinds = " and ".join(f"{_ARTICLES[k]} {k}" for k in found)
            raise InvalidInput(f"{node_id!r} is {kinds}: say which with kind=", param="kind")
        return next(iter(found.items()))

    def _remember(
        self,
        found: dict[tuple[NodeKind, int], Tensor],
        kind: NodeKind,
        rows: list[int],
        vectors: np.ndarray[tuple[int, int], np.dtype[np.float32]],
    ) -> None:
        # Copied row by row: a view into the batch would keep all of it alive and change with the tables.
        batch = torch.tensor(vectors, dtype=self.dtype, device=self.device)
        version = self.view.version
        for row, vector in zip(rows, batch, strict=True):
            found[kind, row] = own = vector.clone()
            self._cache.put((kind, row), own, version)
