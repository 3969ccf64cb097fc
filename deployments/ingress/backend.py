"""What the HTTP layer needs from the rest of the application.

The routes know this protocol alone: in the service it is implemented over deployment handles, in unit tests
by an in-memory fake. Every method raises subclasses of `graph.errors.WeftError` and nothing else on purpose.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from deployments.generation_messages import (
    ActivateAdapter,
    AdapterListing,
    AdapterScope,
    AdapterState,
    AdapterWritten,
    Delta,
    Ended,
    GenerateAnswer,
    GenerateQuery,
    LanguageModelInfo,
    PutAdapter,
    Started,
)
from deployments.memory_messages import (
    ContextCandidates,
    FittedContext,
    GraphAnswer,
    MemoryPage,
    MemoryQuery,
    MemoryRecord,
    MemorySearchAnswer,
)
from deployments.messages import (
    CacheInvalidation,
    EmbedAnswer,
    EmbedQuery,
    EncoderInfo,
    ItemRecord,
    NodeEmbedding,
    Page,
    RecommendAnswer,
    RecommendQuery,
    RerankAnswer,
    RerankQuery,
    SearchAnswer,
    SearchQuery,
    SimilarAnswer,
    UserRecord,
)
from graph.schema import WriteRequest, WriteResult


class Backend(Protocol):
    @property
    def store_id(self) -> str:
        """The store behind this service; tokens of other stores are refused."""
        ...

    async def write(self, request: WriteRequest) -> WriteResult:
        """Commit durably and answer the version that holds the write."""
        ...

    async def user(self, user_id: str, min_version: int) -> UserRecord: ...

    async def item(self, item_id: str, min_version: int) -> ItemRecord: ...

    async def api_keys(self, limit: int, after: str | None, min_version: int) -> Page:
        """Keys that were not revoked, without their digests."""
        ...

    async def users(self, limit: int, after: str | None, min_version: int) -> Page: ...

    async def items(self, limit: int, after: str | None, min_version: int) -> Page: ...

    async def ratings(self, user_id: str, limit: int, after: str | None, min_version: int) -> Page: ...

    async def recommend(self, query: RecommendQuery) -> RecommendAnswer: ...

    async def similar(
        self,
        item_id: str,
        n: int,
        tags: tuple[str, ...],
        exclude: tuple[str, ...],
        min_version: int,
        by: str = "graph",
    ) -> SimilarAnswer:
        """`by` is "graph" or "text"."""
        ...

    async def embed(self, query: EmbedQuery) -> EmbedAnswer:
        """Raises TextTooLong, InvalidInput for `dimensions` the model does not have, UnknownTextModel."""
        ...

    async def search(self, query: SearchQuery) -> SearchAnswer: ...

    async def rerank(self, query: RerankQuery) -> RerankAnswer: ...

    async def cache_statistics(self) -> dict[str, object]:
        """Hits, misses, tiers and the store behind them; plain JSON."""
        ...

    async def invalidate_cache(self, what: CacheInvalidation) -> int:
        """Entries dropped."""
        ...

    async def generate(self, query: GenerateQuery) -> GenerateAnswer:
        """Raises Overloaded, TextTooLong, UnknownAdapter, UnknownModel, OutOfMemory, Unavailable."""
        ...

    def stream(self, query: GenerateQuery) -> AsyncIterator[Started | Delta | Ended]:
        """`Started`, `Delta`s, `Ended`. Raises as `generate` does, in the middle as well.

        Closing the iterator cancels the generation.
        """
        ...

    async def language_model(self) -> LanguageModelInfo: ...

    async def memory(self, user_id: str, memory_id: str, min_version: int) -> MemoryRecord:
        """Raises UnknownUser, and UnknownMemory also for a memory of somebody else."""
        ...

    async def memories(self, user_id: str, limit: int, after: str | None, min_version: int) -> MemoryPage: ...

    async def search_memories(self, query: MemoryQuery) -> MemorySearchAnswer:
        """Embeds the text itself where `vector` is None. Raises UnknownUser."""
        ...

    async def user_graph(self, user_id: str, depth: int, limit: int, min_version: int) -> GraphAnswer:
        """Nodes up to `depth` edges from the user, at most `limit` of them."""
        ...

    async def context_lines(
        self, user_id: str, query: str, min_version: int, explain_item: str | None = None
    ) -> ContextCandidates:
        """Lines for a prompt; parts of the service that are away leave theirs out and are in `missing`.

        With `explain_item` that item is among them, as a suggestion with its reasons. Raises UnknownUser,
        UnknownItem.
        """
        ...

    async def fit_context(self, lines: ContextCandidates, max_tokens: int) -> FittedContext:
        """The lines as a prompt would have them, counted by the language model's tokenizer."""
        ...

    async def adapters(
        self, limit: int, after: str | None, scope: AdapterScope | None, name: str | None, min_version: int
    ) -> AdapterListing: ...

    async def put_adapter(self, what: PutAdapter, min_version: int) -> AdapterWritten:
        """Raises InvalidAdapter, InvalidInput for a path, Conflict for a version that has other files."""
        ...

    async def activate_adapter(self, what: ActivateAdapter, min_version: int) -> AdapterWritten:
        """Raises UnknownAdapter for a version that was never put."""
        ...

    async def roll_back_adapter(self, scope: AdapterScope, name: str, min_version: int) -> AdapterWritten:
        """Make what was active before active again. Raises Conflict when nothing was."""
        ...

    async def delete_adapter(
        self, scope: AdapterScope, name: str, version: str, min_version: int
    ) -> AdapterWritten:
        """Raises AdapterInUse while it is active or the one to roll back to."""
        ...

    async def adapter_history(
        self, scope: AdapterScope, name: str, min_version: int
    ) -> tuple[AdapterState, ...]:
        """Every state the pointer had, oldest first."""
        ...

    async def node_embedding(
        self, node_id: str, kind: str | None, owner: str | None, min_version: int
    ) -> NodeEmbedding:
        """`kind` is "user", "item", "memory" or None: the user or item, InvalidInput if there are both."""
        ...

    async def encoders(self) -> list[EncoderInfo]: ...

    async def activate_encoder(self, digest: str) -> WriteResult:
        """Make an encoder of the data directory the running one, on every replica."""
        ...

    async def ready(self) -> tuple[bool, dict[str, object]]:
        """Whether every part can answer at full speed, and the state of each part."""
        ...

    async def status(self) -> dict[str, object]:
        """Versions, sizes, followers, encoder and process facts, for operators."""
        ...
