"""How much the engine takes on at once."""

from __future__ import annotations

from dataclasses import dataclass

from graph.errors import InvalidInput


@dataclass(frozen=True)
class EngineLimits:
    """Sizes of batch, window and queue. Raises InvalidInput, naming the field, for sizes below one."""

    max_batch: int = 16
    """Rows that are generated together."""
    max_context_tokens: int | None = None
    """Prompt and answer together; None: the model's own window, which it never exceeds."""
    default_max_tokens: int = 256
    """New tokens of a request that does not say; less where the window leaves less."""
    prefill_chunk_tokens: int = 512
    """Prompt tokens (with padding) that are read between two decoding steps at most."""
    max_queued: int = 256
    """Requests that wait for a row; beyond it `Overloaded`."""

    def __post_init__(self) -> None:
        for name in ("max_batch", "default_max_tokens", "prefill_chunk_tokens", "max_queued"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}; must be at least 1", param=name)
        if self.max_context_tokens is not None and self.max_context_tokens < 2:
            raise InvalidInput(
                f"max_context_tokens is {self.max_context_tokens}; must be at least 2",
                param="max_context_tokens",
            )
