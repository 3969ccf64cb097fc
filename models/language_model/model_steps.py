"""Steps of the model over rows of the batch: the rows' adapters are set, the pass runs, tokens are chosen."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING

import torch

from models.language_model.batch import Batch, Sequence
from models.language_model.cuda_graphs import DecodeGraphs
from models.language_model.forward import Forward
from models.language_model.sampling import SampledToken, sample

if TYPE_CHECKING:
    from models.language_model.base_model import BaseModel
    from models.language_model.lora import LoraSlots


class ModelSteps:
    """A step that raises has changed no row's length, text or random numbers: it may be repeated."""

    def __init__(self, base: BaseModel, batch: Batch, lora: LoraSlots | None) -> None:
        device = torch.device(base.device)
        self._batch, self._lora = batch, lora
        self._forward = Forward(base.model, batch.cache, device, base.dtype)
        self._graphs = DecodeGraphs(self._forward, batch.cache, device) if device.type == "cuda" else None
        self._has_adapters = False  # rows were set that use any

    @property
    def fixed_addresses(self) -> bool:
        """Whether the cache had better stay where it is: graphs hold its addresses."""
        return self._graphs is not None and self._graphs.enabled

    @property
    def num_graphs(self) -> int:
        return 0 if self._graphs is None else self._graphs.num_captured

    def drop_graphs(self) -> None:
        """Their memory is needed."""
        if self._graphs is not None:
            self._graphs.drop()

    def decode(self) -> list[SampledToken]:
        """The next token of every row that decodes."""
        rows = self._batch.decoding
        self._use_adapters(rows)
        logits = None
        if self._graphs is not None and not self._has_adapters:
            logits = self._graphs.decode(self._batch)
        if logits is None:
            logits = self._forward.decode(rows)
        return sample(logits, [row.sampler for row in rows])

    def prefill(self, group: Rows[Sequence], width: int) -> list[tuple[Sequence, SampledToken]]:
        """Read up to `width` further tokens of each; the first tokens of those that are read to the end."""
        self._use_adapters(group)
        logits = self._forward.prefill(self._batch, group, width)
        if logits is None:
            return []
        done = [i for i, row in enumerate(group) if row.pending <= width]
        ready = [group[i] for i in done]
        return list(zip(ready, sample(logits[done], [row.sampler for row in ready]), strict=True))

    def _use_adapters(self, rows: Rows[Sequence]) -> None:
        if self._lora is None:
            return
        parts = [row.choice.parts if row.choice is not None else () for row in rows]
        has_adapters = any(parts)
        if has_adapters or self._has_adapters:
            self._lora.set_rows(parts)
            self._has_adapters = has_adapters
