"""The memory of a GPU that several processes share: each keeps to its own part of it.

A share of a GPU is a number in a scheduler's books. Nothing keeps a process that was given a tenth of a card
from taking all of it, and the one that fails then is whichever asks next. So every process caps what torch
may allocate for it; beyond the cap torch raises the out-of-memory error that models recover from.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

from graph.errors import InvalidInput

log = logging.getLogger(__name__)

CONTEXT_BYTES = 512 << 20
"""What CUDA takes for each process beside torch's allocations, which no cap covers: context and kernels."""


class Cuda(Protocol):
    """As much of `torch.cuda` as is needed here."""

    def is_available(self) -> bool: ...

    def get_device_properties(self, device: int) -> Any: ...

    def set_per_process_memory_fraction(self, fraction: float, device: int) -> None: ...


def cap_memory(share: float, cuda: Cuda | None = None) -> int | None:
    """Let this process allocate no more than its share of the GPU that it sees.

    Returns the bytes, or None where nothing is capped. That is so for a share of 1 or more: nobody else has a
    part of whole GPUs. It is also so where CUDA is not there, or does not work: models say so themselves, or
    go on on the CPU. `cuda` is `torch.cuda`, unless given. Raises InvalidInput for a share that is not above
    0, or so small that nothing is left of it beside what CUDA takes for the process.
    """
    if not share > 0:
        raise InvalidInput(f"a share of {share:g} of a GPU; it must be above 0", param="num_gpus")
    if share >= 1:
        return None
    if cuda is None:
        from torch import cuda as torch_cuda

        cuda = torch_cuda
    if not cuda.is_available():
        return None
    try:
        total = int(cuda.get_device_properties(0).total_memory)
        allowed = int(share * total) - CONTEXT_BYTES
        if allowed > 0:
            cuda.set_per_process_memory_fraction(allowed / total, 0)
    except (RuntimeError, AssertionError) as error:
        log.warning("the GPU's memory is not capped, for the GPU does not work: %s", error)
        return None
    if allowed <= 0:
        raise InvalidInput(
            f"a share of {share:g} of a GPU with {total >> 20} MiB leaves nothing beside the "
            f"{CONTEXT_BYTES >> 20} MiB that CUDA takes for each process: claim more than "
            f"{CONTEXT_BYTES / total:.2f}",
            param="num_gpus",
        )
    log.info("this process keeps to %d MiB of the GPU's %d MiB", allowed >> 20, total >> 20)
    return allowed
