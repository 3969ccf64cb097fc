"""WeftClient and AsyncWeftClient: the HTTP API with typed results, version memory and retries.

    with WeftClient("http://127.0.0.1:8000") as weft:
        weft.rate("ada", "stalker-1979", 5.0)
        for entry in weft.recommend("ada").recommendations: ...

Versions. A client remembers the highest version it has seen and sends it with every read, so it reads its
own writes from any replica. If the service turns out to hold another store, the memory is dropped and
ForeignTokenError raised, once: what the caller derived from the other store may be void, so nothing is
retried silently; the next call starts afresh.

Retries, within `deadline_s`: refused connections; errors the service marks retryable, after its Retry-After;
broken connections, read timeouts and 5xx answers without the error shape (made by a proxy) only for calls
that may be repeated. Writes carry an Idempotency-Key and so may be.

What fails raises a WeftAPIError of `deployments.client_errors`.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx
import orjson

from deployments import client_adapters as adapters
from deployments import client_calls as calls
from deployments import client_generation as generation
from deployments import client_keys as keys
from deployments import client_memories as memories
from deployments.client_calls import GENERATION_TIMEOUT_S, Call
from deployments.client_errors import (
    AuthenticationError,
    ConflictError,
    ConnectionFailed,
    ForeignTokenError,
    InternalServerError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    UnavailableError,
    WeftAPIError,
    error_of,
    no_answer,
    shapeless,
)
from deployments.client_generation import (
    AsyncGenerationStream,
    Generated,
    GenerationStream,
)

__all__ = [
    "AsyncWeftClient",
    "AuthenticationError",
    "ConflictError",
    "ConnectionFailed",
    "ForeignTokenError",
    "InternalServerError",
    "InvalidRequestError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "UnavailableError",
    "WeftAPIError",
    "WeftClient",
]

P = ParamSpec("P")
T = TypeVar("T")

_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.05, 5.0


class _Session:
    """What both clients share: the version memory, the building of requests, the judging of outcomes."""

    def __init__(self, deadline_s: float, timeout_s: float, max_attempts: int) -> None:
        self._deadline_s = deadline_s
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts
        self._lock = threading.Lock()
        self._token: tuple[str, int] | None = None

    @property
    def version(self) -> str | None:
        """The highest version seen, as a token."""
        token = self._token
        return None if token is None else f"{token[0]}.{token[1]}"

    def observe(self, version: object) -> None:
        """Remember a token from elsewhere, for example one that another process handed over."""
        if not isinstance(version, str):
            return
        store_id, dot, number = version.rpartition(".")
        if not dot or not number.isdigit():
            return
        with self._lock:
            known = self._token
            if known is None or known[0] != store_id or known[1] < int(number):
                self._token = (store_id, int(number))

    def _request(
        self, http: httpx.Client | httpx.AsyncClient, call: Call[Any], left_s: float
    ) -> httpx.Request:
        headers = dict(call.headers)
        if call.reads and (token := self.version) is not None:
            headers["x-weft-min-version"] = token
        content: Any = None
        if call.body is not None:
            content = orjson.dumps(call.body)
            headers["content-type"] = "application/json"
        elif call.upload is not None:
            content = call.upload.chunks()
            if isinstance(http, httpx.AsyncClient):
                content = _read_in_threads(content)
            headers |= {"content-type": call.upload.content_type, "content-length": str(call.upload.length)}
        return http.build_request(
            call.method,
            call.path,
            params=dict(call.params) or None,
            content=content,
            headers=headers,
            timeout=min(call.timeout_s or self._timeout_s, max(left_s, 0.001)),
        )

    def _deadline(self, call: Call[Any]) -> float:
        return time.monotonic() + max(self._deadline_s, call.timeout_s or 0)

    def _accept(self, call: Call[T], response: httpx.Response) -> T:
        """The parsed answer; raises WeftAPIError."""
        if response.status_code not in call.accepted:
            error = error_of(response)
            if isinstance(error, ForeignTokenError):
                with self._lock:
                    self._token = None
            raise error
        try:
            data = orjson.loads(response.content)
            result = call.parse(data)
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as exception:
            raise shapeless(response, "the answer is not one of this API") from exception
        if isinstance(data, dict):
            self.observe(data.get("version"))
        return result

    def _delay(self, call: Call[Any], error: Exception, attempt: int, left_s: float) -> float:
        """Seconds until the next attempt; raises when there is to be none."""
        retry_after = None
        if isinstance(error, WeftAPIError):
            retry_after = error.retry_after_s
            again = not call.once and (error.retryable or (call.idempotent and error.shapeless))
        else:
            # Nothing was sent when the connection could not be made; anything later may have been executed.
            again = call.idempotent or isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        # Jitter, so that clients that failed together do not return together.
        delay: float = min(_FIRST_DELAY_S * 2 ** (attempt - 1), _LONGEST_DELAY_S) * random.uniform(0.5, 1.0)  # noqa: S311
        if retry_after is not None:
            delay += retry_after
        if not again or attempt >= self._max_attempts or delay >= left_s:
            if isinstance(error, WeftAPIError):
                raise error
            raise no_answer(error) from error
        return delay


def _authorization(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"authorization": f"Bearer {api_key}"}


async def _read_in_threads(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk


def _streamed(call: Call[Generated]) -> Call[Generated]:
    body = {**call.body, "stream": True} if isinstance(call.body, dict) else call.body
    return replace(call, body=body)


def _sync(build: Callable[P, Call[T]]) -> Callable[Concatenate[WeftClient, P], T]:
    @wraps(build)
    def method(self: WeftClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.send(build(*args, **kwargs))

    return method


def _async(build: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncWeftClient, P], Awaitable[T]]:
    @wraps(build)
    async def method(self: AsyncWeftClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.send(build(*args, **kwargs))

    return method


class WeftClient(_Session):
    """The synchronous client; may be shared by threads. `transport` replaces the network in tests."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        deadline_s: float = 30.0,
        timeout_s: float = 10.0,
        max_attempts: int = 6,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(deadline_s, timeout_s, max_attempts)
        self._http = httpx.Client(base_url=base_url, transport=transport, headers=_authorization(api_key))
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def send(self, call: Call[T]) -> T:
        """Send any call of `client_calls`, with retries."""
        end, attempt = self._deadline(call), 0
        while True:
            attempt += 1
            try:
                response = self._http.send(self._request(self._http, call, end - time.monotonic()))
                return self._accept(call, response)
            except (httpx.TransportError, WeftAPIError) as error:
                delay = self._delay(call, error, attempt, end - time.monotonic())
            self._sleep(delay)

    def stream(self, text: str | None = None, **options: Any) -> GenerationStream:
        """An answer as it comes; the arguments are those of `generate`. Not repeated when it breaks."""
        call = _streamed(generation.generate(text, **options))
        request = self._request(self._http, call, GENERATION_TIMEOUT_S)
        try:
            response = self._http.send(request, stream=True)
            if response.status_code != 200:
                response.read()
                response.close()
                self._accept(call, response)
        except httpx.TransportError as error:
            raise no_answer(error) from error
        return GenerationStream(response, self.observe)

    put_user = _sync(calls.put_user)
    get_user = _sync(calls.get_user)
    delete_user = _sync(calls.delete_user)
    list_users = _sync(calls.list_users)
    put_item = _sync(calls.put_item)
    put_items = _sync(calls.put_items)
    get_item = _sync(calls.get_item)
    delete_item = _sync(calls.delete_item)
    list_items = _sync(calls.list_items)
    similar_items = _sync(calls.similar_items)
    rate = _sync(calls.rate)
    rate_many = _sync(calls.rate_many)
    delete_rating = _sync(calls.delete_rating)
    list_ratings = _sync(calls.list_ratings)
    recommend = _sync(calls.recommend)
    recommend_many = _sync(calls.recommend_many)
    recommend_session = _sync(calls.recommend_session)
    embed = _sync(calls.embed)
    search = _sync(calls.search)
    rerank = _sync(calls.rerank)
    cache_statistics = _sync(calls.cache_statistics)
    invalidate_cache = _sync(calls.invalidate_cache)
    embedding = _sync(calls.embedding)
    list_encoders = _sync(calls.list_encoders)
    activate_encoder = _sync(calls.activate_encoder)
    remember = _sync(memories.remember)
    put_memories = _sync(memories.put_memories)
    put_memory = _sync(memories.put_memory)
    get_memory = _sync(memories.get_memory)
    delete_memory = _sync(memories.delete_memory)
    list_memories = _sync(memories.list_memories)
    search_memories = _sync(memories.search_memories)
    relate = _sync(memories.relate)
    relate_many = _sync(memories.relate_many)
    unrelate = _sync(memories.unrelate)
    user_graph = _sync(memories.user_graph)
    context = _sync(memories.context)
    generate = _sync(generation.generate)
    generate_batch = _sync(generation.generate_batch)
    list_models = _sync(generation.list_models)
    list_adapters = _sync(adapters.list_adapters)
    put_adapter = _sync(adapters.put_adapter)
    delete_adapter = _sync(adapters.delete_adapter)
    activate_adapter = _sync(adapters.activate_adapter)
    roll_back_adapter = _sync(adapters.roll_back_adapter)
    adapter_history = _sync(adapters.adapter_history)
    create_key = _sync(keys.create_key)
    list_keys = _sync(keys.list_keys)
    revoke_key = _sync(keys.revoke_key)
    live = _sync(calls.live)
    ready = _sync(calls.ready)
    status = _sync(calls.status)


