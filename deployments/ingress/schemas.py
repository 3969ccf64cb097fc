"""Bodies of requests, checked strictly, and of answers, which only document.

Strict means: no boolean for a number, no number in quotes, no unknown field, nothing infinite, no NUL.
Answers are built from plain data and sent as they are; a test holds them against the models here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from deployments.ingress.identifiers import Id
from deployments.ingress.queries import MAX_IDS, MAX_N
from graph.schema import (
    LABEL_RULE,
    MAX_ATTRIBUTES,
    MAX_ROWS_PER_WRITE,
    MAX_TAG_CHARS,
    MAX_TAGS,
    MAX_TEXT_CHARS,
    MAX_TITLE_CHARS,
    RATING_HIGH,
    RATING_LOW,
    TEXT_RULE,
    is_label,
    is_text,
)

MAX_USERS_PER_REQUEST = 256
MAX_SESSION_ITEMS = 1_000
MAX_TIMESTAMP = 2**32 - 1
_LARGEST_INTEGER = 2**53 - 1  # beyond it, JavaScript and float64 readers change the value


def check_text(text: str) -> str:
    """`text`, provided it may be free text; raises ValueError otherwise."""
    if not is_text(text):
        raise ValueError(TEXT_RULE)
    return text


def _not_integer(value: Any) -> Any:
    # A float takes integers, and would take those that its neighbour in the union refused as too large.
    if isinstance(value, int):
        raise ValueError("must be a whole number of at most 53 bits")
    return value


def check_label(text: str) -> str:
    """`text`, provided it may be a title, a tag or a name; raises ValueError otherwise."""
    if not is_label(text, MAX_TITLE_CHARS):
        raise ValueError(LABEL_RULE)
    return text


Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS), AfterValidator(check_text)]
Title = Annotated[str, Field(min_length=1, max_length=MAX_TITLE_CHARS), AfterValidator(check_label)]
TagText = Annotated[str, Field(min_length=1, max_length=MAX_TAG_CHARS), AfterValidator(check_label)]
AttributeText = Annotated[str, Field(max_length=MAX_TITLE_CHARS), AfterValidator(check_text)]
RatingValue = Annotated[float, Field(ge=RATING_LOW, le=RATING_HIGH)]
AttributeValue = (
    bool
    | Annotated[int, Field(ge=-_LARGEST_INTEGER, le=_LARGEST_INTEGER)]
    | Annotated[float, BeforeValidator(_not_integer)]
    | AttributeText
    | Annotated[list[AttributeText], Field(max_length=MAX_TAGS)]
)


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class UserBody(Body):
    attributes: Annotated[dict[TagText, AttributeValue], Field(max_length=MAX_ATTRIBUTES)] = {}


class ItemBody(Body):
    title: Title
    tags: Annotated[list[TagText], Field(max_length=MAX_TAGS)] = []
    year: Annotated[int, Field(ge=-9999, le=9999)] | None = None
    text: Text = ""


class ItemRow(ItemBody):
    item_id: Id


class ItemsBody(Body):
    items: Annotated[list[ItemRow], Field(min_length=1, max_length=MAX_ROWS_PER_WRITE)]


class RatingRow(Body):
    user_id: Id
    item_id: Id
    value: RatingValue
    timestamp: (
        Annotated[
            int, Field(ge=0, le=MAX_TIMESTAMP, description="Unix seconds; without it, the server's time.")
        ]
        | None
    ) = None


class RatingsBody(Body):
    ratings: Annotated[list[RatingRow], Field(min_length=1, max_length=MAX_ROWS_PER_WRITE)]


def _one_or_many(value: Any) -> str:
    return "<many>" if isinstance(value, dict) and "ratings" in value else "<one>"


# Tagged by hand so that a mistake in one of many ratings is reported as such and not as two failed guesses.
RatingWrite = Annotated[
    Annotated[RatingRow, Tag("<one>")] | Annotated[RatingsBody, Tag("<many>")], Discriminator(_one_or_many)
]


class ItemFilter(Body):
    """How many items may be answered, which, and how recent."""

    n: Annotated[int, Field(ge=1, le=MAX_N)] = 10
    tags: Annotated[list[TagText], Field(max_length=MAX_TAGS)] = []
    exclude: Annotated[list[Id], Field(max_length=MAX_IDS)] = []
    candidates: Annotated[list[Id], Field(max_length=MAX_IDS)] | None = None
    min_version: Annotated[str, Field(max_length=200)] | None = None

    def options(self) -> dict[str, Any]:
        """The fields of a query that say what, not for whom and how recent."""
        return {
            "n": self.n,
            "tags": tuple(self.tags),
            "exclude": tuple(self.exclude),
            "candidates": None if self.candidates is None else tuple(self.candidates),
        }


class RecommendOptions(ItemFilter):
    """What both POST forms share with the query of the GET form."""

    exclude_seen: bool = True
    exclude_below: RatingValue | None = None
    because: bool = True
    exact_items: bool = False

    def options(self) -> dict[str, Any]:
        """The fields of a RecommendQuery that say what, not for whom and how recent."""
        return super().options() | {
            "exclude_seen": self.exclude_seen,
            "exclude_below": self.exclude_below,
            "because": self.because,
            "exact_items": self.exact_items,
        }


class ManyBody(RecommendOptions):
    user_ids: Annotated[list[Id], Field(min_length=1, max_length=MAX_USERS_PER_REQUEST)]


class SessionItem(Body):
    item_id: Id
    value: RatingValue = RATING_HIGH


def _bare_id(value: Any) -> Any:
    return {"item_id": value} if isinstance(value, str) else value


class SessionBody(RecommendOptions):
    """`items` oldest first; a bare id means: liked."""

    items: Annotated[
        list[Annotated[SessionItem, BeforeValidator(_bare_id, json_schema_input_type=SessionItem | str)]],
        Field(min_length=1, max_length=MAX_SESSION_ITEMS),
    ]


# ------------------------------------------------------------------------------------------------- answers


class ErrorObject(BaseModel):
    code: str
    message: str
    type: str
    param: str | None
    request_id: str
    retryable: bool


class ErrorAnswer(BaseModel):
    error: ErrorObject


class WriteAnswer(BaseModel):
    """`changed` counts rows that differ from before; `replayed` says the Idempotency-Key had been seen."""

    version: str
    changed: int
    replayed: bool


class ActivateAnswer(WriteAnswer):
    encoder: str


class UserEntry(BaseModel):
    user_id: str
    attributes: dict[str, bool | int | float | str | list[str]]
    num_ratings: int


class UserAnswer(UserEntry):
    version: str


class UsersAnswer(BaseModel):
    users: list[UserEntry]
    next: str | None
    version: str


class ItemEntry(BaseModel):
    item_id: str
    title: str
    tags: list[str]
    year: int | None
    text: str
    num_ratings: int


class ItemAnswer(ItemEntry):
    version: str


class ItemsAnswer(BaseModel):
    items: list[ItemEntry]
    next: str | None
    version: str


class RatingEntry(BaseModel):
    item_id: str
    value: float
    timestamp: int


class RatingsAnswer(BaseModel):
    user_id: str
    ratings: list[RatingEntry]
    next: str | None
    version: str


class ReasonEntry(BaseModel):
    item_id: str
    title: str
    contribution: float


class ContextTimings(BaseModel):
    """Milliseconds, hops between processes included; embedding and suggestions are asked for side by side."""

    embedding: float
    suggestions: float
    selection: float
    fitting: float


class SourceReference(BaseModel):
    kind: Literal["memory", "item"]
    id: str


class Explanation(BaseModel):
    """A sentence of the language model, and what of the user's own graph it was told, in that order."""

    text: str
    sources: list[SourceReference]


