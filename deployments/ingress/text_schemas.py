"""Bodies and answers of the routes that take text to the text model: embeddings, search, rerank, cache.

`/v1/embeddings` has OpenAI's shape, `/v1/rerank` the one of Cohere and Jina; what OpenAI's does not have
stands under the key `weft`. As there, a text is never empty.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from deployments.ingress.schemas import Body, ItemFilter, SimilarEntry, Text, check_text
from graph.errors import WeftError
from graph.schema import MAX_TEXT_CHARS

MAX_TEXTS = 2_048
"""Texts that one request may embed; OpenAI's limit."""
MAX_DOCUMENTS = 1_000
"""Documents that one request may rerank."""
MAX_DIMENSIONS = 65_536
MAX_NAME_CHARS = 200


class TokenInput(WeftError):
    """Numbers where texts are expected: the tokens of a model that is not this one."""

    code, status = "unsupported_input", 400


class BatchTooLarge(WeftError):
    """More texts than one request may bring."""

    code, status = "batch_too_large", 413


def _bounded(texts: Any, limit: int, param: str) -> Any:
    if isinstance(texts, list) and len(texts) > limit:
        raise BatchTooLarge(
            f"{param} has {len(texts):,} texts, allowed are {limit:,}; send several smaller requests",
            param=param,
        )
    return texts


def _inputs(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], int | list):
        raise TokenInput(
            "input holds tokens, which mean nothing without the tokenizer that made them; send texts "
            "(with LangChain: check_embedding_ctx_length=False)",
            param="input",
        )
    return _bounded([value] if isinstance(value, str) else value, MAX_TEXTS, "input")


def _documents(value: Any) -> Any:
    return _bounded(value, MAX_DOCUMENTS, "documents")


def _texts(value: Any) -> Any:
    return _bounded(value, MAX_TEXTS, "texts")


def _bare_text(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


def _not_blank(text: str) -> str:
    if text.isspace():
        raise ValueError("must not be blank")
    return text


def _not_false(value: bool | None) -> bool | None:
    # Not a Literal: 1 is equal to True and would pass.
    if value is False:
        raise ValueError("must be true or left out")
    return value


# No bound of its own: what the model's window does not hold is cut off, and the body as a whole is bounded.
ModelText = Annotated[str, Field(min_length=1), AfterValidator(check_text)]
ModelTexts = Annotated[list[ModelText], Field(min_length=1, max_length=MAX_TEXTS)]
ModelName = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS), AfterValidator(check_text)]
QueryText = Annotated[
    str,
    Field(min_length=1, max_length=MAX_TEXT_CHARS),
    AfterValidator(check_text),
    AfterValidator(_not_blank),
]


class EmbeddingOptions(Body):
    """What OpenAI's shape has no field for."""

    truncate: Annotated[
        bool, Field(description="Cut what the model's window does not hold; otherwise refuse the text.")
    ] = True
    prompt: Annotated[
        Text | None, Field(description="Stands before every text; without it, the model's own.")
    ] = None


class EmbeddingsBody(Body):
    input: Annotated[ModelTexts, BeforeValidator(_inputs, json_schema_input_type=ModelText | ModelTexts)]
    model: Annotated[
        ModelName | None, Field(description="Name of a text model; without it, the active one.")
    ] = None
    # Null is no choice: LiteLLM sends it when its caller made none.
    encoding_format: Annotated[
        Literal["float", "base64"] | None, Field(description="base64 is that of little-endian float32.")
    ] = "float"
    dimensions: Annotated[
        int | None, Field(ge=1, le=MAX_DIMENSIONS, description="Shorter vectors, of models trained for it.")
    ] = None
    user: Annotated[str | None, Field(description="Taken and not used.")] = None
    weft: EmbeddingOptions = EmbeddingOptions()


class SearchBody(ItemFilter):
    query: QueryText
    target: Literal["items"] = "items"


class Document(Body):
    text: ModelText


class RerankBody(Body):
    query: QueryText
    documents: Annotated[
        list[Annotated[Document, BeforeValidator(_bare_text, json_schema_input_type=ModelText | Document)]],
        Field(min_length=1, max_length=MAX_DOCUMENTS),
        BeforeValidator(
            _documents,
            json_schema_input_type=Annotated[
                list[ModelText | Document], Field(min_length=1, max_length=MAX_DOCUMENTS)
            ],
        ),
    ]
    top_n: Annotated[int | None, Field(ge=1, description="How many to return; without it, all.")] = None
    model: Annotated[
        ModelName | None,
        Field(description="Taken because clients send one; the active text model answers and is named."),
    ] = None
    return_documents: Annotated[bool | None, Field(description="Repeat the texts in the answer.")] = False


class InvalidateBody(Body):
    """Exactly one of the three."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    all: Annotated[
        bool | None, AfterValidator(_not_false), Field(description="Every entry; never false.")
    ] = None
    model: Annotated[
        ModelName | None, Field(description="Every entry of this model, by its `text_model`.")
    ] = None
    texts: Annotated[
        ModelTexts | None,
        BeforeValidator(_texts, json_schema_input_type=ModelTexts | None),
        Field(description="Entries of these texts, of the active text model under its own prompt."),
    ] = None

    @model_validator(mode="after")
    def _exactly_one(self) -> InvalidateBody:
        if sum(value is not None for value in (self.all, self.model, self.texts)) != 1:
            raise ValueError('send exactly one of {"all": true}, {"model": "..."} and {"texts": [...]}')
        return self


# ------------------------------------------------------------------------------------------------- answers


class EmbeddingData(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens of prompt and text before truncation; texts of which nobody knows count nothing."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingFacts(BaseModel):
    """`cached` vectors came from the cache, `truncated` texts were cut to the model's window."""

    text_model: str
    cached: int
    truncated: int


class EmbeddingsAnswer(BaseModel):
    """In the order of the input. `model` is the model's own name, `weft.text_model` says exactly which."""

    object: Literal["list"]
    data: list[EmbeddingData]
    model: str
    usage: EmbeddingUsage
    weft: EmbeddingFacts


class SearchAnswer(BaseModel):
    """Best first. `waiting` items have a text that has no vector yet.

    `text_model` is null while the text model does not answer and words alone are compared.
    """

    query: str
    results: list[SimilarEntry]
    version: str
    text_model: str | None
    waiting: int


class RerankEntry(BaseModel):
    """`index` counts the documents of the request from 0; `document` is there if asked for."""

    index: int
    relevance_score: float
    document: Document | None = None


class RerankUsage(BaseModel):
    total_tokens: int


class RerankAnswer(BaseModel):
    """Best first; `relevance_score` is the cosine. `model` is the exact name of the text model."""

    model: str
    results: list[RerankEntry]
    usage: RerankUsage


class CacheStatisticsAnswer(BaseModel, extra="allow"):
    """Hits, misses, tiers and the store behind them."""


class InvalidateAnswer(BaseModel):
    """`dropped` entries of the cache."""

    dropped: int
