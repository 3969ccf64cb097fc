"""Generation by a server that speaks OpenAI's API, such as vLLM or Ray Serve LLM.

An adapter goes as the model's name. All requests share one event loop, on a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from typing import cast

import httpx

from graph.errors import InvalidInput, Overloaded, TextTooLong, Unavailable, WeftError
from models.language_model.openai_format import (
    ServerError,
    read_chunk,
    read_error,
    request_body,
)
from models.language_model.opening import LanguageModelSpec
from models.language_model.protocol import (
    AdapterChoice,
    Admitted,
    Event,
    Failed,
    FinishReason,
    GenerationRequest,
    Listener,
    Prompt,
)
from models.language_model.remote_ticket import RemoteTicket
from models.language_model.server_sent_events import EventStreamReader
from models.text_encoder.openai_compatible import checked_url

log = logging.getLogger(__name__)

_DIGEST = "{digest}"
_CONNECT_S = 10.0
_IDLE_S = 2.0
"""Connections are kept for so long: less than servers do, or a request meets one that is being closed."""
_DRAIN_S = 0.2
_MAX_ERROR_BYTES = 1 << 16
_MESSAGE_CHARS = 200
_ABOUT_REQUEST = (400, 413, 422)
_NOT_US = (401, 403)


class OpenAICompatibleModel:
    """A `LanguageBackend` in front of a server. One adapter of weight 1 per request, or none.

    An adapter that the server does not know (404) is passed over, down the cascade. An answer has `timeout_s`
    of the spec, counted from its submission, waiting included. `Admitted.queued_ms` ends with the server's
    first word; the prompt's tokens are known at the end alone. A server that sends no usage has its answer's
    tokens counted: those with log-probabilities, else a piece as one.

    Args:
        spec: name and url of the model; the key is sent as a bearer token and is in no message and no log.
        max_running: requests at the server at once.
        max_queued: requests that wait here beside them; one more is refused as Overloaded.
        adapter_names: what the server calls an adapter; vLLM as it was loaded, Ray Serve LLM
            "its-model-id:{digest}".

    Raises InvalidInput for a name that cannot be printed, a url that is none, a key that no header can carry,
    sizes below one, names without "{digest}".
    """

    device = "remote"

    def __init__(
        self,
        spec: LanguageModelSpec,
        *,
        max_running: int = 64,
        max_queued: int = 256,
        adapter_names: str = _DIGEST,
    ) -> None:
        if not spec.model.isprintable():
            raise InvalidInput("the language model's name holds unprintable characters", param="model")
        self._key = spec.api_key or ""
        if not (self._key.isascii() and self._key.isprintable()) or " " in self._key:
            raise InvalidInput("api_key holds white space or characters that no header can", param="api_key")
        if min(max_running, max_queued) < 1:
            raise InvalidInput(f"max_running {max_running}, max_queued {max_queued}: must be at least 1")
        if _DIGEST not in adapter_names:
            raise InvalidInput(f"adapter_names is {adapter_names!r}; it must hold {_DIGEST}")
        self.model_name = spec.model
        self._url = checked_url(spec.url)
        self._timeout_s = spec.timeout_s
        self._max_running, self._max_queued = max_running, max_queued
        self._adapter_names = adapter_names
        # Reentrant: a stream that is collected while the lock is held cancels its request.
        self._lock = threading.RLock()
        self._num_open = self._num_running = self._num_tokens = 0
        self._closed = self._over = False
        self._tasks: set[asyncio.Task[FinishReason]] = set()
        self._slots = asyncio.Semaphore(max_running)
        self._stopping = asyncio.Event()
        # A compressed stream would hold pieces back until there are enough of them.
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(None, connect=min(_CONNECT_S, spec.timeout_s)),
            limits=httpx.Limits(max_connections=max_running, keepalive_expiry=_IDLE_S),
            follow_redirects=False,  # another host is not to see the key
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="openai-model", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest, listener: Listener) -> RemoteTicket:
        if request.sampling.ignore_eos:
            raise InvalidInput("a server cannot be asked to ignore the end of an answer", param="ignore_eos")
        ticket = RemoteTicket(request, listener, self._call)
        with self._lock:
            if self._closed:
                raise Unavailable("the language model is closed")
            if self._num_open >= self._max_running + self._max_queued:
                raise Overloaded(f"{self._num_open} requests are running or waiting; try again later")
            self._num_open += 1
            # With the lock: what is scheduled before the end is heard of, see `_main`.
            self._loop.call_soon_threadsafe(self._start, ticket)
        return ticket

    def count_tokens(self, text: str) -> int:
        raise Unavailable(f"only the server of {self.model_name} can count its tokens")

    def room_for_context(self, prompt: Prompt, max_tokens: int | None) -> None:
        """Nobody here knows the server's window, nor its tokens."""

    def status(self) -> dict[str, object]:
        with self._lock:
            running = self._num_running
            return {
                "backend": "openai",
                "model": self.model_name,
                "device": self.device,
                "url": self._url,
                "max_batch": self._max_running,
                "running": running,
                "queued": self._num_open - running,
                "max_queued": self._max_queued,
                "tokens_generated": self._num_tokens,
            }

    def close(self) -> None:
        """Fail what is open and close the connections. From a listener it returns before that is done."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._loop.call_soon_threadsafe(self._stopping.set)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __repr__(self) -> str:
        return f"OpenAICompatibleModel({self._url!r}, {self.model_name!r})"

    # --- The loop's thread ---

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        async with self._client:
            await self._stopping.wait()
            tasks = tuple(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with self._lock:
                self._over = True

    def _call(self, callback: Callable[[], None]) -> None:
        """Run `callback` on the loop, unless that has ended."""
        with self._lock:
            if not self._over:
                self._loop.call_soon_threadsafe(callback)

    def _start(self, ticket: RemoteTicket) -> None:
        ticket.task = self._loop.create_task(self._answer(ticket))
        self._tasks.add(ticket.task)
        # Not in the task: one that is cancelled before its first step runs none of its code.
        ticket.task.add_done_callback(partial(self._ended, ticket))

    def _ended(self, ticket: RemoteTicket, task: asyncio.Task[FinishReason]) -> None:
        """The one place where a request ends, however it did."""
        self._tasks.discard(task)
        last = self._last_event(ticket, task)
        ticket.task = None
        with self._lock:
            self._num_open -= 1
            self._num_tokens += ticket.completion_tokens
        ticket.tell(last)

    def _last_event(self, ticket: RemoteTicket, task: asyncio.Task[FinishReason]) -> Event:
        if task.cancelled():
            if self._closed:
                return Failed(Unavailable("the language model was closed"))
            return ticket.finished("cancelled")
        match task.exception():
            case None:
                return ticket.finished(task.result())
            case WeftError() as error:
                return Failed(error)
            case TimeoutError():
                return Failed(
                    Unavailable(
                        f"no whole answer within {self._timeout_s:g} s; ask for fewer tokens or try again"
                    )
                )
            case httpx.TransportError() | httpx.DecodingError() as error:
                return Failed(
                    Unavailable(f"{self._url}: no connection ({type(error).__name__}); try again later")
                )
            case error:
                request_id, trace = ticket.request.request_id, "".join(traceback.format_exception(error))
                log.error("request %s failed unexpectedly: %s", request_id, self._without_key(trace))
                return Failed(Unavailable(f"unexpected {type(error).__name__}, see the log"))

    async def _answer(self, ticket: RemoteTicket) -> FinishReason:
        async with asyncio.timeout(self._timeout_s - ticket.age_s()), self._slots:
            self._num_running += 1
            try:
                return await self._attempts(ticket)
            finally:
                self._num_running -= 1

    async def _attempts(self, ticket: RemoteTicket) -> FinishReason:
        """Down the cascade, past adapters that the server does not know."""
        path = "completions" if isinstance(ticket.request.prompt, str) else "chat/completions"
        failed: dict[str, str] = {}
        while True:
            choice = ticket.request.choose(failed)
            body = request_body(ticket.request, self._name_of(choice))
            async with self._client.stream(
                "POST", f"{self._url}/{path}", content=body, headers={"Content-Type": "application/json"}
            ) as response:
                if response.is_success:
                    return await self._read(ticket, choice, response)
                said = await _error_of(response)
            unknown = response.status_code == 404 or said.is_unknown_model
            if not unknown or choice.digest is None or choice.digest in failed:
                raise self._refusal(response.status_code, said)
            failed[choice.digest] = "the server does not know it"

    def _name_of(self, choice: AdapterChoice) -> str:
        if not choice.parts:
            return self.model_name
        if len(choice.parts) > 1 or choice.parts[0].weight != 1:
            raise InvalidInput(
                f"the server of {self.model_name} takes one adapter of weight 1: name it as adapter, "
                "without a blend",
                param="blend",
            )
        return self._adapter_names.replace(_DIGEST, choice.parts[0].digest)

    async def _read(
        self, ticket: RemoteTicket, choice: AdapterChoice, response: httpx.Response
    ) -> FinishReason:
        ticket.tell(Admitted(choice, 0, 0, ticket.age_s() * 1e3))
        events = EventStreamReader()
        reason: FinishReason | None = None
        num_top = ticket.request.sampling.logprobs
        async with _bytes_of(response) as chunks:
            async for raw in chunks:
                for data in events.feed(raw):
                    if data == "[DONE]":
                        await _drain(chunks)
                        break
                    chunk = read_chunk(data, num_top)
                    if chunk.error is not None:
                        said = self._shown(chunk.error)
                        raise Unavailable(f"the server of {self.model_name} failed in the middle: {said}")
                    ticket.take(chunk)
                    reason = chunk.reason or reason
        if reason is None:
            raise Unavailable(f"{self._url} ended its answer in the middle; try again")
        return reason

    def _refusal(self, status: int, said: ServerError) -> WeftError:
        """Only what the server says of the request is the caller's doing; messages may reach clients."""
        server, text = f"the server of {self.model_name}", self._shown(said.message)
        if status in _ABOUT_REQUEST:
            kind = TextTooLong if said.is_too_long else InvalidInput
            return kind(f"{server} refuses with status {status}: {text}")
        if status == 429:
            return Overloaded(f"{server} is overloaded; try again later")
        if status in _NOT_US:
            log.warning("%s refused us with status %d; check the key", self._url, status)
        if 300 <= status < 400:
            text = "redirects are not followed; give the url they lead to"
        return Unavailable(f"{self._url} failed with status {status}: {text}")

    def _shown(self, text: str) -> str:
        """On one line, without the key, and not long."""
        return " ".join(self._without_key(text).split())[:_MESSAGE_CHARS] or "no message"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _bytes_of(response: httpx.Response) -> AbstractAsyncContextManager[AsyncGenerator[bytes, None]]:
    # Closed where it is left, and not when somebody lets go of the exception that left it.
    return aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_bytes()))


async def _error_of(response: httpx.Response) -> ServerError:
    raw = bytearray()
    async with _bytes_of(response) as chunks:
        async for chunk in chunks:
            raw += chunk
            if len(raw) > _MAX_ERROR_BYTES:
                break
    return read_error(bytes(raw[:_MAX_ERROR_BYTES]))


async def _drain(chunks: AsyncGenerator[bytes, None]) -> None:
    """Read to the end of a body whose last word was said, so that the connection can be used again."""
    try:
        async with asyncio.timeout(_DRAIN_S):
            async for _ in chunks:
                pass
    except (TimeoutError, httpx.TransportError):
        # The answer is whole; only the connection is lost.
        return