class RecommendationEntry(BaseModel):
    """With `explain` the first items have an `explanation`, or null and the code of what kept it away."""

    item_id: str
    title: str
    score: float
    because: list[ReasonEntry]
    explanation: Explanation | None = None
    explanation_error: str | None = None


class RecommendationsAnswer(BaseModel):
    """`basis` is "popular" while nothing the user liked is known; `user_id` is null for a session."""

    user_id: str | None
    basis: Literal["personal", "popular"]
    recommendations: list[RecommendationEntry]
    version: str
    item_version: str
    encoder: str


class FailedUser(ErrorAnswer):
    user_id: str


class ManyAnswer(BaseModel):
    results: list[RecommendationsAnswer | FailedUser]


class SimilarEntry(BaseModel):
    item_id: str
    title: str
    score: float


class SimilarItemsAnswer(BaseModel):
    """`model` is the encoder's digest by graph, the text model's exact name by text.

    `encoder` is `model` by graph and null by text; clients older than `by` read it.
    """

    item_id: str
    similar: list[SimilarEntry]
    version: str
    item_version: str
    by: Literal["graph", "text"]
    model: str
    encoder: str | None


class EmbeddingAnswer(BaseModel):
    node_id: str
    kind: Literal["user", "item", "memory"]
    embedding: list[float]
    encoder: str
    version: str


class EncoderEntry(BaseModel):
    digest: str
    state: str
    dim: int
    metadata: dict[str, Any]


class EncodersAnswer(BaseModel):
    encoders: list[EncoderEntry]
    next: str | None


class LiveAnswer(BaseModel):
    status: Literal["ok"]


class ReadyAnswer(BaseModel):
    ready: bool
    parts: dict[str, Any] | None = None
