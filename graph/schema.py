"""Nodes, edges, changes and write operations of the graph.

Identity. A node has an external string id, chosen by the client, and a `row`: an int64 the writer gives at
creation and never reuses. Rows mean the same in every process; a node deleted and created again under the
same id has another row.

Versions. Every row carries the version that last wrote it. A `ChangeSet` is the *final state* of every row
that changed in `(from_version, to_version]`, tombstones included, so applying it is idempotent and the live
tail and a catch-up scan share one type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from graph.errors import ForeignToken, InvalidInput

Kind: TypeAlias = Literal["user", "item", "rating", "memory", "relation", "pointer", "text_vector", "api_key"]
ALL_KINDS: frozenset[Kind] = frozenset(
    ("user", "item", "rating", "memory", "relation", "pointer", "text_vector", "api_key")
)
TextKind: TypeAlias = Literal["item", "memory"]
"""Nodes that have a text, hence a vector of it."""
TargetKind: TypeAlias = Literal["item", "memory"]
"""What a memory may be related to."""
Role: TypeAlias = Literal["admin", "write", "read", "user"]
"""What an API key may do; `user` is everything a user may do with what is that user's own."""

AttributeValue: TypeAlias = str | int | float | bool | list[str]
Attributes: TypeAlias = Mapping[str, AttributeValue]

RATING_LOW, RATING_HIGH = 0.5, 5.0
"""Ratings live on this scale, inclusive; importers map other scales onto it."""

MAX_ID_CHARS = 128
MAX_TITLE_CHARS = 500
MAX_TEXT_CHARS = 20_000
MAX_TAGS = 64
MAX_TAG_CHARS = 64
MAX_ATTRIBUTES = 64
MAX_SOURCE_CHARS = 200
MAX_RELATION_CHARS = 64
MAX_KEY_LABEL_CHARS = 200
MAX_RELATIONS = 1_000
"""That leave one memory."""
MAX_UNIX_S = 253_402_300_799
"""The last second of the year 9999."""
MAX_ROWS_PER_WRITE = 5_000
"""Rows that one write request, hence one version, may carry."""

_CONTROL = r"\x00-\x1f\x7f-\x9f"  # Unicode category Cc
_SURROGATES = r"\ud800-\udfff"  # halves of a character: they have no UTF-8 form
_ID = re.compile(rf"(?!\.{{1,2}}\Z)(?=\S)[^/{_CONTROL}{_SURROGATES}]{{1,{MAX_ID_CHARS}}}(?<=\S)")
_NOT_IN_LABELS = re.compile(f"[{_CONTROL}{_SURROGATES}]")
_NOT_IN_TEXTS = re.compile(f"[\\x00{_SURROGATES}]")

ID_RULE = (
    f"an id has 1 to {MAX_ID_CHARS} characters, no '/', no control characters, no whitespace at either end, "
    "and is neither '.' nor '..'"
)
LABEL_RULE = "must not be blank or hold control characters or half of a surrogate pair"
TEXT_RULE = "must not hold the character U+0000 or half of a surrogate pair"


def is_id(text: str) -> bool:
    """Whether `text` may name a node: it is one segment of a URL path, and trimming does not change it."""
    return _ID.fullmatch(text) is not None


def is_label(text: str, max_chars: int) -> bool:
    """Whether `text` may be a title, a tag or the name of an attribute."""
    return 0 < len(text) <= max_chars and not text.isspace() and _NOT_IN_LABELS.search(text) is None


def is_text(text: str, max_chars: int = MAX_TEXT_CHARS) -> bool:
    """Whether `text` may be stored as free text: line breaks are welcome, what no database takes is not."""
    return len(text) <= max_chars and _NOT_IN_TEXTS.search(text) is None


@dataclass(frozen=True, slots=True)
class Token:
    """A version of one particular store, written `store_id.version`."""

    store_id: str
    version: int

    def __str__(self) -> str:
        return f"{self.store_id}.{self.version}"

    @classmethod
    def parse(cls, text: str) -> Token:
        """Read `store_id.version`; raises InvalidInput for any other text."""
        store_id, dot, version = text.rpartition(".")
        if not dot or not store_id or not version.isascii() or not version.isdigit() or len(version) > 18:
            raise InvalidInput(
                f"{text[:80]!r} is not a version token; use the `version` of an earlier answer, unchanged",
                param="min_version",
            )
        return cls(store_id, int(version))

    def version_in(self, store_id: str) -> int:
        """The version, provided the token belongs to `store_id`; raises ForeignToken otherwise."""
        if self.store_id != store_id:
            raise ForeignToken(
                f"version token {self} belongs to store {self.store_id!r}, this service holds {store_id!r}: "
                "drop the tokens you remembered from the other store",
                param="min_version",
            )
        return self.version


