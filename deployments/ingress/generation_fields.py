"""Types of the fields that bodies of generation share: what each may be, and what is refused."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from graph.errors import InvalidInput
from graph.schema import TEXT_RULE, is_text
from models.adapter_pointers import parse_reference
from models.language_model.protocol import MAX_LOGPROBS, MAX_NEW_TOKENS, MAX_STOP_CHARS, MAX_STOPS

MAX_PROMPT_CHARS = 4 << 20
"""No more than a body holds; the model's window is what bounds a prompt."""
MAX_REFERENCE_CHARS = 300


def _check_prompt(text: str) -> str:
    if not is_text(text, MAX_PROMPT_CHARS):
        raise ValueError(TEXT_RULE)
    return text


def refused(reason: str) -> BeforeValidator:
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
