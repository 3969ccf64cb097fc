"""Bodies of generation: OpenAI's chat and completions, and this service's own route.

Each body says what it asks for in the same four words, `prompt()`, `sampling()`, `user_id` and `selection`;
`generation.query_of` makes a query of them. As in OpenAI's shapes, null is the same as leaving a field out.
Values that nothing here could follow are refused and never ignored; the few fields that clients send by habit
and that change nothing are taken.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from deployments.ingress.identifiers import Id
from deployments.ingress.schemas import Body
from deployments.ingress.text_schemas import TokenInput
from graph.errors import InvalidInput
from graph.schema import TEXT_RULE, is_text
from models.adapter_pointers import parse_reference
from models.language_model.protocol import (
    MAX_BLEND_PARTS,
    MAX_LOGPROBS,
    MAX_NEW_TOKENS,
    MAX_STOP_CHARS,
    MAX_STOPS,
    Message,
    Prompt,
    Sampling,
)

MAX_PROMPT_CHARS = 4 << 20
"""No more than a body holds; the model's window is what bounds a prompt."""
MAX_MESSAGES = 4_096
MAX_REFERENCE_CHARS = 300
MAX_BATCH = 64
MAX_BLEND_WEIGHT = 16.0
COMPLETION_TOKENS = 16
"""What /v1/completions generates where nobody says how much, as OpenAI's does."""


def _check_prompt(text: str) -> str:
    if not is_text(text, MAX_PROMPT_CHARS):
        raise ValueError(TEXT_RULE)
    return text


def _refused(reason: str) -> BeforeValidator:
    """For a field that is taken only while it asks for nothing."""

    def check(value: Any) -> Any:
        if value is None or value == [] or value == {}:
            return None
        raise ValueError(reason)

    return BeforeValidator(check)


def _only(allowed: float | bool, reason: str) -> AfterValidator:
    def check(value: Any) -> Any:
        if value is not None and value != allowed:
            raise ValueError(reason)
        return value

    return AfterValidator(check)


def _check_reference(text: str) -> str:
    try:
        parse_reference(text)
    except InvalidInput as error:
        raise ValueError(error.message) from None
    return text


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


PromptText: TypeAlias = Annotated[str, AfterValidator(_check_prompt)]
FilledText: TypeAlias = Annotated[str, Field(min_length=1), AfterValidator(_check_prompt)]
ModelText: TypeAlias = Annotated[
    str, Field(min_length=1, max_length=MAX_REFERENCE_CHARS), AfterValidator(_check_prompt)
]
Reference: TypeAlias = Annotated[
    str, Field(min_length=1, max_length=MAX_REFERENCE_CHARS), AfterValidator(_check_reference)
]
ModelField: TypeAlias = Annotated[
    ModelText | None,
    Field(description="The base model's name, or an adapter such as `user/ada`; without it, the cascade's."),
]
StopText: TypeAlias = Annotated[
    str, Field(min_length=1, max_length=MAX_STOP_CHARS), AfterValidator(_check_prompt)
]
Stops: TypeAlias = Annotated[
    Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None,
    BeforeValidator(_listed, json_schema_input_type=StopText | list[StopText] | None),
    Field(description="Texts that end the answer and are no part of it."),
]
MaxTokens: TypeAlias = Annotated[int | None, Field(ge=1, le=MAX_NEW_TOKENS)]
Temperature: TypeAlias = Annotated[float | None, Field(ge=0, le=2, description="0: the likeliest token.")]
TopP: TypeAlias = Annotated[float | None, Field(gt=0, le=1)]
TopK: TypeAlias = Annotated[int | None, Field(ge=0, le=1 << 31, description="0: all tokens.")]
MinP: TypeAlias = Annotated[float | None, Field(ge=0, le=1)]
RepetitionPenalty: TypeAlias = Annotated[float | None, Field(gt=0, le=10)]
Seed: TypeAlias = Annotated[int | None, Field(ge=-(1 << 63), le=(1 << 63) - 1)]
Logprobs: TypeAlias = Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS)]
NoPenalty: TypeAlias = Annotated[
    float | None, _only(0, "must be 0 or left out; weft.repetition_penalty is there")
]
One: TypeAlias = Annotated[int | None, _only(1, "must be 1 or left out; send several requests")]
Never: TypeAlias = Annotated[bool | None, _only(False, "must be false or left out")]
Ignored: TypeAlias = Annotated[Any, Field(description="Taken and not used.")]


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


class StreamOptions(Body):
    include_usage: bool | None = None


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
    logit_bias: Annotated[None, _refused("is not supported: leave it out")] = None
    weft: GenerationOptions = GenerationOptions()

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
    refusal: Annotated[None, _refused("must be null")] = None
    annotations: Annotated[None, _refused("must be empty")] = None
    audio: Annotated[None, _refused("must be null")] = None
    tool_calls: Annotated[None, _refused("tools are not supported")] = None
    function_call: Annotated[None, _refused("tools are not supported")] = None

    def message(self) -> Message:
        role = "system" if self.role == "developer" else self.role
        return Message(role, "".join(part.text for part in self.content))


class ResponseFormat(Body):
    type: Literal["text"]


_NO_TOOLS = _refused("tools are not supported by this service; leave it out")


class ChatBody(OpenAIBody):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: MaxTokens = None
    logprobs: bool | None = None
    top_logprobs: Logprobs = None
    response_format: ResponseFormat | None = None
    tools: Annotated[None, _NO_TOOLS] = None
    tool_choice: Annotated[Literal["none", "auto"] | None, Field(description="There are no tools.")] = None
    functions: Annotated[None, _NO_TOOLS] = None
    function_call: Annotated[None, _NO_TOOLS] = None
    parallel_tool_calls: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    prompt_cache_key: Ignored = None
    safety_identifier: Ignored = None

    @model_validator(mode="after")
    def _consistent(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidInput("top_logprobs needs logprobs: true", param="top_logprobs")
        both = self.max_tokens is not None and self.max_completion_tokens is not None
        if both and self.max_tokens != self.max_completion_tokens:
            raise InvalidInput(
                "max_tokens and max_completion_tokens differ; send one of them", param="max_completion_tokens"
            )
        return self

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
    suffix: Annotated[None, _refused("is not supported: leave it out")] = None

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


class GenerateBody(Selection):
    """`text`, which is one turn of a user, or a conversation in `messages`."""

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
        if (self.text is None) == (self.messages is None):
            raise InvalidInput("send exactly one of text and messages", param="text")
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
