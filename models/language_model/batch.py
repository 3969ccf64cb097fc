"""Requests in the batch, and which row of the cache each has."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from models.language_model.kv_cache import KVCache
from models.language_model.lora_weights import AdapterWeights
from models.language_model.prompt import EncodedPrompt
from models.language_model.protocol import AdapterChoice, GenerationRequest, Listener, TokenLogprob
from models.language_model.sampling import RowSampler
from models.language_model.text_stream import TextStream

WaitsFor = Literal["nothing", "load", "turn", "room", "slot", "memory"]
"""What keeps a request out: its adapters, another's right of way, a row, a slot, memory for its adapters."""


@dataclass(eq=False)
class Sequence:
    """One request from its submission to its end.

    Only the engine's thread changes it, but for `cancelled`.
    """

    request: GenerationRequest
    listener: Listener
    prompt: EncodedPrompt
    max_new_tokens: int
    sampler: RowSampler
    text: TextStream
    wake: Callable[[], None]
    submitted: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    tokens: list[int] = field(default_factory=list)
    """Prompt and answer so far."""
    length: int = 0
    """So many of `tokens` are in the cache; the rest is still to be read."""
    choice: AdapterChoice | None = None
    """What it runs with; settled once it was admitted."""
    admitted: bool = False
    """It had a row, so its listener knows the choice."""
    weights: dict[str, AdapterWeights] = field(default_factory=dict)
    """By digest, each pinned in host memory for it. Kept here as well: it may be deleted there meanwhile."""
    failed: dict[str, str] = field(default_factory=dict)
    order: int = 0
    """Of admission; the greatest is the youngest."""
    lone_evictions: int = 0
    """How often it lost its row to a lack of memory with no other in the batch."""
    overtaken: int = 0
    waits_for: WaitsFor = "nothing"
    waits_since: int = -1
    """The queue's version at which it could not be admitted; not tried again before that changes."""
    first_token_at: float | None = None
    held_ids: list[int] = field(default_factory=list)
    held_logprobs: list[TokenLogprob] = field(default_factory=list)
    ended: bool = False
    deaf: bool = False
    """Its listener raised; it hears no more."""

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt.tokens)

    @property
    def num_new(self) -> int:
        return len(self.tokens) - len(self.prompt.tokens)

    @property
    def pending(self) -> int:
        """Tokens that are still to be read before the next one can be sampled."""
        return len(self.tokens) - self.length

    @property
    def parts(self) -> tuple[tuple[str, float], ...]:
        """(digest, weight) of its adapters."""
        return () if self.choice is None else tuple((p.digest, p.weight) for p in self.choice.parts)

    @property
    def digests(self) -> tuple[str, ...]:
        """Of its adapters, each once."""
        return tuple(dict.fromkeys(digest for digest, _ in self.parts))

    def cancel(self) -> None:
        """Free its place before the next step. Thread-safe."""
        if not self.ended:
            self.cancelled = True
            self.wake()


class Batch:
    """Rows without gaps: those that decode first, then those whose prompt is still being read."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.rows: list[Sequence] = []
        self.num_decoding = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def decoding(self) -> list[Sequence]:
        return self.rows[: self.num_decoding]

    @property
    def prefilling(self) -> list[Sequence]:
        return self.rows[self.num_decoding :]

    def add(self, sequence: Sequence) -> int:
        """Take it in as the last row, to be read from the beginning. Returns the row."""
        self.rows.append(sequence)
        return len(self.rows) - 1

    def start_decoding(self, sequence: Sequence) -> None:
        """Its prompt is read."""
        row, target = self.rows.index(sequence), self.num_decoding
        if row != target:
            other = self.rows[target]
            self.cache.swap(row, target, max(sequence.length, other.length))
            self.rows[row], self.rows[target] = other, sequence
        self.num_decoding += 1

    def remove(self, sequence: Sequence) -> None:
        """Free its row; the last ones move up."""
        hole = self.rows.index(sequence)
        if hole < self.num_decoding:
            self.num_decoding -= 1
            hole = self._fill(hole, self.num_decoding)
        self._fill(hole, len(self.rows) - 1)
        self.rows.pop()

    def _fill(self, hole: int, last: int) -> int:
        if hole != last:
            moved = self.rows[last]
            self.cache.move(last, hole, moved.length)
            self.rows[hole] = moved
        return last

    def prefill_group(self, chunk: int) -> list[Sequence]:
        """The oldest whose prompt is not read, and with it as many as fit `chunk` tokens with padding."""
        group: list[Sequence] = []
        width = 0
        for row in sorted(self.prefilling, key=lambda row: row.order):
            wider = max(width, min(row.pending, chunk))
            if group and wider * (len(group) + 1) > chunk:
                break
            group.append(row)
            width = wider
        return group

    def end_of_step(self, chunk: int) -> int:
        """Positions that the coming steps of all rows reach at most; prompts are read in chunks."""
        return max((row.length + min(row.pending, chunk) for row in self.rows), default=0)

    def youngest(self) -> Sequence:
        return max(self.rows, key=lambda row: row.order)
