"""What adapters have to know of a base model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class BaseModelSpec:
    """A base model as adapters are checked against it."""

    name: str
    """As clients name it: of a folder only the last part."""
    digest: str
    """SHA-256 over configuration, weights and tokenizer, hex."""
    linears: Mapping[str, tuple[int, int]] = field(repr=False)
    """Every linear layer: its full name in the model (`model.layers.0.self_attn.q_proj`) to (in_features,
    out_features)."""
