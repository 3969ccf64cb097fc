"""Generation by a server that speaks OpenAI's API, such as vLLM or Ray Serve LLM.

An adapter goes as the model's name, which is its digest. All requests share one event loop on a thread.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from graph.errors import InvalidInput, Overloaded, Unavailable, WeftError
from models.language_model.protocol import (
    AdapterChoice,
    Admitted,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    Listener,
    Piece,
    Sampling,
    TokenLogprob,
)
from models.text_encoder.openai_compatible import checked_url

log = logging.getLogger(__name__)

_MAX_LINE_BYTES = 1 << 20
_MESSAGE_CHARS = 200


class RemoteSpec(Protocol):
    """Where the server is; `opening.LanguageModelSpec`."""

    @property
    def model(self) -> str: ...
    @property
    def url(self) -> str | None: ...
    @property
    def api_key(self) -> str | None: ...
    @property
    def timeout_s(self) -> float: ...


@dataclass(eq=False)
class _Ticket:
    """`task` is set and read on the loop only."""

    backend: OpenAICompatibleModel
    task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        # A turn later: a task that is cancelled before its first step would never tell its listener.
        loop = self.backend._loop
        self.backend._on_loop(lambda: loop.call_soon(self._stop))

    def _stop(self) -> None:
        if self.task is not None:
            self.task.cancel()


class OpenAICompatibleModel:
    """A `LanguageBackend` in front of a server. One adapter of weight 1 per request, or none.

    Raises InvalidInput for a model without name, a url that is none, a key that no header can carry.
    """

    device = "remote"

    def __init__(self, spec: RemoteSpec, *, max_running: int = 64, max_queued: int = 256) -> None:
        if not spec.model.strip() or not spec.model.isprintable():
            raise InvalidInput("the language model has no printable name; give the server's", param="model")
        if spec.api_key is not None and not spec.api_key.isascii():
            raise InvalidInput("api_key holds characters that a header cannot", param="api_key")
        self.model_name = spec.model
        self._url = checked_url(spec.url or "")
        self._key = spec.api_key or ""
        self._timeout_s = spec.timeout_s
        self._max_running, self._max_queued = max_running, max_queued
        self._lock = threading.Lock()
        self._open = self._running = self._done = 0
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._slots = asyncio.Semaphore(max_running)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.AsyncClient(
            headers=headers, timeout=spec.timeout_s, limits=httpx.Limits(max_connections=max_running)
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai-model", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest, listener: Listener) -> _Ticket:
        if request.sampling.ignore_eos:
            raise InvalidInput("the server cannot be asked to ignore the end", param="ignore_eos")
        ticket = _Ticket(self)
        with self._lock:
            if self._closed:
                raise Unavailable("the language model is closed")
            if self._open >= self._max_running + self._max_queued:
                raise Overloaded(f"{self._open} requests are running or waiting; try again later")
            self._open += 1

        def start() -> None:
            ticket.task = self._loop.create_task(self._answer(request, listener))
            self._tasks.add(ticket.task)
            ticket.task.add_done_callback(self._tasks.discard)

        self._on_loop(start)
        return ticket

    def count_tokens(self, text: str) -> int:
        raise Unavailable(f"only the server of {self.model_name} can count its tokens")

    def status(self) -> dict[str, object]:
        with self._lock:
            return {
                "backend": "openai",
                "model": self.model_name,
                "device": self.device,
                "url": self._url,
                "running": self._running,
                "queued": self._open - self._running,
                "max_queued": self._max_queued,
                "finished": self._done,
            }

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    def _on_loop(self, call: Any) -> None:
        with self._lock:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(call)

    async def _answer(self, request: GenerationRequest, listener: Listener) -> None:
        run = _Run(request, listener)
        try:
            async with self._slots:
                self._running += 1
                try:
                    await self._attempts(run)
                finally:
                    self._running -= 1
        except asyncio.CancelledError:
            closed = Failed(Unavailable("the language model was closed"))
            listener(closed if self._closed else run.finished("cancelled"))
        except WeftError as error:
            listener(Failed(error))
        except httpx.TimeoutException:
            listener(Failed(Unavailable(f"{self._url} said nothing for {self._timeout_s:g} s; try again")))
        except (httpx.TransportError, httpx.DecodingError) as error:
            listener(Failed(Unavailable(f"{self._url}: no connection ({type(error).__name__}); try again")))
        finally:
            with self._lock:
                self._open -= 1
                self._done += 1

    async def _attempts(self, run: _Run) -> None:
        """Down the cascade past adapters that the server does not know."""
        failed: dict[str, str] = {}
        while True:
            choice = run.request.choose(failed)
            if len(choice.parts) > 1 or any(part.weight != 1 for part in choice.parts):
                raise InvalidInput("this backend takes one adapter of weight 1 and no blends", param="blend")
            body = _body(run.request, choice.digest or self.model_name)
            path = "completions" if isinstance(run.request.prompt, str) else "chat/completions"
            async with self._client.stream("POST", f"{self._url}/{path}", json=body) as response:
                if response.status_code == 404 and choice.digest and choice.digest not in failed:
                    failed[choice.digest] = "the server does not know it"
                    continue
                if not response.is_success:
                    raise await self._refusal(response)
                run.admitted(choice)
                async for data in _sse(response):
                    if data == "[DONE]":
                        break
                    run.take(data, self._key)
            if run.reason is None:
                raise Unavailable(f"{self._url} ended its answer in the middle; try again")
            run.listener(run.finished(run.reason))
            return

    async def _refusal(self, response: httpx.Response) -> WeftError:
        raw = b""
        async for chunk in response.aiter_bytes():
            raw += chunk
            if len(raw) > _MAX_LINE_BYTES:
                break
        try:
            error = json.loads(raw)["error"]
            text = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError):
            text = raw.decode(errors="replace")
        text, status = _safe(text, self._key), response.status_code
        if status in (400, 413, 422):
            return InvalidInput(f"the server of {self.model_name} refuses with status {status}: {text}")
        if status == 429:
            return Overloaded(f"the server of {self.model_name} is overloaded; try again later")
        if status in (401, 403):
            log.warning("%s refused us with status %d; check the key", self._url, status)
        return Unavailable(f"{self._url} failed with status {status}: {text}")


class _Run:
    """What has come of an answer."""

    def __init__(self, request: GenerationRequest, listener: Listener) -> None:
        self.request, self.listener = request, listener
        self.reason: FinishReason | None = None
        self._began = time.monotonic()
        self._first_ms = 0.0
        self._prompt_tokens = self._completion_tokens = self._pieces = 0

    def admitted(self, choice: AdapterChoice) -> None:
        self.listener(Admitted(choice, 0, 0, self._ms()))  # the server counts at the end

    def finished(self, reason: FinishReason) -> Finished:
        tokens = self._completion_tokens or self._pieces
        return Finished(reason, self._prompt_tokens, tokens, self._first_ms, self._ms())

    def take(self, data: str, key: str) -> None:
        """One event of the stream; raises Unavailable for an error or what is no chunk."""
        try:
            chunk = json.loads(data)
            if chunk.get("error"):
                error = chunk["error"]
                message = str(error.get("message") if isinstance(error, dict) else error)
                raise Unavailable(f"the server failed in the middle: {_safe(message, key)}")
            if usage := chunk.get("usage"):
                self._prompt_tokens = int(usage["prompt_tokens"])
                self._completion_tokens = int(usage["completion_tokens"])
            for choice in chunk.get("choices") or ():
                text = choice["text"] if "text" in choice else (choice.get("delta") or {}).get("content")
                logprobs = _logprobs(choice.get("logprobs"))
                if text or logprobs:
                    self._first_ms = self._first_ms or self._ms()
                    self._pieces += 1
                    self.listener(Piece(str(text or ""), (), logprobs))
                if reason := choice.get("finish_reason"):
                    self.reason = "length" if reason == "length" else "stop"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unavailable(f"the server sent no chunk of an answer ({type(error).__name__})") from error

    def _ms(self) -> float:
        return (time.monotonic() - self._began) * 1e3


def _body(request: GenerationRequest, model: str) -> dict[str, Any]:
    sampling, prompt = request.sampling, request.prompt
    usage = {"include_usage": True}
    body: dict[str, Any] = {"model": model, "stream": True, "stream_options": usage}
    if isinstance(prompt, str):
        body["prompt"] = prompt
        if sampling.logprobs is not None:
            body["logprobs"] = sampling.logprobs
    else:
        body["messages"] = [{"role": turn.role, "content": turn.content} for turn in prompt]
        if sampling.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    body |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    # The last three are extensions of vLLM: other servers refuse them, so only what is asked for is sent.
    defaults = Sampling()
    for name in ("max_tokens", "seed", "top_k", "min_p", "repetition_penalty"):
        if (value := getattr(sampling, name)) != getattr(defaults, name):
            body[name] = value
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    return body


async def _sse(response: httpx.Response) -> AsyncIterator[str]:
    """Data of each event. Lines end with LF or CRLF, however they were cut into chunks."""
    rest, data = b"", list[str]()
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES or any(len(line) > _MAX_LINE_BYTES for line in lines):
            raise Unavailable(f"the server sent a line of more than {_MAX_LINE_BYTES} bytes")
        for raw in lines:
            line = raw.rstrip(b"\r").decode(errors="replace")
            if line.startswith("data:"):
                data.append(line[5:].removeprefix(" "))
            elif not line and data:
                yield "\n".join(data)
                data = []


def _logprobs(found: Any) -> tuple[TokenLogprob, ...]:
    """Of chat (entries with alternatives) and of completions (parallel lists). No ids are sent: -1."""
    if not found:
        return ()
    if found.get("content"):
        return tuple(
            TokenLogprob(
                entry["token"],
                -1,
                float(entry["logprob"]),
                tuple((top["token"], -1, float(top["logprob"])) for top in entry.get("top_logprobs") or ()),
            )
            for entry in found["content"]
        )
    tokens = found.get("tokens") or []
    tops = found.get("top_logprobs") or [{}] * len(tokens)
    return tuple(
        TokenLogprob(token, -1, float(value), tuple((t, -1, float(p)) for t, p in (top or {}).items()))
        for token, value, top in zip(tokens, found.get("token_logprobs") or [], tops, strict=True)
    )


def _safe(text: str, key: str) -> str:
    return (text.replace(key, "[key]") if key else text)[:_MESSAGE_CHARS] or "no message"
