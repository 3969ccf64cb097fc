"""Answers for users: a backend, and the cascade that says which adapters each request runs with."""

from __future__ import annotations

import queue
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Protocol

from graph.errors import InvalidInput, Unavailable
from models.language_model.protocol import (
    AdapterChoice,
    Admitted,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    LanguageBackend,
    Listener,
    Message,
    Piece,
    Prompt,
    Sampling,
    Source,
    Ticket,
    TokenLogprob,
)


class Cascade(Protocol):
    """Chooses adapters; `models.adapter_cascade.AdapterCascade`."""

    def choose(
        self,
        user_id: str | None,
        domain: str | None,
        adapter: str | None,
        blend: Sequence[tuple[str, float]],
        failed: Mapping[str, str],
    ) -> AdapterChoice: ...


@dataclass(frozen=True, slots=True)
class Generated:
    """A whole answer; see `protocol.AdapterChoice` for adapter, digest, source and why."""

    output: str
    user_id: str | None
    adapter: str | None
    digest: str | None
    source: Source
    why: str
    model: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    queued_ms: float
    first_token_ms: float
    latency_ms: float
    logprobs: tuple[TokenLogprob, ...] = ()


class Generator:
    """Generation without Ray. Thread-safe; closing it closes the backend."""

    def __init__(self, backend: LanguageBackend, cascade: Cascade) -> None:
        self.backend = backend
        self._cascade = cascade

    def run(
        self,
        user_id: str | None,
        text: str | None = None,
        system_prompt: str | None = None,
        *,
        domain: str | None = None,
        adapter: str | None = None,
        blend: Sequence[tuple[str, float]] = (),
        messages: Sequence[Message] | None = None,
        sampling: Sampling | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Generated:
        """The answer to `text`, as a conversation of one turn, or to `messages`; blocks until it is whole.

        `adapter` is a reference as in `adapter_pointers.parse_reference`; None goes down the cascade. Raises
        what `stream` raises.
        """
        stream = self.stream(
            user_id,
            text,
            system_prompt,
            domain=domain,
            adapter=adapter,
            blend=blend,
            messages=messages,
            sampling=sampling,
            request_id=request_id,
            timeout_s=timeout_s,
        )
        with stream:
            for _ in stream:
                pass
            return stream.result

    def stream(
        self,
        user_id: str | None,
        text: str | None = None,
        system_prompt: str | None = None,
        *,
        domain: str | None = None,
        adapter: str | None = None,
        blend: Sequence[tuple[str, float]] = (),
        messages: Sequence[Message] | None = None,
        sampling: Sampling | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> GenerationStream:
        """The same in pieces; it is queued before this returns.

        Raises InvalidInput unless exactly one of `text` and `messages` is given, and what
        `LanguageBackend.submit` raises. Iterating raises the error a request failed with, and Unavailable
        after `timeout_s`.
        """
        prompt = _prompt(text, system_prompt, messages)
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        # The backend knows the queue and not the stream: one that nobody holds is collected, and cancels.
        ticket = self.submit(
            user_id,
            prompt,
            events.put,
            domain=domain,
            adapter=adapter,
            blend=blend,
            sampling=sampling,
            request_id=request_id,
        )
        return GenerationStream(events, ticket, user_id, self.backend.model_name, timeout_s)

    def submit(
        self,
        user_id: str | None,
        prompt: Prompt,
        listener: Listener,
        *,
        domain: str | None = None,
        adapter: str | None = None,
        blend: Sequence[tuple[str, float]] = (),
        sampling: Sampling | None = None,
        request_id: str | None = None,
    ) -> Ticket:
        """Queue a request whose events go to `listener`, on the backend's thread. Returns at once."""
        if adapter is not None and blend:
            raise InvalidInput("give an adapter or a blend, not both", param="blend")
        request = GenerationRequest(
            request_id or uuid.uuid4().hex,
            prompt,
            sampling or Sampling(),
            partial(self._cascade.choose, user_id, domain, adapter, tuple(blend)),
            owner=user_id,
        )
        return self.backend.submit(request, listener)

    def close(self) -> None:
        self.backend.close()

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class GenerationStream(Iterator[str]):
    """Pieces of an answer. For one thread; closing it, or letting go of it, cancels what is left."""

    def __init__(
        self,
        events: queue.SimpleQueue[Event],
        ticket: Ticket,
        user_id: str | None,
        model: str,
        timeout_s: float | None,
    ) -> None:
        self._events = events
        self._ticket = ticket
        self._user_id = user_id
        self._model = model
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._result: Generated | None = None
        self._over = False
        self.admitted: Admitted | None = None
        """What the answer is generated with; known with the first piece."""

    @property
    def result(self) -> Generated:
        """The whole answer; Unavailable before the end, and when there was none."""
        if self._result is None:
            raise Unavailable("there is no whole answer: read the stream to its end first")
        return self._result

    def __next__(self) -> str:
        while not self._over:
            event = self._next_event()
            match event:
                case Admitted():
                    self.admitted = event
                case Piece():
                    self._text.append(event.text)
                    self._logprobs += event.logprobs
                    if event.text:
                        return event.text
                case Finished():
                    self._over = True
                    self._result = self._generated(event)
                case Failed():
                    self._over = True
                    raise event.error
        raise StopIteration

    def close(self) -> None:
        """Cancel what is left; nothing more comes. Harmless at the end."""
        if not self._over:
            self._over = True
            self._ticket.cancel()

    def __enter__(self) -> GenerationStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _next_event(self) -> Event:
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        try:
            return self._events.get(timeout=left)
        except queue.Empty:
            self.close()
            raise Unavailable(
                f"no whole answer within {self._timeout_s:g} s; ask for fewer tokens or try again"
            ) from None

    def _generated(self, finished: Finished) -> Generated:
        if self.admitted is None:
            raise Unavailable("the request was cancelled before it began")
        choice = self.admitted.choice
        return Generated(
            "".join(self._text),
            self._user_id,
            choice.adapter,
            choice.digest,
            choice.source,
            choice.why,
            self._model,
            finished.reason,
            finished.prompt_tokens,
            finished.completion_tokens,
            self.admitted.cached_tokens,
            self.admitted.queued_ms,
            finished.first_token_ms,
            finished.latency_ms,
            tuple(self._logprobs),
        )


def _prompt(text: str | None, system_prompt: str | None, messages: Sequence[Message] | None) -> Prompt:
    if (text is None) == (messages is None):
        raise InvalidInput("give either text or messages", param="text")
    turns = tuple(messages) if messages is not None else (Message("user", text or ""),)
    return turns if system_prompt is None else (Message("system", system_prompt), *turns)