@dataclass(frozen=True, slots=True)
class User:
    row: int
    user_id: str
    attributes: Attributes
    version: int
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    row: int
    item_id: str
    title: str
    tags: tuple[str, ...]
    year: int | None
    text: str
    version: int
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """A fact a user owns. Private: it never reaches a vector that another user's answer reads."""

    row: int
    memory_id: str
    user_row: int
    text: str
    version: int
    deleted: bool = False
    valid_at: int | None = None  # Unix seconds from which on it holds; None: always did
    invalid_at: int | None = None  # Unix seconds from which on it no longer holds; None: still does
    source: str = ""  # where it comes from, in the client's words: "chat", "survey 2026"

    def holds_at(self, now: int) -> bool:
        """Whether the fact is valid at `now`, in Unix seconds."""
        begun = self.valid_at is None or self.valid_at <= now
        return begun and (self.invalid_at is None or now < self.invalid_at)


@dataclass(frozen=True, slots=True)
class Relation:
    """An edge from a memory to an item or to another memory of the same user; private like its memory.

    At most one per (memory_row, name, target_kind, target_row).
    """

    memory_row: int
    name: str  # a label: "about", "contradicts"
    target_kind: TargetKind
    target_row: int
    version: int
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Pointer:
    """A named reference that operators move: which encoder is active, and so on. `value` is plain JSON."""

    scope: str
    name: str
    value: Mapping[str, object]
    version: int
    deleted: bool = False


def pointer_owner(scope: str, name: str) -> str | None:
    """Whose a pointer is, by user id; None for one that belongs to nobody in particular.

    A user's adapters were trained on that user's texts: what is active, and what versions there are.
    """
    if scope == "adapter.user":
        return name
    if scope == "adapter_version" and name.startswith("user/"):
        return name.split("/")[1]  # ids hold no slash
    return None


@dataclass(frozen=True, slots=True)
class TextVector:
    """What a text model made of a node's text, at most one per (kind, row, model).

    It may be of an older text of the node: `text_digest` (see `graph.node_text`) says of which.
    """

    kind: TextKind
    row: int
    model: str
    text_digest: str  # 32 hex digits; empty in a tombstone
    vector: bytes  # float16 [d], little-endian; empty in a tombstone
    version: int
    deleted: bool = False

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """The vector as float32 [d], a copy."""
        return np.frombuffer(self.vector, "<f2").astype(np.float32)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Who may call the service. The secret is known to its owner alone; see `graph.api_keys`."""

    key_id: str
    role: Role
    user_id: str  # whose key it is; empty unless `role` is "user"
    digest: str  # SHA-256 of the secret, 64 hex digits; empty in a tombstone
    label: str  # what it is for, in its maker's words
    created_at: int  # Unix seconds
    expires_at: int | None  # Unix seconds from which on it is refused; None: never
    version: int
    deleted: bool = False


RATING_DTYPE = np.dtype(
    [
        ("user_row", "<i8"),
        ("item_row", "<i8"),
        ("value", "<f4"),
        ("timestamp", "<u4"),  # Unix seconds, 0 = unknown
        ("version", "<i8"),
        ("deleted", "?"),
    ]
)
RatingArray: TypeAlias = npt.NDArray[np.void]
"""A structured array [n] of RATING_DTYPE, at most one record per (user_row, item_row)."""


def no_ratings() -> RatingArray:
    return np.empty(0, RATING_DTYPE)


@dataclass(frozen=True, slots=True, eq=False)
class ChangeSet:
    """Final states of all rows changed in `(from_version, to_version]`."""

    from_version: int
    to_version: int
    users: Sequence[User] = ()
    items: Sequence[Item] = ()
    memories: Sequence[Memory] = ()
    pointers: Sequence[Pointer] = ()
    ratings: RatingArray = field(default_factory=no_ratings)
    text_vectors: Sequence[TextVector] = ()
    relations: Sequence[Relation] = ()
    api_keys: Sequence[ApiKey] = ()

    def only(self, kinds: frozenset[Kind]) -> ChangeSet:
        """The same span of versions with the changes of `kinds` alone."""
        if kinds == ALL_KINDS:
            return self
        return ChangeSet(
            self.from_version,
            self.to_version,
            self.users if "user" in kinds else (),
            self.items if "item" in kinds else (),
            self.memories if "memory" in kinds else (),
            self.pointers if "pointer" in kinds else (),
            self.ratings if "rating" in kinds else no_ratings(),
            self.text_vectors if "text_vector" in kinds else (),
            self.relations if "relation" in kinds else (),
            self.api_keys if "api_key" in kinds else (),
        )

    @classmethod
    def concatenate(cls, pages: Sequence[ChangeSet]) -> ChangeSet:
        """Pages of one scan, which share no row, as one change set."""
        return cls(
            pages[0].from_version,
            pages[-1].to_version,
            [u for p in pages for u in p.users],
            [i for p in pages for i in p.items],
            [m for p in pages for m in p.memories],
            [q for p in pages for q in p.pointers],
            np.concatenate([p.ratings for p in pages]),
            [v for p in pages for v in p.text_vectors],
            [r for p in pages for r in p.relations],
            [k for p in pages for k in p.api_keys],
        )

    def __len__(self) -> int:
        nodes = len(self.users) + len(self.items) + len(self.memories)
        edges = len(self.ratings) + len(self.relations)
        return nodes + edges + len(self.pointers) + len(self.text_vectors) + len(self.api_keys)


# ---------------------------------------------------------------------------------------- write operations


@dataclass(frozen=True, slots=True)
class PutUser:
    """Create a user or replace its attributes."""

    user_id: str
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeleteUser:
    """Remove a user with its ratings, memories, adapters and API keys."""

    user_id: str


@dataclass(frozen=True, slots=True)
class PutItem:
    """Create an item or replace its metadata."""

    item_id: str
    title: str
    tags: tuple[str, ...] = ()
    year: int | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class DeleteItem:
    """Remove an item with its ratings."""

    item_id: str


@dataclass(frozen=True, slots=True)
class PutRating:
    """Rate an item or change the rating. An unknown user is created, an unknown item refused.

    `timestamp` is in Unix seconds; 0 means unknown and never changes a rating that is already there.
    """

    user_id: str
    item_id: str
    value: float
    timestamp: int = 0


@dataclass(frozen=True, slots=True)
class DeleteRating:
    user_id: str
    item_id: str


@dataclass(frozen=True, slots=True)
class PutMemory:
    """Write a fact of a user's own, or replace it; `memory_id` is unique within the store.

    An unknown user is created. Times are Unix seconds, see `Memory`.
    """

    memory_id: str
    user_id: str
    text: str
    valid_at: int | None = None
    invalid_at: int | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class DeleteMemory:
    """Remove a user's memory with its relations, those that lead to it included.

    Another user's counts as unknown.
    """

    memory_id: str
    user_id: str


@dataclass(frozen=True, slots=True)
class PutRelation:
    """Relate a user's memory to an item, or to another memory of that user."""

    user_id: str
    memory_id: str
    name: str
    target_kind: TargetKind
    target_id: str


