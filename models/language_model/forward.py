"""One forward pass of the model over rows of the batch."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Any

import torch
from torch import Tensor

from models.language_model.batch import Batch, Sequence
from models.language_model.kv_cache import KVCache, StepPlan


class Forward:
    """transformers' own forward, with our cache, explicit positions and a 4D mask.

    The mask is additive in the model's own type: 0 where a token may look, -inf elsewhere. A boolean one
    would be converted anew in each layer.
    """

    def __init__(self, model: Any, cache: KVCache, device: torch.device, dtype: torch.dtype) -> None:
        self._model, self._cache, self._device = model, cache, device
        self._dtype = dtype
        self._places = torch.arange(cache.max_tokens, device=device)
        self._rows = torch.arange(cache.max_rows, device=device)

    def decode(self, rows: Rows[Sequence]) -> Tensor:
        """Logits [n, V] after the last token of rows [0, n), which must be the batch's first."""
        lengths = [row.length for row in rows]
        end = max(lengths) + 1
        # One copy to the device for both.
        packed = torch.tensor([[row.tokens[-1] for row in rows], lengths]).to(self._device, non_blocking=True)
        return self.decode_at(packed[0], packed[1], end)

    def decode_at(self, ids: Tensor, positions: Tensor, end: int) -> Tensor:
        """Logits [n, V] after tokens `ids` [n] at `positions` [n] of rows [0, n), which see [0, end) at most.

        Shapes alone decide what is computed here, so that it can be captured once and repeated.
        """
        n = ids.shape[0]
        self._cache.plan = StepPlan(slice(0, n), end, self._rows[:n], positions, None, n)
        mask = self._mask(positions.unsqueeze(1), end)
        return self._head(self._decoder(ids.unsqueeze(1), positions.unsqueeze(1), mask)).squeeze(1)

    def prefill(self, batch: Batch, group: Rows[Sequence], width: int) -> Tensor | None:
        """Read up to `width` further tokens of each of the group.

        Returns logits [n, V] after each one's last token read in this pass; None if none of them is at its
        end, as then nobody needs them.
        """
        counts = [min(row.pending, width) for row in group]
        where = [batch.rows.index(row) for row in group]
        ids = torch.zeros(len(group), width, dtype=torch.long)
        for i, (row, count) in enumerate(zip(group, counts, strict=True)):
            ids[i, :count] = torch.tensor(row.tokens[row.length : row.length + count])
        starts = torch.tensor([row.length for row in group])
        positions = starts.unsqueeze(1) + torch.arange(width)
        real = torch.arange(width) < torch.tensor(counts).unsqueeze(1)
        which, place = (t.to(self._device) for t in real.nonzero(as_tuple=True))
        end = max(row.length + count for row, count in zip(group, counts, strict=True))
        rows = torch.tensor(where, device=self._device)
        positions = positions.to(self._device)
        neighbours = where == list(range(where[0], where[0] + len(where)))
        self._cache.plan = StepPlan(
            slice(where[0], where[0] + len(where)) if neighbours else rows,
            end,
            rows[which],
            positions[which, place],
            (which, place),
            max(where) + 1,
        )
        # Padding comes after a row's tokens: they do not see it, and what it sees does not matter.
        hidden = self._decoder(ids.to(self._device), positions, self._mask(positions, end))
        if not any(row.pending == count for row, count in zip(group, counts, strict=True)):
            return None
        last = torch.tensor(counts, device=self._device) - 1
        return self._head(hidden[self._rows[: len(group)], last].unsqueeze(1)).squeeze(1)

    def _mask(self, positions: Tensor, end: int) -> Tensor:
        """Additive, [n, 1, q, end], for tokens at `positions` [n, q]."""
        hidden = self._places[:end] > positions.unsqueeze(-1)
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
        return mask.masked_fill_(hidden, -torch.inf).unsqueeze(1)

    def _decoder(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        hidden: Tensor = self._model.get_decoder()(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def _head(self, hidden: Tensor) -> Tensor:
        # Looked up each time: an adapter may have wrapped it meanwhile.
        logits: Tensor = self._model.get_output_embeddings()(hidden)
        return logits
