"""The backend as a user's key sees it: that user, the items, and nothing of anybody else.

Every call that names a user is refused for another one, whatever route it comes from; calls that are not
written down here are refused altogether. So a route that forgets to ask cannot give anything away.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import NoReturn

from deployments.generation_messages import (
    Delta,
    Ended,
    GenerateAnswer,
    GenerateQuery,
    LanguageModelInfo,
    Started,
)
from deployments.ingress.backend import Backend
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
    ItemRecord,
    NodeEmbedding,
    Page,
    RecommendAnswer,
    RecommendQuery,
    SearchAnswer,
    SearchQuery,
    SimilarAnswer,
    UserRecord,
)
from graph.errors import Forbidden, InvalidInput
from graph.schema import (
    DeleteMemory,
    DeleteRating,
    DeleteRelation,
    DeleteUser,
    PutMemory,
    PutRating,
    PutRelation,
    PutUser,
    WriteRequest,
    WriteResult,
)
from models.adapter_pointers import parse_reference

_OWN_OPERATIONS = (
    PutUser,
    DeleteUser,
    PutRating,
    DeleteRating,
    PutMemory,
    DeleteMemory,
    PutRelation,
    DeleteRelation,
)


class OwnBackend:
    """What of `backend` belongs to `user_id` or to everybody. Raises Forbidden for the rest."""

    def __init__(self, backend: Backend, user_id: str) -> None:
        self._backend, self._user_id = backend, user_id

    def __getattr__(self, name: str) -> NoReturn:
        raise Forbidden("a user's key is for what is that user's own, and for looking at items")

    @property
    def store_id(self) -> str:
        return self._backend.store_id

    # ------------------------------------------------------------------------------------------- the user's

    async def write(self, request: WriteRequest) -> WriteResult:
        for operation in request.operations:
            if not isinstance(operation, _OWN_OPERATIONS):
                raise Forbidden("a user's key writes that user's own ratings and memories only")
            self._check(operation.user_id)
        return await self._backend.write(request)

    async def user(self, user_id: str, min_version: int) -> UserRecord:
        self._check(user_id)
        return await self._backend.user(user_id, min_version)

    async def ratings(self, user_id: str, limit: int, after: str | None, min_version: int) -> Page:
        self._check(user_id)
        return await self._backend.ratings(user_id, limit, after, min_version)

    async def recommend(self, query: RecommendQuery) -> RecommendAnswer:
        if query.user_id is not None:  # a session names nobody
            self._check(query.user_id)
        return await self._backend.recommend(query)

    async def memory(self, user_id: str, memory_id: str, min_version: int) -> MemoryRecord:
        self._check(user_id)
        return await self._backend.memory(user_id, memory_id, min_version)

    async def memories(self, user_id: str, limit: int, after: str | None, min_version: int) -> MemoryPage:
        self._check(user_id)
        return await self._backend.memories(user_id, limit, after, min_version)

    async def search_memories(self, query: MemoryQuery) -> MemorySearchAnswer:
        self._check(query.user_id)
        return await self._backend.search_memories(query)

    async def user_graph(self, user_id: str, depth: int, limit: int, min_version: int) -> GraphAnswer:
        self._check(user_id)
        return await self._backend.user_graph(user_id, depth, limit, min_version)

    async def context_lines(
        self, user_id: str, query: str, min_version: int, explain_item: str | None = None
    ) -> ContextCandidates:
        self._check(user_id)
        return await self._backend.context_lines(user_id, query, min_version, explain_item)

    async def fit_context(self, lines: ContextCandidates, max_tokens: int) -> FittedContext:
        """Lines that the caller has been given before."""
        return await self._backend.fit_context(lines, max_tokens)

    async def node_embedding(
        self, node_id: str, kind: str | None, owner: str | None, min_version: int
    ) -> NodeEmbedding:
        """Without a kind it is the user, where the id is the user's, and else an item."""
        if owner is not None:
            self._check(owner)
        if kind is None:
            kind = "user" if node_id == self._user_id else "item"
        if kind == "user":
            self._check(node_id)
        return await self._backend.node_embedding(node_id, kind, owner, min_version)

    async def generate(self, query: GenerateQuery) -> GenerateAnswer:
        self._check_generation(query)
        return await self._backend.generate(query)

    def stream(self, query: GenerateQuery) -> AsyncIterator[Started | Delta | Ended]:
        self._check_generation(query)
        return self._backend.stream(query)

    async def language_model(self) -> LanguageModelInfo:
        """Without the names of other users, after whom adapters are called."""
        info = await self._backend.language_model()
        return replace(info, adapters=tuple(name for name in info.adapters if self._may_use(name)))

    # ----------------------------------------------------------------------------------------- everybody's

    async def item(self, item_id: str, min_version: int) -> ItemRecord:
        return await self._backend.item(item_id, min_version)

    async def items(self, limit: int, after: str | None, min_version: int) -> Page:
        return await self._backend.items(limit, after, min_version)

    async def similar(
        self,
        item_id: str,
        n: int,
        tags: tuple[str, ...],
        exclude: tuple[str, ...],
        min_version: int,
        by: str = "graph",
    ) -> SimilarAnswer:
        return await self._backend.similar(item_id, n, tags, exclude, min_version, by)

    async def search(self, query: SearchQuery) -> SearchAnswer:
        return await self._backend.search(query)

    # ------------------------------------------------------------------------------------------- internals

    def _check(self, user_id: str) -> None:
        if user_id != self._user_id:
            raise Forbidden("this key is another user's", param="user_id")

    def _check_generation(self, query: GenerateQuery) -> None:
        self._check(query.user_id or "")  # in nobody's name prompts would share what is kept of them
        named = (query.adapter, query.model, *(reference for reference, _ in query.blend))
        if not all(self._may_use(reference) for reference in named if reference is not None):
            raise Forbidden(
                "this key is for adapters of its user, of domains and of everybody", param="adapter"
            )

    def _may_use(self, reference: str) -> bool:
        """Whether an adapter, if the text names any, is the user's or everybody's."""
        try:
            found = parse_reference(reference)
        except InvalidInput:
            return True  # the name of the base model, or nothing at all
        # A digest may be of anybody's files.
        return found.digest is None and (found.scope != "user" or found.name == self._user_id)
