"""Bodies and answers of the routes of memories, relations, a user's graph and context."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from deployments.ingress.identifiers import Id
from deployments.ingress.queries import MAX_N
from deployments.ingress.schemas import Body, ContextTimings, SourceReference, WriteAnswer, check_label
from deployments.ingress.text_schemas import QueryText
from deployments.ingress.times import Time
from graph.schema import MAX_RELATION_CHARS, MAX_ROWS_PER_WRITE, MAX_SOURCE_CHARS, TargetKind

MAX_RELATIONS = 64
"""Relations that come with one memory; more are written by themselves."""


def _empty_or_label(text: str) -> str:
    return check_label(text) if text else text


SourceText = Annotated[str, Field(max_length=MAX_SOURCE_CHARS), AfterValidator(_empty_or_label)]
RelationName = Annotated[str, Field(min_length=1, max_length=MAX_RELATION_CHARS), AfterValidator(check_label)]


def target(item_id: str | None, memory_id: str | None, names: str) -> tuple[TargetKind, str]:
    """Kind and id of what a relation leads to; raises ValueError unless exactly one is given."""
    if item_id is not None and memory_id is None:
        return "item", item_id
    if memory_id is not None and item_id is None:
        return "memory", memory_id
    raise ValueError(f"send exactly one of {names}")


class MemoryRelation(Body):
    """Where a memory that is being written leads: to an item or to a memory of the same user."""

    name: RelationName
    item_id: Id | None = None
    memory_id: Id | None = None

    @model_validator(mode="after")
    def _one_target(self) -> MemoryRelation:
        self.target()
        return self

    def target(self) -> tuple[TargetKind, str]:
        return target(self.item_id, self.memory_id, "item_id and memory_id")


class MemoryBody(Body):
    """A fact that holds from `valid_at` on and until `invalid_at`; without them, always."""

    text: QueryText
    valid_at: Time | None = None
    invalid_at: Time | None = None
    source: Annotated[SourceText, Field(description="Where it comes from, in your words.")] = ""

    @field_validator("invalid_at")
    @classmethod
    def _after_valid_at(cls, value: int | None, others: ValidationInfo) -> int | None:
        begun = others.data.get("valid_at")
        if value is not None and begun is not None and value <= begun:
            raise ValueError("must be later than valid_at")
        return value


class MemoryRow(MemoryBody):
    memory_id: Annotated[Id | None, Field(description="Without it one is made, `mem_...`.")] = None
    relations: Annotated[list[MemoryRelation], Field(max_length=MAX_RELATIONS, default_factory=list)]


class MemoriesBody(Body):
    memories: Annotated[list[MemoryRow], Field(min_length=1, max_length=MAX_ROWS_PER_WRITE)]


class RelationRow(Body):
    memory_id: Id
    name: RelationName
    item_id: Id | None = None
    to_memory_id: Id | None = None

    @model_validator(mode="after")
    def _one_target(self) -> RelationRow:
        self.target()
        return self

    def target(self) -> tuple[TargetKind, str]:
        return target(self.item_id, self.to_memory_id, "item_id and to_memory_id")


class RelationsBody(Body):
    relations: Annotated[list[RelationRow], Field(min_length=1, max_length=MAX_ROWS_PER_WRITE)]


def _memories(value: Any) -> str:
    return "<many>" if isinstance(value, dict) and "memories" in value else "<one>"


def _relations(value: Any) -> str:
    return "<many>" if isinstance(value, dict) and "relations" in value else "<one>"


# Tagged by hand, as ratings are: a mistake in one of many is reported as such.
MemoryWrite = Annotated[
    Annotated[MemoryRow, Tag("<one>")] | Annotated[MemoriesBody, Tag("<many>")], Discriminator(_memories)
]
RelationWrite = Annotated[
    Annotated[RelationRow, Tag("<one>")] | Annotated[RelationsBody, Tag("<many>")], Discriminator(_relations)
]


class MemorySearchBody(Body):
    query: QueryText
    n: Annotated[int, Field(ge=1, le=MAX_N)] = 10
    valid_only: Annotated[bool, Field(description="Leave out what holds no longer, or not yet.")] = False
    min_version: Annotated[str, Field(max_length=200)] | None = None


# ------------------------------------------------------------------------------------------------- answers


class MemoriesWrittenAnswer(WriteAnswer):
    """`memory_ids` in the order of the request."""

    memory_ids: list[str]


class RelationEntry(BaseModel):
    """`title` is the item's, or the beginning of the memory's text."""

    name: str
    kind: Literal["item", "memory"]
    id: str
    title: str


class MemoryEntry(BaseModel):
    """Times are ISO 8601 in UTC; `valid` says whether it holds now."""

    memory_id: str
    user_id: str
    text: str
    valid_at: str | None
    invalid_at: str | None
    source: str
    valid: bool
    relations: list[RelationEntry]


class MemoryAnswer(MemoryEntry):
    version: str


class MemoriesAnswer(BaseModel):
    """Oldest first."""

    user_id: str
    memories: list[MemoryEntry]
    next: str | None
    version: str


class FoundMemory(MemoryEntry):
    score: float


class MemorySearchAnswer(BaseModel):
    """Best first. `text_model` is null where no text model took part and words alone decided."""

    user_id: str
    memories: list[FoundMemory]
    text_model: str | None
    version: str


class NodeReference(BaseModel):
    kind: Literal["user", "item", "memory"]
    id: str


class NodeEntry(NodeReference):
    """`label` is an item's title, a memory's text or the user's id; `depth` counts edges from the user."""

    label: str
    depth: int


class EdgeEntry(BaseModel):
    """`name` is `rated`, with a `value`, `remembers` (the user a memory), or a relation's own."""

    source: NodeReference
    name: str
    target: NodeReference
    value: float | None


class UserGraphAnswer(BaseModel):
    """`complete` is false where `limit` left nodes out."""

    user_id: str
    nodes: list[NodeEntry]
    edges: list[EdgeEntry]
    complete: bool
    version: str


class ContextLineEntry(BaseModel):
    """`why` says in a few words what brought the line in; scores compare within one answer only."""

    kind: Literal["said", "liked", "disliked", "related", "suggested"]
    source: SourceReference
    text: str
    score: float
    why: str


class ContextAnswer(BaseModel):
    """`text` is what a prompt would hold, `tokens` long by the tokenizer of the model `counted_by`.

    `missing` names what could not take part: `suggestions`, `similarity`.
    """

    user_id: str
    text: str
    tokens: int
    max_tokens: int
    counted_by: str
    lines: list[ContextLineEntry]
    missing: list[str]
    timings_ms: ContextTimings
    version: str
