"""Bodies of generation: OpenAI's chat and completions, and this service's own route.

Each body says what it asks for with the same `prompt()`, `sampling()`, `user_id`, `selection`, `context`;
`generation.query_of` makes a query of them. As in OpenAI's shapes, null is the same as leaving a field out.
Values that nothing here could follow are refused and never ignored; the few fields that clients send by habit
and that change nothing are taken.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from deployments.ingress.context_options import NO_CONTEXT, ContextOptions, NoContextOptions
from deployments.ingress.generation_fields import (
    FilledText,
    Ignored,
    Logprobs,
    MaxTokens,
    MinP,
    ModelField,
    Never,
    NoPenalty,
    One,
    PromptText,
    Reference,
    RepetitionPenalty,
    Seed,
    Stops,
    Temperature,
    TopK,
    TopP,
    refused,
)
from deployments.ingress.identifiers import Id
from deployments.ingress.schemas import Body
from deployments.ingress.text_schemas import TokenInput
from graph.errors import InvalidInput
from models.adapter_cascade import MAX_BLEND_WEIGHT
from models.language_model.protocol import (
    MAX_BLEND_PARTS,
    Message,
    Prompt,
    Sampling,
)

MAX_MESSAGES = 4_096
MAX_BATCH = 64
COMPLETION_TOKENS = 16
"""What /v1/completions generates where nobody says how much, as OpenAI's does."""


class BlendPart(Body):
    """`weight` times the adapter's low-rank term."""

    adapter: Reference
    weight: Annotated[float, Field(ge=-MAX_BLEND_WEIGHT, le=MAX_BLEND_WEIGHT)] = 1.0


Blend: TypeAlias = Annotated[list[BlendPart], Field(max_length=MAX_BLEND_PARTS)]


class Selection(Body):
    """Which adapter answers; without any of it, that of the user, or nobody's."""

    domain: Annotated[Id | None, Field(description="Where the user's own adapter is not set.")] = None
    adapter: Annotated[
        Reference | None,
        Field(description="`user/ada`, `domain/films/v2`, `global/default`, a digest, or `base` for none."),
    ] = None
    blend: Annotated[Blend | None, Field(description="Several adapters added up.")] = None

    @model_validator(mode="after")
    def _one_choice(self) -> Selection:
        if self.adapter is not None and self.blend:
            raise ValueError("adapter and blend exclude each other")
        return self


class GenerationOptions(Selection):
    """What OpenAI's shapes have no field for."""

    top_k: TopK = None
    min_p: MinP = None
    repetition_penalty: RepetitionPenalty = None


class ChatOptions(GenerationOptions, ContextOptions):
    """The same, and what is known about the user."""


class CompletionOptions(GenerationOptions, NoContextOptions):
    """The same; a text to continue has no place for context."""


def _or_nothing(value: Any) -> Any:
    return {} if value is None else value


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Ignored = None


class OpenAIBody(Body):
    """What chat and completions share."""

    model: ModelField = None
    max_tokens: MaxTokens = None
    temperature: Temperature = None
    top_p: TopP = None
    n: One = None
    stop: Stops = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: Seed = None
    user: Annotated[Id | None, Field(description="Whose adapter answers.")] = None
    presence_penalty: NoPenalty = None
    frequency_penalty: NoPenalty = None
    logit_bias: Annotated[None, refused("is not supported: leave it out")] = None
    weft: GenerationOptions

    @model_validator(mode="after")
    def _usage_of_streams(self) -> OpenAIBody:
        if self.stream_options is not None and not self.stream:
            raise InvalidInput("stream_options needs stream: true", param="stream_options")
        return self

    @property
    def user_id(self) -> str | None:
        return self.user

    @property
    def selection(self) -> Selection:
        return self.weft

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def _sampling(self, max_tokens: int | None, logprobs: int | None) -> Sampling:
        return _sampling_of(self, self.weft, max_tokens, logprobs)


# ----------------------------------------------------------------------------------------------------- chat


class TextPart(Body):
    type: Literal["text"]
    text: PromptText


