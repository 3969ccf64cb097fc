"""How much of a full batch the memory of a GPU holds beside the weights, said when a model is opened.

Nothing is reserved: keys and values grow with the requests, and where memory ends rows are read again later.
That is slow and correct, so it is worth a line in the log and is no error.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from models.language_model.base_model import BaseModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryPlan:
    bytes_per_token: int
    """Of keys and values in all layers."""
    free_bytes: int
    """Of this process, within its share of the GPU."""
    window: int
    """Tokens of a row at most, prompt and answer together."""

    @property
    def full_rows(self) -> int:
        """Rows that can all be as long as the window."""
        return self.free_bytes // (self.bytes_per_token * self.window)


def bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Bytes that one position takes in the cache of a model with this configuration of transformers'."""
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * int(config.num_hidden_layers) * heads * width * dtype.itemsize


def plan_memory(base: BaseModel, window: int, cuda: Any = None) -> MemoryPlan | None:
    """What is left for keys and values now that the weights are loaded; None on a CPU.

    `cuda` is `torch.cuda`, unless given.
    """
    if base.device.type != "cuda":
        return None
    if cuda is None:
        from torch import cuda as torch_cuda

        cuda = torch_cuda
    free, total = cuda.mem_get_info(base.device)
    allocated = cuda.memory_allocated(base.device)
    # What torch holds and does not use is free for this process, and counts as taken for the device.
    unused = cuda.memory_reserved(base.device) - allocated
    allowed = int(cuda.get_per_process_memory_fraction(base.device) * total) - allocated
    return MemoryPlan(
        bytes_per_token(base.model.config, base.dtype), max(0, min(free + unused, allowed)), window
    )


def say_what_fits(plan: MemoryPlan, max_batch: int) -> None:
    """A line in the log, a warning where a full batch of full windows does not fit."""
    rows = plan.full_rows
    log.log(
        logging.INFO if rows >= max_batch else logging.WARNING,
        "%d MiB of the GPU are left for keys and values, %d bytes per token: %d of %d rows can have all of "
        "their %d tokens at once%s",
        plan.free_bytes >> 20,
        plan.bytes_per_token,
        min(rows, max_batch),
        max_batch,
        plan.window,
        ""
        if rows >= max_batch
        else "; beyond that rows are read again. Lower max_batch or max_context_tokens",
    )
