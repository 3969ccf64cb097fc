"""Requests, chunks of answers and errors as OpenAI's API writes them: chat, and the older completions.

https://platform.openai.com/docs/api-reference/chat and .../completions
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from graph.errors import InvalidInput, Unavailable
from models.language_model.prompt_context import with_system_context
from models.language_model.protocol import FinishReason, GenerationRequest, Sampling, TokenLogprob

_NO_ID = -1  # servers send tokens as text
_TOO_LONG = ("context_length_exceeded", "text_too_long")
_UNKNOWN_MODEL = ("model_not_found", "unknown_adapter")
_GAVE_UP = ("abort", "error", "cancelled")
"""Reasons some servers give for ends that are none."""


def request_body(request: GenerationRequest, model: str) -> bytes:
    """JSON that asks `model` for a stream with its usage.

    A text goes as `prompt`, a conversation as `messages`. Only what differs from the defaults is sent of the
    fields that are not everybody's: `top_k`, `min_p` and `repetition_penalty` are vLLM's, and other servers
    refuse them. Without `max_tokens` the server's own default holds. A context is part of the system message.
    Raises InvalidInput for a prompt that is no text, and for a context beside a text.
    """
    sampling, prompt = request.sampling, request.prompt
    body: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    if isinstance(prompt, str):
        if request.context:
            raise InvalidInput("a text takes no context: send messages", param="prompt")
        body["prompt"] = prompt
        if sampling.logprobs is not None:
            body["logprobs"] = sampling.logprobs
    else:
        turns = with_system_context(prompt, request.context)
        body["messages"] = [{"role": turn.role, "content": turn.content} for turn in turns]
        if sampling.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    body |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    defaults = Sampling()
    for name in ("max_tokens", "seed", "top_k", "min_p", "repetition_penalty"):
        if (value := getattr(sampling, name)) != getattr(defaults, name):
            body[name] = value
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidInput(
            "the prompt or a stop text holds lone surrogates: send text", param="prompt"
        ) from None


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of a stream. `error` is the server's own text."""

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    reason: FinishReason | None = None
    usage: tuple[int, int] | None = None  # tokens of prompt and answer
    error: str | None = None


def read_chunk(data: str, num_top: int | None) -> Chunk:
    """The chunk in an event's data, with `num_top` alternatives to each token; None: without logprobs.

    Raises Unavailable for what is no chunk.
    """
    try:
        found = json.loads(data)
        if found.get("error"):
            return Chunk(error=read_error(data.encode(errors="replace")).message)
        text, reason = "", None
        logprobs: tuple[TokenLogprob, ...] = ()
        for choice in found.get("choices") or ():
            if choice.get("index", 0) == 0:
                text = (
                    choice["text"] if "text" in choice else (choice.get("delta") or {}).get("content")
                ) or ""
                logprobs = () if num_top is None else _logprobs(choice.get("logprobs") or {}, num_top)
                reason = choice.get("finish_reason")
        if reason in _GAVE_UP:
            return Chunk(error=f"the server gave up ({reason})")
        counted = found.get("usage")
        return Chunk(
            clean_text(text),
            logprobs,
            None if reason is None else "length" if reason == "length" else "stop",
            None if not counted else (_count(counted["prompt_tokens"]), _count(counted["completion_tokens"])),
        )
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise Unavailable(f"the server sent what is no chunk of an answer ({type(error).__name__})") from None


@dataclass(frozen=True, slots=True)
class ServerError:
    """What a server says of a failure, whatever it wraps it in."""

    message: str
    code: str = ""

    @property
    def is_too_long(self) -> bool:
        # vLLM has no code for it.
        return self.code in _TOO_LONG or "context length" in self.message.lower()

    @property
    def is_unknown_model(self) -> bool:
        return self.code in _UNKNOWN_MODEL


def read_error(raw: bytes) -> ServerError:
    """The error in a body: `{"error": {"message", "code"}}`, without the outer layer, or any text."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return ServerError(raw.decode(errors="replace"))
    error = found.get("error", found) if isinstance(found, dict) else found
    if not isinstance(error, dict):
        return ServerError(clean_text(str(error)))
    message = error.get("message") or error.get("detail") or ""
    return ServerError(clean_text(str(message)), str(error.get("code", "")))


def clean_text(text: str) -> str:
    """`text` with lone surrogates replaced, which JSON can hold and UTF-8 cannot. Raises TypeError."""
    if not isinstance(text, str):
        raise TypeError(f"{type(text).__name__} in place of text")
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _logprobs(found: dict[str, Any], num_top: int) -> tuple[TokenLogprob, ...]:
    """Of chat (entries with their alternatives) and of completions (parallel lists)."""
    if found.get("content"):
        return tuple(
            TokenLogprob(
                clean_text(entry["token"]),
                _NO_ID,
                float(entry["logprob"]),
                _top(((top["token"], top["logprob"]) for top in entry.get("top_logprobs") or ()), num_top),
            )
            for entry in found["content"]
        )
    tokens = found.get("tokens") or []
    tops = found.get("top_logprobs") or [{}] * len(tokens)
    return tuple(
        TokenLogprob(clean_text(token), _NO_ID, float(logprob), _top((top or {}).items(), num_top))
        for token, logprob, top in zip(tokens, found.get("token_logprobs") or [], tops, strict=True)
    )


def _top(entries: Iterable[tuple[str, float]], num_top: int) -> tuple[tuple[str, int, float], ...]:
    """Best first. Some servers add the token itself where it is not among the best."""
    found = [(clean_text(token), _NO_ID, float(logprob)) for token, logprob in entries]
    return tuple(sorted(found, key=lambda entry: -entry[2])[:num_top])


def _count(value: Any) -> int:
    count = int(value or 0)
    if count < 0:
        raise ValueError("a negative number of tokens")
    return count