def _joined(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Content: TypeAlias = Annotated[
    Annotated[list[TextPart], Field(min_length=1, max_length=MAX_MESSAGES)],
    BeforeValidator(_joined, json_schema_input_type=PromptText | list[TextPart]),
]


def _check_role(value: Any) -> Any:
    if value in ("tool", "function"):
        raise ValueError("tools are not supported: send system, developer, user and assistant messages")
    return value


class ChatMessage(Body):
    """One turn. What an answer's message has beside its text may be sent back as it came, empty."""

    role: Annotated[
        Literal["system", "developer", "user", "assistant"],
        BeforeValidator(_check_role, json_schema_input_type=str),
    ]
    content: Content
    name: Ignored = None
    refusal: Annotated[None, refused("must be null")] = None
    annotations: Annotated[None, refused("must be empty")] = None
    audio: Annotated[None, refused("must be null")] = None
    tool_calls: Annotated[None, refused("tools are not supported")] = None
    function_call: Annotated[None, refused("tools are not supported")] = None

    def message(self) -> Message:
        role = "system" if self.role == "developer" else self.role
        return Message(role, "".join(part.text for part in self.content))


class ResponseFormat(Body):
    type: Literal["text"]


_NO_TOOLS = refused("tools are not supported by this service; leave it out")


class ChatBody(OpenAIBody):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: MaxTokens = None
    logprobs: bool | None = None
    top_logprobs: Logprobs = None
    response_format: ResponseFormat | None = None
    tools: Annotated[None, _NO_TOOLS] = None
    tool_choice: Annotated[Literal["none", "auto"] | None, Field(description="There are no tools.")] = None
    functions: Annotated[None, _NO_TOOLS] = None
    function_call: Annotated[Literal["none", "auto"] | None, Field(description="There are no tools.")] = None
    parallel_tool_calls: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    prompt_cache_key: Ignored = None
    safety_identifier: Ignored = None
    weft: Annotated[ChatOptions, BeforeValidator(_or_nothing, json_schema_input_type=ChatOptions | None)] = (
        ChatOptions()
    )

    @model_validator(mode="after")
    def _consistent(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidInput("top_logprobs needs logprobs: true", param="top_logprobs")
        both = self.max_tokens is not None and self.max_completion_tokens is not None
        if both and self.max_tokens != self.max_completion_tokens:
            raise InvalidInput(
                "max_tokens and max_completion_tokens differ; send one of them", param="max_completion_tokens"
            )
        self.weft.check(self.user, "weft.")
        return self

    @property
    def context(self) -> ContextOptions:
        return self.weft

    def prompt(self) -> Prompt:
        return tuple(message.message() for message in self.messages)

    def sampling(self) -> Sampling:
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self._sampling(limit, (self.top_logprobs or 0) if self.logprobs else None)


# ---------------------------------------------------------------------------------------------- completions


def _one_prompt(value: Any) -> Any:
    if isinstance(value, list):
        if value and isinstance(value[0], int | list):
            raise TokenInput(
                "prompt holds tokens, which mean nothing without the tokenizer that made them; send text",
                param="prompt",
            )
        if len(value) != 1:
            raise ValueError("must be one text; send a request for each")
        return value[0]
    return value


class CompletionBody(OpenAIBody):
    text: Annotated[
        FilledText,
        BeforeValidator(_one_prompt, json_schema_input_type=FilledText | list[FilledText]),
        Field(alias="prompt"),
    ]
    logprobs: Logprobs = None
    echo: Never = None
    best_of: One = None
    suffix: Annotated[None, refused("is not supported: leave it out")] = None
    weft: Annotated[
        CompletionOptions, BeforeValidator(_or_nothing, json_schema_input_type=CompletionOptions | None)
    ] = CompletionOptions()

    @property
    def context(self) -> ContextOptions:
        return NO_CONTEXT

    def prompt(self) -> Prompt:
        return self.text

    def sampling(self) -> Sampling:
        return self._sampling(
            COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens, self.logprobs
        )


# ------------------------------------------------------------------------------------------------- generate


class PlainMessage(Body):
    role: Literal["system", "user", "assistant"]
    content: PromptText


class GenerateBody(Selection, ContextOptions):
    """`text`, which is one turn of a user, or a conversation in `messages`.

    With `explain_item` neither is needed: then the question is why that item is suggested.
    """

    user_id: Id | None = None
    text: FilledText | None = None
    messages: Annotated[list[PlainMessage], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    system_prompt: PromptText | None = None
    max_tokens: MaxTokens = None
    temperature: Temperature = None
    top_p: TopP = None
    top_k: TopK = None
    min_p: MinP = None
    repetition_penalty: RepetitionPenalty = None
    seed: Seed = None
    stop: Stops = None
    logprobs: Logprobs = None
    stream: bool | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> GenerateBody:
        both = self.text is not None and self.messages is not None
        if both or (self.asks_nothing and self.explain_item is None):
            raise InvalidInput("send exactly one of text and messages", param="text")
        self.check(self.user_id)
        return self

    @property
    def asks_nothing(self) -> bool:
        """Neither a text nor a conversation is here: the question is to be made."""
        return self.text is None and self.messages is None

    @property
    def context(self) -> ContextOptions:
        return self

    @property
    def model(self) -> None:
        return None

    @property
    def selection(self) -> Selection:
        return self

    def prompt(self) -> Prompt:
        before = () if not self.system_prompt else (Message("system", self.system_prompt),)
        if self.text is not None:
            return (*before, Message("user", self.text))
        return (*before, *(Message(turn.role, turn.content) for turn in self.messages or ()))

    def sampling(self) -> Sampling:
        return _sampling_of(self, self, self.max_tokens, self.logprobs)


class GenerateBatchBody(Body):
    """`requests` are bodies of /v1/generate; each is checked, answered and refused on its own."""

    requests: Annotated[list[Any], Field(min_length=1, max_length=MAX_BATCH)]


AnyGenerationBody: TypeAlias = ChatBody | CompletionBody | GenerateBody


def _sampling_of(
    body: OpenAIBody | GenerateBody,
    more: GenerationOptions | GenerateBody,
    max_tokens: int | None,
    logprobs: int | None,
) -> Sampling:
    default = Sampling()
    return Sampling(
        max_tokens=max_tokens,
        temperature=default.temperature if body.temperature is None else body.temperature,
        top_p=default.top_p if body.top_p is None else body.top_p,
        top_k=default.top_k if more.top_k is None else more.top_k,
        min_p=default.min_p if more.min_p is None else more.min_p,
        repetition_penalty=(
            default.repetition_penalty if more.repetition_penalty is None else more.repetition_penalty
        ),
        seed=body.seed,
        stop=tuple(body.stop or ()),
        logprobs=logprobs,
    )
