"""Generation as the clients see it: the calls, what they answer, and streams of text."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NotRequired, TypedDict

import httpx
import orjson

from deployments.client_calls import GENERATION_TIMEOUT_S, Call, given
from deployments.client_errors import error_from, no_answer, shapeless
from deployments.client_results import build


class Turn(TypedDict):
    """One message of a conversation: `role` is "system", "user" or "assistant"."""

    role: str
    content: str


class BlendPart(TypedDict):
    """An adapter of a blend, by reference such as `domain/films`, and its weight (default 1)."""

    adapter: str
    weight: NotRequired[float]


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer of the language model, and what it was made with.

    `adapter` is a reference such as `user/ada/v2`, None for the base model; `why` says who chose it.
    """

    output: str
    user_id: str | None
    model: str
    adapter: str | None
    digest: str | None
    source: str
    why: str
    finish_reason: str
    tokens: Mapping[str, int]  # "prompt", "completion", "cached"
    queued_ms: float
    first_token_ms: float
    latency_ms: float
    version: str
    context: Mapping[str, Any] | None = None  # "sources" (kind, id), "tokens", "missing", "version"
    logprobs: tuple[Mapping[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True)
class GenerationFailure:
    """An item of a batch that could not be answered."""

    code: str
    message: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Model:
    """What `model` of a generation may name."""

    id: str


def generate(
    text: str | None = None,
    *,
    messages: Sequence[Turn] | None = None,
    user_id: str | None = None,
    system_prompt: str | None = None,
    domain: str | None = None,
    adapter: str | None = None,
    blend: Sequence[BlendPart] | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    logprobs: int | None = None,
    use_context: bool | None = None,
    max_context_tokens: int | None = None,
    explain_item: str | None = None,
) -> Call[Generated]:
    """An answer to a text, or to the last of `messages`, with the adapter of the user or the one named.

    What is known about the user is part of the prompt unless `use_context` is False; with `explain_item` and
    nothing to answer, why that item is suggested.
    """
    body = given(
        text=text,
        messages=None if messages is None else list(messages),
        user_id=user_id,
        system_prompt=system_prompt,
        domain=domain,
        adapter=adapter,
        blend=None if blend is None else list(blend),
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=[stop] if isinstance(stop, str) else stop,
        logprobs=logprobs,
        use_context=use_context,
        max_context_tokens=max_context_tokens,
        explain_item=explain_item,
    )
    # Repeating it costs a whole generation: only what the service asks to repeat is repeated.
    return Call(
        "POST", "/v1/generate", generated_of, body=body, idempotent=False, timeout_s=GENERATION_TIMEOUT_S
    )


def generate_batch(
    requests: Iterable[Mapping[str, Any]],
) -> Call[tuple[Generated | GenerationFailure, ...]]:
    """Answers to up to 64 requests, in their order; each has the arguments of `generate`."""

    def parse(data: Any) -> tuple[Generated | GenerationFailure, ...]:
        return tuple(
            build(GenerationFailure, entry["error"]) if "error" in entry else generated_of(entry)
            for entry in data["results"]
        )

    body = {"requests": [dict(request) for request in requests]}
    return Call(
        "POST", "/v1/generate/batch", parse, body=body, idempotent=False, timeout_s=GENERATION_TIMEOUT_S
    )


def list_models() -> Call[tuple[Model, ...]]:
    """The base model, then the references of adapters that are active somewhere."""
    return Call(
        "GET",
        "/v1/models",
        lambda data: tuple(Model(entry["id"]) for entry in data["data"]),
    )


def generated_of(data: Mapping[str, Any]) -> Generated:
    known = {f.name for f in fields(Generated)}
    values = {name: value for name, value in data.items() if name in known}
    if values.get("logprobs") is not None:
        values["logprobs"] = tuple(values["logprobs"])
    return Generated(**values)


# ------------------------------------------------------------------------------------------------- streams


class _Stream:
    """The events of a stream: `{"started"}`, `{"text"}`s, `{"finished"}` or `{"error"}`."""

    def __init__(self, observe: Callable[[object], None]) -> None:
        self._observe = observe
        self._result: Generated | None = None
        self.started: Mapping[str, Any] = {}
        """What the answer is made with: adapter, digest, source, why, model, version."""

    @property
    def result(self) -> Generated:
        """The whole answer, once the stream has ended."""
        if self._result is None:
            raise RuntimeError("the stream has not ended: read it to its end first")
        return self._result

    def _text_of(self, line: str, response: httpx.Response) -> str:
        """Text of one line of the stream, mostly empty; raises WeftAPIError for the service's error."""
        if not line.startswith("data:"):
            return ""
        data = line[5:].strip()
        if data == "[DONE]":
            return ""
        try:
            event = orjson.loads(data)
            if "error" in event:
                raise error_from(event["error"], response.status_code)
            if "started" in event:
                self.started = event["started"]
            if "finished" in event:
                self._result = generated_of(event["finished"])
                self._observe(self._result.version)
            text = event.get("text", "")
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as exception:
            raise shapeless(response, "the stream holds something that is not of this API") from exception
        if not isinstance(text, str):
            raise shapeless(response, "the stream holds something that is not of this API")
        return text

    def _ended(self, response: httpx.Response) -> None:
        if self._result is None:
            raise shapeless(response, "the stream broke off before its end")


class GenerationStream(_Stream):
    """Iterate over it for pieces of text as they come; closing it stops the generation."""

    def __init__(self, response: httpx.Response, observe: Callable[[object], None]) -> None:
        super().__init__(observe)
        self._response = response

    def __enter__(self) -> GenerationStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._response.close()

    def __iter__(self) -> Iterator[str]:
        try:
            for line in self._response.iter_lines():
                if text := self._text_of(line, self._response):
                    yield text
        except httpx.TransportError as error:
            raise no_answer(error) from error
        finally:
            self.close()
        self._ended(self._response)


class AsyncGenerationStream(_Stream):
    """The same for `async for`."""

    def __init__(self, response: httpx.Response, observe: Callable[[object], None]) -> None:
        super().__init__(observe)
        self._response = response

    async def __aenter__(self) -> AsyncGenerationStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._response.aclose()

    async def __aiter__(self) -> AsyncIterator[str]:
        try:
            async for line in self._response.aiter_lines():
                if text := self._text_of(line, self._response):
                    yield text
        except httpx.TransportError as error:
            raise no_answer(error) from error
        finally:
            await self.aclose()
        self._ended(self._response)
