"""A request at a server, and what has come of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from models.language_model.openai_format import Chunk
from models.language_model.protocol import (
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    Listener,
    Piece,
)

log = logging.getLogger(__name__)


class RemoteTicket:
    """Everything but `cancel` happens on the event loop, which `call` reaches from any thread.

    `task` works on the request while it is open.
    """

    def __init__(
        self, request: GenerationRequest, listener: Listener, call: Callable[[Callable[[], None]], None]
    ) -> None:
        self.request = request
        self.task: asyncio.Task[FinishReason] | None = None
        self.completion_tokens = 0
        self._listener: Listener | None = listener
        self._call = call
        self._submitted = time.monotonic()
        self._first_ms = 0.0
        self._prompt_tokens = 0

    def cancel(self) -> None:
        self._call(self._cancel)

    def age_s(self) -> float:
        return time.monotonic() - self._submitted

    def take(self, chunk: Chunk) -> None:
        if chunk.text or chunk.logprobs:
            self._first_ms = self._first_ms or self.age_s() * 1e3
            self.completion_tokens += len(chunk.logprobs) or 1
            self.tell(Piece(chunk.text, (), chunk.logprobs))
        if chunk.usage is not None:
            self._prompt_tokens, self.completion_tokens = chunk.usage

    def finished(self, reason: FinishReason) -> Finished:
        return Finished(
            reason, self._prompt_tokens, self.completion_tokens, self._first_ms, self.age_s() * 1e3
        )

    def tell(self, event: Event) -> None:
        """Call the listener. One that raises hears nothing more, and its request is cancelled."""
        if self._listener is None:
            return
        try:
            self._listener(event)
        except Exception:
            log.exception("request %s: its listener failed; it is cancelled", self.request.request_id)
            self._listener = None
            self._cancel()

    def _cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()
