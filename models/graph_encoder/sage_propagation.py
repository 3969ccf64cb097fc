"""The full encode of the `sage` encoder."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from graph.view import GraphView
from models.graph_encoder.features import FeatureExtractor
from models.graph_encoder.memory_inputs import MemoryTexts, memory_inputs, memory_vectors
from models.graph_encoder.parameters import EncoderParameters, LinearParameters
from models.graph_encoder.propagation import LinearPropagation, Propagation
from models.graph_encoder.sage_parameters import SageParameters


class SagePropagation(Propagation):
    """The equations of `sage_parameters.py`."""

    def __init__(
        self,
        parameters: SageParameters,
        extractor: FeatureExtractor,
        view: GraphView,
        device: torch.device,
        dtype: torch.dtype,
        compile: bool = False,
    ) -> None:
        super().__init__(parameters, extractor, view, device, dtype, compile, 1.0)
        p = parameters
        self._user_neighbours, self._user_bias = self.put(p.user_neighbours), self.put(p.user_bias)
        self._user_root, self._item_neighbours = self.put(p.user_root), self.put(p.item_neighbours)
        self._source_hidden, self._target_hidden = self.put(p.source_hidden), self.put(p.target_hidden)
        self._hidden_base = self._q @ self.put(p.item_root) + self.put(p.item_bias)
        self._source_base = self._q @ self.put(p.source_root)
        memories = self._of_memories(p, extractor, view)
        if memories is not None:
            self._own = memories if self._own is None else self._own + memories

    def propagate(self) -> tuple[Tensor, Tensor]:
        u1 = (self._to_users @ self._q @ self._user_neighbours + self._user_bias).relu()
        hidden = (self._to_items @ u1 @ self._item_neighbours + self._hidden_base).relu()
        users = self._to_users @ (self._source_base + hidden @ self._source_hidden) + u1 @ self._user_root
        return users, self._y + hidden @ self._target_hidden

    def _of_memories(
        self, parameters: SageParameters, extractor: FeatureExtractor, view: GraphView
    ) -> Tensor | None:
        """What users have of their memories, [U, D]; None in a graph without any."""
        place = {user.row: n for n, user in enumerate(view.users())}
        memories = [memory for memory in view.memories() if memory.user_row in place]
        if not memories:
            return None
        places = np.full(view.num_item_rows, -1, np.int64)
        rows = [item.row for item in view.items()]
        places[rows] = np.arange(len(rows))
        q = self._q.cpu().to(torch.float32).numpy()
        texts = MemoryTexts(parameters, extractor, max_kept=0)
        inputs = memory_inputs(texts, view, memories, lambda found: q[places[found]])
        owners = torch.tensor([place[memory.user_row] for memory in memories], device=self._device)
        vectors = self.put(memory_vectors(parameters, inputs))
        shape = len(place), parameters.dim
        sums = torch.zeros(shape, dtype=self._wide, device=self._device).index_add_(0, owners, vectors)
        counts = torch.bincount(owners, minlength=len(place)).clamp(min=1).unsqueeze(1)
        return (sums / counts) @ self.put(parameters.memory_gate)


def build_propagation(
    parameters: EncoderParameters,
    extractor: FeatureExtractor,
    view: GraphView,
    device: torch.device,
    dtype: torch.dtype,
    compile: bool,
) -> Propagation:
    """The full encode of an encoder of any kind."""
    if isinstance(parameters, SageParameters):
        return SagePropagation(parameters, extractor, view, device, dtype, compile)
    assert isinstance(parameters, LinearParameters)
    return LinearPropagation(parameters, extractor, view, device, dtype, compile)
