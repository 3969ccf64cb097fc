"""Fitting what of the `sage` encoder is private to its users: attributes and memories.

It comes after everything that ratings and items make, which no longer moves: so no vector that is shared
holds anything that was learned from a private text, in inference as in training. What is learned are a few
matrices for all users: how a memory is made of its text and its relations, and what it weighs beside ratings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graph.schema import Item, User
from graph.view import GraphView
from models.graph_encoder.feature_tokens import FeatureMatrix
from models.graph_encoder.features import FeatureExtractor
from models.graph_encoder.fitting import (
    MAX_LOGITS,
    MAX_SOFTMAX_ITEMS,
    NUM_NEGATIVES,
    RAREST_ATTRIBUTE,
    FitConfig,
    hidden_loss,
    user_weights_of,
)
from models.graph_encoder.item_tables import item_tables, text_vectors_of
from models.graph_encoder.memory_inputs import MemoryInputs, MemoryTexts, memory_inputs
from models.graph_encoder.network import EdgeList, FeatureRows, as_array
from models.graph_encoder.sage_network import SageEncoderNetwork
from models.graph_encoder.sage_parameters import SageParameters

Float32: TypeAlias = npt.NDArray[np.float32]
Int64: TypeAlias = npt.NDArray[np.int64]

STEPS = 120
LEAST_OWNERS = 20
"""Users with memories and ratings below which how memories work is left as it is untrained."""

_LEARNING_RATE = 0.01
_NEW_USERS = 0.3
"""Share of the users whose ratings each step hides: what is private must be able to stand alone."""
_MEMORY_DROPOUT = 0.2
_TO_UNTRAINED = 0.01
"""Penalty per squared difference to the untrained matrices."""
_MATRICES = ("memory_root", "memory_items", "memory_memories", "memory_gate")


@dataclass(frozen=True, slots=True, eq=False)
class Memories:
    """Live memories of the users that take part in training."""

    owners: Int64
    """[M], places among the users."""
    inputs: MemoryInputs


def memories_of(
    parameters: SageParameters, extractor: FeatureExtractor, view: GraphView, users: Sequence[User]
) -> Memories:
    """Memories of `users`, who are those of the view, with their inputs by `parameters`."""
    owned = [view.memories_of(user.row) for user in users]

    def items_x(rows: Int64) -> Float32:
        items = [item for row in rows.tolist() if (item := view.item_at(row)) is not None]
        return item_tables(parameters, extractor, items, vectors=text_vectors_of(view, extractor, items))[0]

    memories = [memory for own in owned for memory in own]
    owners = np.repeat(np.arange(len(users)), [len(own) for own in owned]).astype(np.int64)
    texts = MemoryTexts(parameters, extractor, max_kept=0)
    return Memories(owners, memory_inputs(texts, view, memories, items_x))


def fit_private(
    parameters: SageParameters,
    extractor: FeatureExtractor,
    edges: EdgeList,
    items: Sequence[Item],
    users: Sequence[User],
    item_vectors: Float32 | None,
    memories: Memories | None,
    config: FitConfig,
    after_step: Callable[[int], None] = lambda step: None,
) -> tuple[SageParameters, dict[str, object]]:
    """The parameters with what attributes and memories taught, and plain JSON about it.

    Deterministic by `config.seed` on a CPU.

    Args:
        parameters: trained on the ratings; all but the private ones come back unchanged.
        extractor: of their features.
        edges: ratings between `users` and `items`.
        items: the id table, in its order.
        users: all, with their attributes.
        item_vectors: float32 [n, d], text vectors of the items, where the extractor takes any.
        memories: of the users; None for a graph without any.
        config: its seed, user balance and share of hidden edges hold here too.
        after_step: called with the steps taken.
    """
    rated = torch.bincount(edges.user_rows, minlength=edges.num_users).cpu().numpy() > 0
    features = extractor.user_features(users)
    counts = np.zeros(len(users), np.int64)
    if memories is not None:
        counts = np.bincount(memories.owners, minlength=len(users))
    if np.count_nonzero((counts > 0) & rated) < LEAST_OWNERS:
        memories = None
    with_attributes = np.diff(features.indptr) > 0
    found: dict[str, object] = {
        "users_with_attributes": int(with_attributes.sum()),
        "users_with_memories": int(np.count_nonzero(counts)),
        "memories_trained": memories is not None,
    }
    taught = (with_attributes | (counts > 0 if memories is not None else False)) & rated
    if not taught.any():
        return parameters, found
    fitted = _PrivateFit(parameters, edges, features if with_attributes.any() else None, memories)
    x, y, bias = item_tables(parameters, extractor, items, vectors=item_vectors)
    fitted.run((x, y, bias), np.flatnonzero(taught), config, after_step)
    return fitted.result(), found


class _PrivateFit:
    """One run: frozen vectors of users and items, and the part of the users that is trained."""

    def __init__(
        self,
        parameters: SageParameters,
        edges: EdgeList,
        attributes: FeatureMatrix | None,
        memories: Memories | None,
    ) -> None:
        device = edges.weights.device
        self._parameters, self._edges, self._device = parameters, edges, device
        self._network = SageEncoderNetwork.from_parameters(parameters).to(device).requires_grad_(False)
        self._trained: dict[str, torch.nn.Parameter] = {}
        self._attributes: FeatureRows | None = None
        if attributes is not None:
            self._attributes = FeatureRows(attributes, device)
            zeros = torch.zeros(self._attributes.shape[1], parameters.dim, device=device)
            self._trained["user_attributes"] = torch.nn.Parameter(zeros)
        self._memories: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        if memories is not None:
            inputs = memories.inputs
            arrays = (inputs.own, inputs.items, inputs.memories)
            own, related, others = (torch.from_numpy(array).to(device) for array in arrays)
            self._memories = torch.from_numpy(memories.owners).to(device), own, related, others
            for name in _MATRICES:
                untrained = torch.from_numpy(getattr(parameters, name)).to(device)
                self._trained[name] = torch.nn.Parameter(untrained.clone())
        self._untrained = {name: tensor.detach().clone() for name, tensor in self._trained.items()}

    def run(
        self,
        tables: tuple[Float32, Float32, Float32],
        taught: Int64,
        config: FitConfig,
        after_step: Callable[[int], None],
    ) -> None:
        edges, device = self._edges, self._device
        x, y, bias = (torch.from_numpy(np.asarray(table, np.float32)).to(device) for table in tables)
        generator = torch.Generator().manual_seed(config.seed)
        optimizer = torch.optim.Adam(self._trained.values(), lr=_LEARNING_RATE)
        weights = user_weights_of(edges, config.user_balance)
        share = torch.zeros(edges.num_items, device=device)
        share.index_add_(0, edges.item_rows, weights[edges.user_rows])
        batches = self._batches(taught, generator)
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = _LEARNING_RATE * (1 - (1 - config.final_rate) * step / STEPS)
            visible = (torch.rand(len(edges), generator=generator) >= config.hidden).to(device)
            known = (torch.rand(edges.num_users, generator=generator) >= _NEW_USERS).to(device)
            visible &= known[edges.user_rows]
            users, items = self._network.propagate(edges.matrices(visible), x, y)
            users = users + self._private(generator)
            loss = hidden_loss(edges, users, items, bias, visible, next(batches), weights, share, generator)
            if loss is not None:
                optimizer.zero_grad()
                (loss + self._penalty(config.l2)).backward()
                optimizer.step()
            after_step(step + 1)

    def result(self) -> SageParameters:
        learned = {name: as_array(tensor) for name, tensor in self._trained.items()}
        return replace(self._parameters, **learned)  # type: ignore[arg-type]

    def _private(self, generator: torch.Generator) -> Tensor:
        """What users have besides ratings, [U, D], some memories left out."""
        p, trained = self._network, self._trained
        shape = self._edges.num_users, p.dim
        total = torch.zeros(shape, device=self._device)
        if self._attributes is not None:
            total = total + self._attributes @ trained["user_attributes"]
        if self._memories is not None:
            owners, own, items, memories = self._memories
            kept = torch.rand(len(owners), generator=generator) >= _MEMORY_DROPOUT
            kept = kept.to(self._device)
            owners = owners[kept]
            joined = own[kept] @ trained["memory_root"] + items[kept] @ trained["memory_items"]
            joined = joined + memories[kept] @ trained["memory_memories"]
            assert p.to_items.root is not None
            hidden = (joined @ p.to_items.root + p.to_items.bias).relu()
            vectors = joined @ p.source_root + hidden @ p.source_hidden
            counts = torch.bincount(owners, minlength=len(total)).clamp(min=1).unsqueeze(1)
            sums = torch.zeros(shape, device=self._device).index_add(0, owners, vectors)
            total = total + sums / counts @ trained["memory_gate"]
        return total

    def _penalty(self, l2: float) -> Tensor:
        total = torch.zeros((), device=self._device)
        for name, tensor in self._trained.items():
            squares = (tensor - self._untrained[name]).square()
            if self._attributes is not None and name == "user_attributes":
                # What one user alone has is an ID in disguise: it pays as if more had it.
                rarity = self._attributes.mean_squares().clamp(min=RAREST_ATTRIBUTE)
                total = total + l2 * (squares.sum(1) @ rarity)
            else:
                total = total + _TO_UNTRAINED * squares.sum()
        return total

    def _batches(self, taught: Int64, generator: torch.Generator) -> Iterator[Tensor]:
        """Of those who have something to learn from, as many as scores fit in memory."""
        num_items = self._edges.num_items
        columns = num_items if num_items <= MAX_SOFTMAX_ITEMS else NUM_NEGATIVES
        size = max(1, MAX_LOGITS // columns)
        while True:
            order = torch.randperm(len(taught), generator=generator).numpy()
            for first in range(0, len(order), size):
                yield torch.from_numpy(taught[order[first : first + size]]).to(self._device)