class AsyncWeftClient(_Session):
    """The asynchronous client; belongs to one event loop."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        deadline_s: float = 30.0,
        timeout_s: float = 10.0,
        max_attempts: int = 6,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(deadline_s, timeout_s, max_attempts)
        self._http = httpx.AsyncClient(
            base_url=base_url, transport=transport, headers=_authorization(api_key)
        )
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        """Send any call of `client_calls`, with retries."""
        end, attempt = self._deadline(call), 0
        while True:
            attempt += 1
            try:
                response = await self._http.send(self._request(self._http, call, end - time.monotonic()))
                return self._accept(call, response)
            except (httpx.TransportError, WeftAPIError) as error:
                delay = self._delay(call, error, attempt, end - time.monotonic())
            await self._sleep(delay)

    async def stream(self, text: str | None = None, **options: Any) -> AsyncGenerationStream:
        """An answer as it comes; the arguments are those of `generate`. Not repeated when it breaks."""
        call = _streamed(generation.generate(text, **options))
        request = self._request(self._http, call, GENERATION_TIMEOUT_S)
        try:
            response = await self._http.send(request, stream=True)
            if response.status_code != 200:
                await response.aread()
                await response.aclose()
                self._accept(call, response)
        except httpx.TransportError as error:
            raise no_answer(error) from error
        return AsyncGenerationStream(response, self.observe)

    put_user = _async(calls.put_user)
    get_user = _async(calls.get_user)
    delete_user = _async(calls.delete_user)
    list_users = _async(calls.list_users)
    put_item = _async(calls.put_item)
    put_items = _async(calls.put_items)
    get_item = _async(calls.get_item)
    delete_item = _async(calls.delete_item)
    list_items = _async(calls.list_items)
    similar_items = _async(calls.similar_items)
    rate = _async(calls.rate)
    rate_many = _async(calls.rate_many)
    delete_rating = _async(calls.delete_rating)
    list_ratings = _async(calls.list_ratings)
    recommend = _async(calls.recommend)
    recommend_many = _async(calls.recommend_many)
    recommend_session = _async(calls.recommend_session)
    embed = _async(calls.embed)
    search = _async(calls.search)
    rerank = _async(calls.rerank)
    cache_statistics = _async(calls.cache_statistics)
    invalidate_cache = _async(calls.invalidate_cache)
    embedding = _async(calls.embedding)
    list_encoders = _async(calls.list_encoders)
    activate_encoder = _async(calls.activate_encoder)
    remember = _async(memories.remember)
    put_memories = _async(memories.put_memories)
    put_memory = _async(memories.put_memory)
    get_memory = _async(memories.get_memory)
    delete_memory = _async(memories.delete_memory)
    list_memories = _async(memories.list_memories)
    search_memories = _async(memories.search_memories)
    relate = _async(memories.relate)
    relate_many = _async(memories.relate_many)
    unrelate = _async(memories.unrelate)
    user_graph = _async(memories.user_graph)
    context = _async(memories.context)
    generate = _async(generation.generate)
    generate_batch = _async(generation.generate_batch)
    list_models = _async(generation.list_models)
    list_adapters = _async(adapters.list_adapters)
    put_adapter = _async(adapters.put_adapter)
    delete_adapter = _async(adapters.delete_adapter)
    activate_adapter = _async(adapters.activate_adapter)
    roll_back_adapter = _async(adapters.roll_back_adapter)
    adapter_history = _async(adapters.adapter_history)
    create_key = _async(keys.create_key)
    list_keys = _async(keys.list_keys)
    revoke_key = _async(keys.revoke_key)
    live = _async(calls.live)
    ready = _async(calls.ready)
    status = _async(calls.status)
