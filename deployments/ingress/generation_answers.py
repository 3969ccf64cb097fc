"""Answers of generation, as the OpenAPI document describes them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from deployments.ingress.schemas import ContextTimings, ErrorAnswer, SourceReference


class ContextFacts(BaseModel):
    """What the prompt held about the user: sources in its order, `tokens` long.

    `missing` names what could not take part: `user` (nobody knows this one), `context`, `suggestions`,
    `similarity`. `version` is that of what was read, null where nothing could be.
    """

    sources: list[SourceReference]
    tokens: int
    missing: list[str]
    timings_ms: ContextTimings
    version: str | None


class ChosenAnswer(BaseModel):
    """Whose adapter answered and why; `version` is the token of the state the choice was made from."""

    user: str | None
    adapter: str | None
    digest: str | None
    source: Literal["request", "user", "domain", "global", "base"]
    why: str
    version: str
    cached_tokens: int
    context: ContextFacts | None


class WeftFacts(ChosenAnswer):
    queued_ms: float
    first_token_ms: float
    latency_ms: float


class PromptTokenDetails(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokenDetails


class TopToken(BaseModel):
    """`bytes` is null for a token that is part of a character."""

    token: str
    bytes: list[int] | None
    logprob: float


class ChatToken(TopToken):
    top_logprobs: list[TopToken]


class ChatLogprobs(BaseModel):
    content: list[ChatToken]
    refusal: None = None


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatAnswer(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    weft: WeftFacts


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str


class CompletionAnswer(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    weft: WeftFacts


class TokenCounts(BaseModel):
    prompt: int
    completion: int
    cached: int


class GeneratedAnswer(BaseModel):
    output: str
    user_id: str | None
    model: str
    adapter: str | None
    digest: str | None
    source: Literal["request", "user", "domain", "global", "base"]
    why: str
    finish_reason: Literal["stop", "length", "cancelled"]
    tokens: TokenCounts
    queued_ms: float
    first_token_ms: float
    latency_ms: float
    context: ContextFacts | None
    version: str
    logprobs: list[ChatToken] | None = None


class GenerateBatchAnswer(BaseModel):
    """In the order of the requests."""

    results: list[GeneratedAnswer | ErrorAnswer]


class ModelEntry(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["weft"]


class ModelsAnswer(BaseModel):
    """The base model, then every adapter that is active."""

    object: Literal["list"]
    data: list[ModelEntry]
