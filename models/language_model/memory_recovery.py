"""What to give up when memory runs out, in order."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from graph.errors import OutOfMemory

if TYPE_CHECKING:
    from models.language_model.lora import LoraSlots
    from models.language_model.prefix_cache import PrefixCache
    from models.language_model.resident_adapters import ResidentAdapters

MAX_LONE_EVICTIONS = 3
"""So often a request is read again that lost its row though it was the only one; then it fails."""

_logger = logging.getLogger(__name__)
_TEXTS = ("not enough memory", "DefaultCPUAllocator", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether dropping something may help. torch has no type for it on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError, OutOfMemory)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def give_back() -> None:
    """What torch keeps for later allocations: blocks of other sizes may fit then."""
    torch.cuda.empty_cache()  # does nothing where CUDA is not in use


def drop_idle(
    prefix_cache: PrefixCache | None, lora: LoraSlots | None, residents: ResidentAdapters | None
) -> bool:
    """Drop the prefix cache; if there was nothing in it, adapters that no row uses.

    False: there was nothing to drop.
    """
    dropped = ""
    if prefix_cache is not None and (freed := prefix_cache.clear()):
        dropped = f"{freed} bytes of prefix cache"
    else:
        slots = lora.drop_idle() if lora is not None else 0
        freed = residents.evict_idle() if residents is not None else 0
        if slots or freed:
            dropped = f"{slots} adapter slots and {freed} bytes of adapters"
    if dropped:
        _logger.warning("memory ran out: dropped %s, trying again", dropped)
    return bool(dropped)
