"""What generation is: a prompt and how to sample in, pieces of text and how it ended out.

Two backends speak this protocol: `engine.Engine` on this machine, `openai_compatible.OpenAICompatibleModel`
in front of a server made for models that one GPU does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from graph.errors import InvalidInput, WeftError

MAX_NEW_TOKENS = 32_768
MAX_STOPS, MAX_STOP_CHARS = 4, 64
MAX_LOGPROBS = 20
MAX_BLEND_PARTS = 8

Role: TypeAlias = Literal["system", "user", "assistant"]
FinishReason: TypeAlias = Literal["stop", "length", "cancelled"]
Source: TypeAlias = Literal["request", "user", "domain", "global", "base"]
"""Who chose an adapter: the request by name, a level of the cascade, or nobody."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


Prompt: TypeAlias = str | tuple[Message, ...]
"""A text to continue as it is, or a conversation that the model's chat template renders."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. Raises InvalidInput, naming the field, for what no model can follow.

    Order of application: repetition penalty, temperature, top_k, top_p, min_p, as transformers' `generate`.
    """

    max_tokens: int | None = None
    """New tokens at most; None: what the model's window leaves, at most the engine's default."""
    temperature: float = 1.0
    """0 is greedy: the most likely token, whatever the other fields say but the repetition penalty."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Above 1 discourages tokens of prompt and answer (Keskar et al. 2019, as in transformers)."""
    seed: int | None = None
    """The same seed, prompt and adapter give the same text on one machine, whatever else is in the batch."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are no part of it."""
    logprobs: int | None = None
    """With every token its log-probability and so many alternatives; of the model's own distribution, before
    temperature and filters."""
    ignore_eos: bool = False
    """Go on until `max_tokens` (benchmarks)."""

    def __post_init__(self) -> None:
        _check_range("max_tokens", self.max_tokens, 1, MAX_NEW_TOKENS)
        _check_range("temperature", self.temperature, 0.0, 2.0)
        _check_range("top_p", self.top_p, 0.0, 1.0, above=True)
        _check_range("top_k", self.top_k, 0, 1 << 31)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("repetition_penalty", self.repetition_penalty, 0.0, 10.0, above=True)
        _check_range("seed", self.seed, -(1 << 63), (1 << 63) - 1)
        _check_range("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if len(self.stop) > MAX_STOPS or not all(0 < len(s) <= MAX_STOP_CHARS for s in self.stop):
            raise InvalidInput(
                f"stop has at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARS} characters", param="stop"
            )


def _check_range(name: str, value: float | None, low: float, high: float, *, above: bool = False) -> None:
    if value is None:
        return
    if not math.isfinite(value) or not low <= value <= high or (above and value == low):
        edge = "above" if above else "from"
        raise InvalidInput(f"{name} is {value}; must be {edge} {low:g} to {high:g}", param=name)


@dataclass(frozen=True, slots=True)
class AdapterPart:
    """One adapter of a blend: `weight` times its low-rank term."""

    digest: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class AdapterChoice:
    """Which adapters a request runs with, and why; no parts is the base model."""

    parts: tuple[AdapterPart, ...] = ()
    adapter: str | None = None
    """As people write it, `user/alice/v2`, parts of a blend joined with `+`; None for the base model."""
    source: Source = "base"
    why: str = "no adapter is set for this request"
    """A sentence, also saying what was skipped on the way down the cascade."""

    @property
    def digest(self) -> str | None:
        """The adapter's digest, those of a blend joined with `+`; None for the base model."""
        return "+".join(part.digest for part in self.parts) or None


Choose: TypeAlias = Callable[[dict[str, str]], AdapterChoice]
"""Chooses a request's adapters, at the moment it is admitted to the batch.

The argument holds adapters that could not be loaded (digest to the reason): the choice goes on down the
cascade past them. Raises WeftError where the request asked for one of them by name. Called on the engine's
thread: it must not block.
"""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer to be generated."""

    request_id: str
    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    choose: Choose = lambda failed: AdapterChoice()
    owner: str | None = None
    """The user. Part of the prefix cache's key, except for the bare system prompt, which all share."""
    context: str = ""
    """What is known about the owner, for the system message of a conversation. Apart from the prompt, so that
    the bare system prompt stays what users share, and this the owner's own."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its log-probability, and the most likely tokens at its place, best first."""

    token: str
    token_id: int
    logprob: float
    top: tuple[tuple[str, int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request has joined the batch; what is generated from here on uses `choice`."""

    choice: AdapterChoice
    prompt_tokens: int
    cached_tokens: int  # of the prompt, taken from the prefix cache
    queued_ms: float


@dataclass(frozen=True, slots=True)
class Piece:
    """More of the answer: whole characters, never a part of a stop text."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    first_token_ms: float  # since submission; 0 when there was none
    latency_ms: float  # since submission


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a request that could not be answered."""

    error: WeftError


Event: TypeAlias = Admitted | Piece | Finished | Failed
"""`Admitted`, then `Piece`s, then one of `Finished` and `Failed`; `Failed` may come at any time."""
Listener: TypeAlias = Callable[[Event], None]
"""Called on the backend's thread: it must not block and must not raise."""


class Ticket(Protocol):
    """A request that was accepted."""

    def cancel(self) -> None:
        """Free its place at once; the listener hears `Finished("cancelled")`. Harmless at the end."""
        ...


class LanguageBackend(Protocol):
    """Something that generates. Thread-safe."""

    @property
    def model_name(self) -> str:
        """The base model as clients name it."""
        ...

    @property
    def device(self) -> str: ...

    def submit(self, request: GenerationRequest, listener: Listener) -> Ticket:
        """Queue a request; returns at once.

        Raises Overloaded when the queue is full, TextTooLong when prompt and answer do not fit the window,
        InvalidInput for what this backend cannot do, Unavailable when it is closed.
        """
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, without special ones. Raises Unavailable where nobody here knows."""
        ...

    def room_for_context(self, prompt: Prompt, max_tokens: int | None) -> int | None:
        """Tokens that a context may have beside a prompt and an answer of `max_tokens`, at least 0.

        None where nobody here knows. Raises InvalidInput for a prompt that cannot be read.
        """
        ...

    def status(self) -> dict[str, object]:
        """Plain JSON for operators: device, sizes, queue, adapters, caches."""
        ...

    def close(self) -> None:
        """Fail what is queued with Unavailable, finish nothing more, free memory."""
        ...
