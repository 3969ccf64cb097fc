"""A context cut to a budget of tokens, which the language model counts."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from deployments.generation_messages import GenerateQuery
from deployments.memory_messages import ContextCandidates, FittedContext
from graph.context import fit
from graph.errors import Unavailable
from models.language_model.protocol import LanguageBackend

BYTES = "bytes"
"""Counts, where nobody here knows the tokens."""

_QUICK_CHARS = 1_000
"""Text whose tokens are counted at once: a tokenizer reads so much in less than a millisecond."""
_KEPT_COUNTS = 4_096
_KEPT_CHARS = 500
"""A line that is longer is counted anew, so that what is kept stays small."""


def num_bytes(text: str) -> int:
    """An upper bound of a text's tokens, for tokenizers that do not rewrite what they read."""
    return len(text.encode(errors="surrogatepass"))


def fitted(
    candidates: ContextCandidates, max_tokens: int, count: Callable[[str], int], counted_by: str
) -> FittedContext:
    """As much of the candidates as `max_tokens` hold, by `count`."""
    begun = time.perf_counter()
    found = fit(candidates.lines, max_tokens, count)
    return FittedContext(
        found.text,
        found.lines,
        found.tokens,
        counted_by,
        candidates.version,
        candidates.missing,
        replace(candidates.timings, fitting=(time.perf_counter() - begun) * 1e3),
    )


def without_lines(fitted: FittedContext | None) -> FittedContext | None:
    """A context that could not be used: nothing of it is left, and `missing` says so."""
    if fitted is None:
        return None
    return replace(fitted, text="", lines=(), tokens=0, missing=(*fitted.missing, "context"))


class ContextFitter:
    """Fits contexts for one backend. What may take a millisecond is done on a thread, beside the loop."""

    def __init__(self, backend: LanguageBackend) -> None:
        self._backend = backend
        self._counts = _Counts(backend.count_tokens)

    async def fit(self, candidates: ContextCandidates, max_tokens: int) -> FittedContext:
        """By tokens, or by bytes where the backend cannot count."""
        if _chars(candidates) <= _QUICK_CHARS:
            return self._fit(candidates, max_tokens)
        return await asyncio.to_thread(self._fit, candidates, max_tokens)

    async def fit_beside(self, query: GenerateQuery, candidates: ContextCandidates) -> FittedContext:
        """The context of a prompt: within the query's budget, and within what prompt and answer leave.

        So a conversation that grows takes its room from the context, not the other way round. Raises
        InvalidInput for a prompt that cannot be read.
        """
        prompt = query.prompt
        chars = len(prompt) if isinstance(prompt, str) else sum(len(turn.content) for turn in prompt)
        if chars + _chars(candidates) <= _QUICK_CHARS:
            return self._fit_beside(query, candidates)
        return await asyncio.to_thread(self._fit_beside, query, candidates)

    def _fit_beside(self, query: GenerateQuery, candidates: ContextCandidates) -> FittedContext:
        room = self._backend.room_for_context(query.prompt, query.sampling.max_tokens)
        budget = query.max_context_tokens if room is None else min(query.max_context_tokens, room)
        return self._fit(candidates, budget)

    def _fit(self, candidates: ContextCandidates, max_tokens: int) -> FittedContext:
        try:
            return fitted(candidates, max_tokens, self._counts, self._backend.model_name)
        except Unavailable:
            return fitted(candidates, max_tokens, num_bytes, BYTES)


class _Counts:
    """Tokens of texts: those of a user's lines are asked for again with every question. Thread-safe."""

    def __init__(self, count: Callable[[str], int]) -> None:
        self._count = count
        self._known: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def __call__(self, text: str) -> int:
        with self._lock:
            known = self._known.get(text)
            if known is not None:
                self._known.move_to_end(text)
                return known
        counted = self._count(text)
        if len(text) <= _KEPT_CHARS:
            with self._lock:
                self._known[text] = counted
                if len(self._known) > _KEPT_COUNTS:
                    self._known.popitem(last=False)
        return counted


def _chars(candidates: ContextCandidates) -> int:
    """About how much text is counted to fit them: every line alone, then all together."""
    return 2 * sum(len(line.text) for line in candidates.lines)
