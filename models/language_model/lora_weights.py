"""A LoRA adapter in memory, and how its files are read (PEFT layout, safetensors)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, eq=False)
class AdapterWeights:
    """An adapter as the slots take it. On the CPU; never changed after it was made."""

    digest: str
    rank: int
    """The greatest of its modules."""
    modules: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(repr=False)
    """Full module name in the base model to (A [r, in], B [out, r]), contiguous, scaling folded into B: a
    linear answers `base(x) + x A^T B^T`."""
    nbytes: int
