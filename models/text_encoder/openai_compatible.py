"""Text vectors from an endpoint that speaks OpenAI's embeddings API.

https://platform.openai.com/docs/api-reference/embeddings; text-embeddings-inference, vLLM and Ollama answer
the same.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import random
import threading
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np

from graph.errors import InvalidInput, Unavailable, WeftError
from models.text_encoder.protocol import Encoded, Fingerprint, Float32, Int32
from models.text_encoder.texts import checked_prompt, checked_texts

_MAX_BATCH = 256  # the API takes 2,048 inputs, servers of one's own often fewer
_ATTEMPTS = 4
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 8.0
_MESSAGE_CHARS = 200
_PASSING = (408, 424, 425, 429)  # 424: the backend of text-embeddings-inference failed
_ABOUT_TEXTS = (400, 413, 422)


class OpenAICompatibleEncoder:
    """A remote model. Vectors are what the server sends, as float32.

    Nobody here knows the server's weights or window: the fingerprint names server, model, prompt and
    dimensions, the latter learnt by one request at construction.

    Args:
        url: base of the API, such as "http://127.0.0.1:8080/v1".
        model: the name the server knows it by.
        api_key: sent as a bearer token; in no message and no log.
        dimensions: asked of the server, which must be able to shorten; None takes the model's own.
        max_batch: texts per request.
        timeout_s: per attempt. There are four attempts for what may pass: 408, 424, 425, 429, 5xx, no
            connection, too slow.
        prompt: stands before texts whose caller gives none.

    Raises:
        InvalidInput: no model, a url that is none, or the server refuses the texts (400, 413, 422).
        Unavailable: the server does not answer, or not us (401, 403, 404), or with no vectors.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        dimensions: int | None = None,
        max_batch: int = _MAX_BATCH,
        timeout_s: float = 30.0,
        prompt: str = "",
    ) -> None:
        if not model.strip():
            raise InvalidInput("the text model has no name; give the name the server knows", param="model")
        base = checked_url(url)
        if max_batch < 1:
            raise InvalidInput(f"max_batch is {max_batch}; must be at least 1", param="max_batch")
        own_prompt = checked_prompt(prompt, "")
        if api_key is not None and not api_key.isascii():
            raise InvalidInput("api_key holds characters that a header cannot", param="api_key")
        if not model.isprintable():
            raise InvalidInput("the text model's name holds characters that cannot be printed", param="model")
        self._endpoint = f"{base}/embeddings"
        self._model = model
        self._asked_dimensions = dimensions
        self._max_batch = max_batch
        self._timeout_s = timeout_s
        self._api_key = api_key or ""
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(headers=headers, timeout=timeout_s)
        self._pause = threading.Event()
        try:
            vectors, _ = self._request(["dimensions"], dimensions, 0)
        except BaseException:
            self._client.close()
            raise
        self.fingerprint = Fingerprint(
            model=model,
            # Whose model it is, in place of its files: two servers may know two models by one name.
            weights="url:" + hashlib.sha256(base.encode()).hexdigest(),
            pooling="remote",
            normalized=bool(abs(float(np.linalg.norm(vectors[0])) - 1) < 1e-3),
            prompt=own_prompt,
            dimensions=vectors.shape[1],
            max_tokens=0,
            dtype="remote",
        )

    def encode(self, texts: Sequence[str], prompt: str | None = None) -> Float32:
        return self.encode_counted(texts, prompt).vectors

    def encode_counted(
        self, texts: Sequence[str], prompt: str | None = None, *, truncate: bool = True
    ) -> Encoded:
        """Tokens are the server's count when a request has one distinct text, else -1.

        Whether a text is cut is the server's decision: `truncate=False` is refused as InvalidInput, since it
        cannot be kept.
        """
        chosen = checked_prompt(prompt, self.fingerprint.prompt)
        place: dict[str, int] = {}
        rows = np.array([place.setdefault(text, len(place)) for text in checked_texts(texts)], np.intp)
        if not truncate:
            raise InvalidInput(
                f"the endpoint of {self._model} does not say whether it truncates; leave truncate on",
                param="truncate",
            )
        distinct = [chosen + text for text in place]
        vectors = np.zeros((len(distinct), self.fingerprint.dimensions), np.float32)
        tokens: Int32 = np.full(len(distinct), -1, np.int32)
        for start in range(0, len(distinct), self._max_batch):
            batch = distinct[start : start + self._max_batch]
            found, counted = self._request(batch, self.fingerprint.dimensions, start)
            vectors[start : start + len(batch)] = found
            if len(batch) == 1:
                tokens[start] = counted
        return Encoded(vectors[rows], tokens[rows])

    def close(self) -> None:
        """Close the connections; requests that wait for another attempt give up."""
        self._pause.set()
        self._client.close()

    def __repr__(self) -> str:
        return f"OpenAICompatibleEncoder({self._endpoint!r}, {self._model!r})"

    def _request(self, texts: list[str], dimensions: int | None, first: int) -> tuple[Float32, int]:
        body: dict[str, Any] = {"model": self._model, "input": texts, "encoding_format": "base64"}
        if self._asked_dimensions is not None:
            body["dimensions"] = self._asked_dimensions
        reason, retry_after_s = "", 0.0
        for attempt in range(_ATTEMPTS):
            if attempt:
                backoff_s = _FIRST_PAUSE_S * 2 ** (attempt - 1) * random.uniform(0.8, 1.2)  # noqa: S311
                # An event rather than a sleep: closing ends the pause.
                if self._pause.wait(min(max(backoff_s, retry_after_s), _LONGEST_PAUSE_S)):
                    break
            try:
                response = self._client.post(self._endpoint, json=body)
            except httpx.TimeoutException:
                reason, retry_after_s = f"no answer within {self._timeout_s:g} s", 0.0
                continue
            except (httpx.TransportError, httpx.DecodingError) as error:
                reason, retry_after_s = f"no connection ({type(error).__name__})", 0.0
                continue
            if response.status_code in _PASSING or response.status_code >= 500:
                reason = f"status {response.status_code}"
                retry_after_s = _retry_after_s(response)
                continue
            if not response.is_success:
                raise self._refusal(response)
            return self._vectors(response, len(texts), dimensions, first)
        raise Unavailable(f"{self._endpoint} failed {_ATTEMPTS} times, last with {reason}; try again later")

    def _refusal(self, response: httpx.Response) -> WeftError:
        """Only what the server says of the texts is the caller's doing; the message may reach clients."""
        message = _server_message(response)
        if self._api_key:
            message = message.replace(self._api_key, "[key]")
        message = message[:_MESSAGE_CHARS] or "no message"
        if response.status_code in _ABOUT_TEXTS:
            return InvalidInput(
                f"the endpoint of {self._model} refuses with status {response.status_code}: {message}",
                param="texts",
            )
        return Unavailable(
            f"{self._endpoint} refused with status {response.status_code}: {message}; check the model's name"
            " and the key"
        )

    def _vectors(
        self, response: httpx.Response, count: int, dimensions: int | None, first: int
    ) -> tuple[Float32, int]:
        try:
            body = response.json()
            entries = sorted(body["data"], key=lambda entry: int(entry["index"]))
            places = [int(entry["index"]) for entry in entries]
            found = [_vector(entry["embedding"]) for entry in entries]
            tokens = int((body.get("usage") or {}).get("prompt_tokens", -1))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, binascii.Error) as error:
            raise self._nonsense(f"not the embeddings' shape ({type(error).__name__})") from error
        if places != list(range(count)):
            raise self._nonsense(f"{len(places)} vectors, or others than asked for, for {count} texts")
        expected = dimensions if dimensions is not None else len(found[0])
        for place, vector in enumerate(found):
            if len(vector) != expected or not expected:
                raise self._nonsense(f"{len(vector)} dimensions for text {first + place}, not {expected}")
            if not np.isfinite(vector).all():
                raise self._nonsense(f"components that are not finite for text {first + place}")
        return np.stack(found), tokens

    def _nonsense(self, what: str) -> Unavailable:
        return Unavailable(f"{self._endpoint} answered with {what}; check that the url is an embeddings API")


def checked_url(url: str) -> str:
    """Scheme, host, port and path of an endpoint, the first two in lower case, without a slash at the end.

    Raises InvalidInput for anything else, credentials included: they would end up in logs and in the store.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        # What the library says may quote a password.
        raise InvalidInput("url cannot be read; write it as http://host:8080/v1", param="url") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidInput("url must start with http:// or https:// and name a host", param="url")
    if parsed.userinfo:
        raise InvalidInput("url holds a user or password; give the key apart, as api_key", param="url")
    if parsed.query or parsed.fragment:
        raise InvalidInput("url ends with its path; leave out what follows ? or #", param="url")
    return str(parsed).rstrip("/")


def _vector(embedding: Any) -> Float32:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype(np.float32)
    vector = np.asarray(embedding, np.float32)
    if vector.ndim != 1:
        raise ValueError("an embedding is a flat list of numbers")
    return vector


def _retry_after_s(response: httpx.Response) -> float:
    # A date is allowed too, but no server of this kind sends one: the backoff stands in.
    try:
        seconds = float(response.headers.get("retry-after", "0"))
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def _server_message(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        message = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        message = response.text
    return str(message).strip()
