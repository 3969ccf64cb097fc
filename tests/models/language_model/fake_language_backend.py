"""A backend without a model: it says the words of the prompt again, one a step, on a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from graph.errors import Overloaded, Unavailable, WeftError
from models.language_model.protocol import (
    Admitted,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    Listener,
    Piece,
    Prompt,
)


@dataclass
class FakeTicket:
    """A request on its way; `words` are still to be said."""

    request: GenerationRequest
    listener: Listener
    words: list[str]
    wake: Callable[[], None]
    submitted: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    admitted: bool = False
    said: int = 0

    def cancel(self) -> None:
        self.cancelled = True
        self.wake()


class FakeLanguageBackend:
    """Answers the last message's words in capitals, each followed by a space; `max_tokens` counts words.

    `hold` stops every step (cancelling still works), `missing` are adapters that cannot be loaded
    (digest to the reason), `error` fails one request after its first word. `window` bounds the words of
    prompt, context and answer; None: nobody knows.
    """

    def __init__(self, *, max_queued: int = 64, model_name: str = "fake") -> None:
        self.model_name = model_name
        self.device = "cpu"
        self.missing: dict[str, str] = {}
        self.error: WeftError | None = None
        self.window: int | None = None
        self.requests: list[GenerationRequest] = []
        self.cancelled: list[str] = []
        self._max_queued = max_queued
        self._tickets: list[FakeTicket] = []
        self._changed = threading.Condition()
        self._open, self._closed = True, False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def hold(self) -> None:
        """Take no step until `go`."""
        with self._changed:
            self._open = False

    def go(self) -> None:
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def submit(self, request: GenerationRequest, listener: Listener) -> FakeTicket:
        with self._changed:
            if self._closed:
                raise Unavailable("the backend is closed")
            if len(self._tickets) >= self._max_queued:
                raise Overloaded(f"{self._max_queued} requests are waiting; try again later")
            prompt = request.prompt
            text = prompt if isinstance(prompt, str) else prompt[-1].content
            ticket = FakeTicket(request, listener, text.upper().split(), self._wake)
            self.requests.append(request)
            self._tickets.append(ticket)
            self._changed.notify_all()
            return ticket

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def room_for_context(self, prompt: Prompt, max_tokens: int | None) -> int | None:
        """What `window` leaves, a word counting as a token."""
        if self.window is None:
            return None
        turns = [prompt] if isinstance(prompt, str) else [turn.content for turn in prompt]
        used = sum(len(text.split()) for text in turns) + (max_tokens or 0)
        return max(0, self.window - used)

    def status(self) -> dict[str, object]:
        return {"backend": "fake", "model": self.model_name, "running": len(self._tickets)}

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(10)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _ready(self) -> bool:
        return (
            self._closed
            or (self._open and bool(self._tickets))
            or any(ticket.cancelled for ticket in self._tickets)
        )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._ready)
                tickets, moving = list(self._tickets), self._open
                if self._closed:
                    self._tickets.clear()
            if self._closed:
                for ticket in tickets:
                    ticket.listener(Failed(Unavailable("the backend was closed")))
                return
            ended = [ticket for ticket in tickets if (moving or ticket.cancelled) and self._step(ticket)]
            with self._changed:
                self._tickets = [ticket for ticket in self._tickets if ticket not in ended]

    def _step(self, ticket: FakeTicket) -> bool:
        """One word; whether the request has ended."""
        request = ticket.request
        if ticket.cancelled:
            self.cancelled.append(request.request_id)
            return self._finish(ticket, "cancelled")
        if not ticket.admitted:
            try:
                choice = request.choose({})
                failed: dict[str, str] = {}
                while bad := [part.digest for part in choice.parts if part.digest in self.missing]:
                    failed |= {digest: self.missing[digest] for digest in bad}
                    choice = request.choose(failed)
            except WeftError as error:
                ticket.listener(Failed(error))
                return True
            ticket.admitted = True
            ticket.listener(Admitted(choice, len(ticket.words), 0, self._ms(ticket)))
            return False
        if self.error is not None and ticket.said:
            error, self.error = self.error, None
            ticket.listener(Failed(error))
            return True
        limit = request.sampling.max_tokens or len(ticket.words)
        if ticket.said < min(limit, len(ticket.words)):
            ticket.listener(Piece(ticket.words[ticket.said] + " ", (ticket.said,)))
            ticket.said += 1
            return False
        return self._finish(ticket, "length" if ticket.said < len(ticket.words) else "stop")

    def _finish(self, ticket: FakeTicket, reason: FinishReason) -> bool:
        ms = self._ms(ticket)
        ticket.listener(Finished(reason, len(ticket.words), ticket.said, ms if ticket.said else 0.0, ms))
        return True

    def _ms(self, ticket: FakeTicket) -> float:
        return (time.monotonic() - ticket.submitted) * 1e3
