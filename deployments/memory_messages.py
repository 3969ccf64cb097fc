"""Plain data of memories and context that crosses deployment handles and the ingress' backend protocol."""

from __future__ import annotations

from dataclasses import dataclass, field

from deployments.messages import Float32
from graph.context_lines import ContextLine
from graph.schema import Memory, TargetKind
from graph.user_graph import UserGraph


@dataclass(frozen=True, slots=True)
class RelationRecord:
    """An edge that leaves a memory. `title` is the item's title, or the beginning of the memory's text."""

    memory_id: str
    name: str
    target_kind: TargetKind
    target_id: str
    title: str


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """A memory with the edges that leave it, as of `version`."""

    memory: Memory
    user_id: str
    relations: tuple[RelationRecord, ...]
    version: int


@dataclass(frozen=True, slots=True)
class MemoryPage:
    """Some of a user's memories, oldest first; `next` is the cursor of the following page."""

    records: tuple[MemoryRecord, ...]
    next: str | None
    version: int


@dataclass(frozen=True, slots=True, eq=False)
class MemoryQuery:
    """Search among one user's memories.

    `vector` float32 [d] is the text's under `text_model`; None where no embedder answered in time: then, and
    for memories without a vector, words decide.
    """

    user_id: str
    text: str
    n: int = 10
    vector: Float32 | None = None
    text_model: str | None = None
    valid_only: bool = False  # leave out what holds no longer, or not yet
    min_version: int = 0


@dataclass(frozen=True, slots=True)
class FoundMemory:
    record: MemoryRecord
    score: float


@dataclass(frozen=True, slots=True)
class MemorySearchAnswer:
    found: tuple[FoundMemory, ...]
    text_model: str | None  # None: by words alone
    version: int


@dataclass(frozen=True, slots=True)
class GraphAnswer:
    """What of the graph is the user's own."""

    user_id: str
    graph: UserGraph
    version: int


@dataclass(frozen=True, slots=True)
class ContextTimings:
    """Milliseconds, hops between processes included. Embedding and suggestions are asked for side by side."""

    embedding: float = 0.0
    suggestions: float = 0.0
    selection: float = 0.0
    fitting: float = 0.0


@dataclass(frozen=True, slots=True)
class ContextCandidates:
    """Lines for a prompt, the most useful first, before they are cut to a budget of tokens.

    `missing` names what could not take part: "suggestions", "similarity".
    """

    lines: tuple[ContextLine, ...]
    version: int
    missing: tuple[str, ...] = ()
    timings: ContextTimings = field(default=ContextTimings(), compare=False)


@dataclass(frozen=True, slots=True)
class FittedContext:
    """A context as the prompt has it: `text` of `lines`, in the prompt's order, `tokens` long.

    `counted_by` is the model whose tokenizer counted; "bytes" where there is none: an upper bound.
    """

    text: str
    lines: tuple[ContextLine, ...]
    tokens: int
    counted_by: str
    version: int
    missing: tuple[str, ...] = ()
    timings: ContextTimings = field(default=ContextTimings(), compare=False)
