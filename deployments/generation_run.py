"""One generation between the backend's thread, which speaks, and the event loop, which listens."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict

from deployments.generation_messages import Delta, Ended, GenerateAnswer, GenerateQuery, Started
from deployments.memory_messages import FittedContext
from graph.errors import Unavailable, WeftError
from models.language_model.protocol import Admitted, Event, Failed, Finished, Piece, Ticket, TokenLogprob

StreamEvent = Started | Delta | Ended | WeftError


class Mailbox:
    """Carries events of all generations to the event loop, waking it once for all that came together.

    A step of the backend has news for every row of its batch, and waking the loop costs more than a token.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[tuple[GenerationRun, Event]] = deque()
        self._scheduled = False

    def post(self, run: GenerationRun, event: Event) -> None:
        """Called on the backend's thread."""
        self._events.append((run, event))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        # First this: what is posted from here on is found below, or wakes the loop again.
        self._scheduled = False
        while self._events:
            run, event = self._events.popleft()
            run.take(event)


class GenerationRun:
    """What is known of a generation so far. Everything but `Mailbox.post` happens on the event loop."""

    def __init__(
        self, query: GenerateQuery, model: str, timeout_s: float, ended: Callable[[GenerationRun], None]
    ) -> None:
        """`ended` is called once, when nothing more will come, also when nobody listens any more."""
        self.query = query
        self.model = model
        self.version = 0  # of the feed; set when the adapters are chosen
        self.context: FittedContext | None = None  # what the prompt holds of the query's
        self.began = time.time()
        self.started: Started | None = None
        self.result: Ended | None = None
        self.error: WeftError | None = None
        self.text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._ticket: Ticket | None = None
        self._ended = ended
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._begun = time.monotonic()
        self.queued_ms = 0.0
        self._news: list[StreamEvent] = []
        self._changed, self._done = asyncio.Event(), asyncio.Event()

    def accepted(self, ticket: Ticket) -> None:
        self._ticket = ticket

    def refuse(self, error: WeftError) -> None:
        """The backend did not take the request, or gave up on it."""
        self._end(error)

    def cancel(self) -> None:
        """Free its place in the batch, unless it has ended."""
        if not self._done.is_set() and self._ticket is not None:
            self._ticket.cancel()

    # ---------------------------------------------------------------------------------------------- listening

    async def answer(self) -> GenerateAnswer | WeftError:
        """The whole answer. Cancelled when the caller is, or the time is over."""
        try:
            async with asyncio.timeout(self._left()):
                await self._done.wait()
        except TimeoutError:
            self._expire()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self.error is not None:
            return self.error
        if self.started is None or self.result is None:
            raise AssertionError("a generation ended without having begun")
        return GenerateAnswer("".join(self.text), self.started, self.result, tuple(self._logprobs))

    async def events(self) -> list[StreamEvent]:
        """What is new, waiting for something. The last list ends with Ended or an error."""
        if self._left() <= 0:
            self._expire()
        try:
            async with asyncio.timeout(self._left()):
                await self._changed.wait()
        except TimeoutError:
            self._expire()
        news, self._news = _merged(self._news), []
        self._changed.clear()
        return news

    async def pause(self, seconds: float) -> None:
        """Wait, but not past the end."""
        try:
            async with asyncio.timeout(seconds):
                await self._done.wait()
        except TimeoutError:
            return

    @property
    def seconds(self) -> float:
        """Since it was asked for."""
        return time.monotonic() - self._begun

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _expire(self) -> None:
        if not self._done.is_set():
            self.cancel()
            self._end(
                Unavailable(
                    f"no whole answer within {self._timeout_s:g} s; ask for fewer tokens or try again"
                )
            )

    # ------------------------------------------------------------------------------------------------- events

    def take(self, event: Event) -> None:
        """What the backend says; nothing counts any more after the end."""
        if self._done.is_set():
            return
        match event:
            case Admitted():
                choice = event.choice
                self.queued_ms = event.queued_ms
                self.started = Started(
                    self.model,
                    choice.adapter,
                    choice.digest,
                    choice.source,
                    choice.why,
                    event.prompt_tokens,
                    event.cached_tokens,
                    self.version,
                    self.context,
                )
                self._tell(self.started)
            case Piece():
                self.text.append(event.text)
                self._logprobs += event.logprobs
                self._tell(Delta(event.text, event.token_ids, event.logprobs))
            case Finished():
                self._end(
                    Ended(
                        event.reason,
                        event.prompt_tokens,
                        event.completion_tokens,
                        self.queued_ms,
                        event.first_token_ms,
                        event.latency_ms,
                    )
                )
            case Failed():
                self._end(event.error)

    def _tell(self, news: StreamEvent) -> None:
        self._news.append(news)
        self._changed.set()

    def _end(self, last: Ended | WeftError) -> None:
        if isinstance(last, Ended):
            self.result = last
            if self.started is None:  # cancelled while it waited
                self.error = last = Unavailable("the request was cancelled before it began")
        else:
            self.error = last
        self._done.set()
        self._tell(last)
        self._ended(self)

    # ------------------------------------------------------------------------------------------ the audit log

    def record(self, device: str, *, texts: bool) -> dict[str, object]:
        """The line of the audit log; prompt, context and output only with `texts`."""
        started, result, query, context = self.started, self.result, self.query, self.context
        record: dict[str, object] = {
            "time": round(self.began, 3),
            "request_id": query.request_id,
            "user": query.user_id,
            "domain": query.domain,
            "model": self.model,
            "adapter": started.adapter if started else None,
            "digest": started.digest if started else None,
            "adapter_active": started is not None and started.digest is not None,
            "source": started.source if started else None,
            "why": started.why if started else None,
            "version": self.version,
            "sampling": asdict(query.sampling),
            "context": [{"kind": s.source_kind, "id": s.source_id} for s in context.lines]
            if context
            else None,
            "context_tokens": context.tokens if context else None,
            "prompt_tokens": started.prompt_tokens if started else None,
            "cached_tokens": started.cached_tokens if started else None,
            "completion_tokens": result.completion_tokens if result else None,
            "finish_reason": result.finish_reason if result else None,
            "error": self.error.code if self.error else None,
            "queued_ms": round(self.queued_ms, 3),
            "first_token_ms": round(result.first_token_ms, 3) if result else None,
            "latency_ms": round(self.seconds * 1e3, 3),
            "device": device,
        }
        if texts:
            prompt = query.prompt
            record["prompt"] = prompt if isinstance(prompt, str) else [asdict(turn) for turn in prompt]
            record["context_text"] = context.text if context else None
            record["output"] = "".join(self.text)
        return record


def _merged(events: list[StreamEvent]) -> list[StreamEvent]:
    """The same events, pieces that follow each other put together."""
    found: list[StreamEvent] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, Delta) and isinstance(last, Delta):
            event = Delta(
                last.text + event.text, last.token_ids + event.token_ids, last.logprobs + event.logprobs
            )
            found.pop()
        found.append(event)
    return found