@dataclass(frozen=True, slots=True)
class DeleteRelation:
    user_id: str
    memory_id: str
    name: str
    target_kind: TargetKind
    target_id: str


@dataclass(frozen=True, slots=True)
class PutPointer:
    scope: str
    name: str
    value: Mapping[str, object]
    if_version: int | None = None
    """Version the pointer must have, 0 for none yet; PointerMoved otherwise. None: whatever it is."""


@dataclass(frozen=True, slots=True)
class PutTextVector:
    """Give a node the vector of its text under a model, replacing the one before.

    Nothing changes, and nothing is refused, when the node is gone or its text is no longer the one of
    `text_digest`: the answer of an embedder may be late.
    """

    kind: TextKind
    node_id: str
    model: str
    text_digest: str  # `graph.node_text.text_digest` of the text that was embedded
    vector: bytes  # float16 [d], little-endian; d is the same for all vectors of the model


@dataclass(frozen=True, slots=True)
class DeleteTextVector:
    """Remove the vector of a row under a model; nothing changes when there is none."""

    kind: TextKind
    row: int
    model: str


@dataclass(frozen=True, slots=True)
class PutApiKey:
    """Add a key under an id that no other has. An unknown user of a user's key is created."""

    key_id: str
    role: Role
    digest: str  # SHA-256 of the secret, 64 hex digits
    created_at: int  # Unix seconds
    user_id: str = ""
    label: str = ""
    expires_at: int | None = None  # Unix seconds


@dataclass(frozen=True, slots=True)
class DeleteApiKey:
    """Revoke a key."""

    key_id: str


Operation: TypeAlias = (
    PutUser
    | DeleteUser
    | PutItem
    | DeleteItem
    | PutRating
    | DeleteRating
    | PutMemory
    | DeleteMemory
    | PutRelation
    | DeleteRelation
    | PutPointer
    | PutTextVector
    | DeleteTextVector
    | PutApiKey
    | DeleteApiKey
)


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's key for one write: `scope` names the caller and route, `digest` the body."""

    scope: str
    key: str
    digest: str
    ttl_s: float = 24 * 3600.0
    keep_unchanged: bool = True  # remember also a write that changed nothing


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """Operations that become visible together, as one version."""

    operations: tuple[Operation, ...]
    idempotency: Idempotency | None = None


@dataclass(frozen=True, slots=True)
class WriteResult:
    """`version` holds the write; `changed` counts rows that differ from before (0: nothing was written).

    Text vectors count only where nothing else changed.
    """

    version: int
    changed: int
    replayed: bool = False
