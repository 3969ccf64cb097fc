"""A Backend in memory: enough of the service to test HTTP against, with every call on record."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np

from deployments.messages import (
    CacheInvalidation,
    EmbedAnswer,
    EmbedQuery,
    EncoderInfo,
    ItemRecord,
    NodeEmbedding,
    Page,
    RatingRecord,
    Reason,
    RecommendAnswer,
    Recommendation,
    RecommendQuery,
    RerankAnswer,
    RerankQuery,
    SearchAnswer,
    SearchQuery,
    SimilarAnswer,
    UserRecord,
)
from graph.errors import (
    IdempotencyConflict,
    InvalidInput,
    NotYet,
    TextTooLong,
    UnknownApiKey,
    UnknownEncoder,
    UnknownItem,
    UnknownRating,
    UnknownTextModel,
    UnknownUser,
)
from graph.schema import (
    ApiKey,
    DeleteApiKey,
    DeleteItem,
    DeleteRating,
    DeleteUser,
    Item,
    PutApiKey,
    PutItem,
    PutRating,
    PutUser,
    User,
    WriteRequest,
    WriteResult,
)
from tests.deployments.ingress.fake_generation import FakeGeneration
from tests.deployments.ingress.fake_memories import FakeMemories

ENCODER = "e" * 16
MODEL, TEXT_MODEL = "fake/Text-Model", "text-model-0123456789ab"
DIMENSIONS, SHORT = 384, 128
WINDOW = 8  # words


@dataclass
class FakeBackend(FakeGeneration, FakeMemories):
    """`raises` is raised by every call; `view_version` (None: the head) is how far reads have come."""

    store_id: str = "store1"
    version: int = 0
    view_version: int | None = None
    raises: Exception | None = None
    raises_for: dict[str, Exception] = field(default_factory=dict)
    is_ready: bool = True
    has_text_model: bool = True
    known_users: dict[str, User] = field(default_factory=dict)
    known_items: dict[str, Item] = field(default_factory=dict)
    known_ratings: dict[tuple[str, str], RatingRecord] = field(default_factory=dict)
    known_keys: dict[str, ApiKey] = field(default_factory=dict)
    writes: list[WriteRequest] = field(default_factory=list)
    queries: list[RecommendQuery] = field(default_factory=list)
    asked: list[EmbedQuery | SearchQuery | RerankQuery | CacheInvalidation] = field(default_factory=list)
    cached: set[str] = field(default_factory=set)
    min_versions: list[int] = field(default_factory=list)
    replies: dict[tuple[str, str], tuple[str, WriteResult]] = field(default_factory=dict)

    async def write(self, request: WriteRequest) -> WriteResult:
        if self.raises is not None:
            raise self.raises
        self.writes.append(request)
        key = request.idempotency
        if key is not None and (key.scope, key.key) in self.replies:
            digest, result = self.replies[key.scope, key.key]
            if digest != key.digest:
                raise IdempotencyConflict("the key was used with another body", param="Idempotency-Key")
            return WriteResult(result.version, result.changed, replayed=True)
        kept = self._kept()
        try:
            changed = sum([self._apply(operation) for operation in request.operations])
        except Exception:
            vars(self).update(kept)  # all of it, or nothing
            raise
        if changed:
            self.version += 1
        result = WriteResult(self.version, changed)
        if key is not None:
            self.replies[key.scope, key.key] = (key.digest, result)
        return result

    def _kept(self) -> dict[str, object]:
        names = ("users", "items", "ratings", "memories", "relations", "keys")
        return {name: getattr(self, name).copy() for name in (*(f"known_{n}" for n in names), "owners")}

    def _apply(self, operation: object) -> int:
        row, version = len(self.known_users) + len(self.known_items), self.version + 1
        match operation:
            case PutUser(user_id, attributes):
                self.known_users[user_id] = User(row, user_id, attributes, version)
            case PutItem(item_id, title, tags, year, text):
                self.known_items[item_id] = Item(row, item_id, title, tags, year, text, version)
            case PutRating(user_id, item_id, value, timestamp):
                if item_id not in self.known_items:
                    raise UnknownItem(f"there is no item {item_id!r}", param="item_id")
                self.known_users.setdefault(user_id, User(row, user_id, {}, version))
                self.known_ratings[user_id, item_id] = RatingRecord(item_id, value, timestamp)
            case PutApiKey(key_id, role, digest, created_at, user_id, label, expires_at):
                self.known_keys[key_id] = ApiKey(
                    key_id, role, user_id, digest, label, created_at, expires_at, version
                )
            case DeleteApiKey(key_id):
                if self.known_keys.pop(key_id, None) is None:
                    raise UnknownApiKey(f"no key {key_id!r}", param="key_id")
            case DeleteUser(user_id):
                self._user(user_id)
                self._apply_memory(operation)
                del self.known_users[user_id]
            case DeleteItem(item_id):
                self._item(item_id)
                self._apply_memory(operation)
                del self.known_items[item_id]
            case DeleteRating(user_id, item_id):
                if (user_id, item_id) not in self.known_ratings:
                    raise UnknownRating(f"user {user_id!r} has not rated item {item_id!r}")
                del self.known_ratings[user_id, item_id]
            case _:
                return self._apply_memory(operation)
        return 1

    def _read(self, min_version: int, name: str | None = None) -> int:
        self.min_versions.append(min_version)
        if self.raises is not None:
            raise self.raises
        if name in self.raises_for:
            raise self.raises_for[name]
        reached = self.version if self.view_version is None else self.view_version
        if reached < min_version:
            raise NotYet(f"the view is at {reached}", param="min_version")
        return reached

    def _user(self, user_id: str) -> User:
        if user_id not in self.known_users:
            raise UnknownUser(f"there is no user {user_id!r}", param="user_id")
        return self.known_users[user_id]

    def _item(self, item_id: str) -> Item:
        if item_id not in self.known_items:
            raise UnknownItem(f"there is no item {item_id!r}", param="item_id")
        return self.known_items[item_id]

    async def user(self, user_id: str, min_version: int) -> UserRecord:
        version = self._read(min_version, user_id)
        count = sum(user == user_id for user, _ in self.known_ratings)
        return UserRecord(self._user(user_id), count, version)

    async def item(self, item_id: str, min_version: int) -> ItemRecord:
        version = self._read(min_version, item_id)
        count = sum(item == item_id for _, item in self.known_ratings)
        return ItemRecord(self._item(item_id), count, version)

    async def api_keys(self, limit: int, after: str | None, min_version: int) -> Page:
        keys = [replace(key, digest="") for _, key in sorted(self.known_keys.items())]
        return _page(keys, limit, after, self._read(min_version))

    async def users(self, limit: int, after: str | None, min_version: int) -> Page:
        version = self._read(min_version)
        return _page([UserRecord(u, 0, version) for u in self.known_users.values()], limit, after, version)

    async def items(self, limit: int, after: str | None, min_version: int) -> Page:
        version = self._read(min_version)
        return _page([ItemRecord(i, 0, version) for i in self.known_items.values()], limit, after, version)

    async def ratings(self, user_id: str, limit: int, after: str | None, min_version: int) -> Page:
        version = self._read(min_version, user_id)
        self._user(user_id)
        rated = [record for (user, _), record in self.known_ratings.items() if user == user_id]
        return _page(rated, limit, after, version)

    async def recommend(self, query: RecommendQuery) -> RecommendAnswer:
        self.queries.append(query)
        version = self._read(query.min_version, query.user_id)
        if query.user_id is not None:
            self._user(query.user_id)
        found = tuple(
            Recommendation(item.item_id, item.title, 1.5, (Reason(item.item_id, item.title, 0.25),))
            for item in list(self.known_items.values())[: query.n]
        )
        return RecommendAnswer(query.user_id, found, "personal", version, version, ENCODER)

    async def similar(
        self,
        item_id: str,
        n: int,
        tags: tuple[str, ...],
        exclude: tuple[str, ...],
        min_version: int,
        by: str = "graph",
    ) -> SimilarAnswer:
        version = self._read(min_version, item_id)
        self._item(item_id)
        others = [i for i in self.known_items.values() if i.item_id != item_id and i.item_id not in exclude]
        found = tuple(Recommendation(i.item_id, i.title, 0.5) for i in others[:n] if set(tags) <= set(i.tags))
        return SimilarAnswer(item_id, found, version, version, by, ENCODER if by == "graph" else TEXT_MODEL)

    async def embed(self, query: EmbedQuery) -> EmbedAnswer:
        self.asked.append(query)
        self._read(0)
        if query.model not in (None, MODEL, TEXT_MODEL):
            raise UnknownTextModel(f"there is no text model {query.model!r}", param="model")
        if query.dimensions not in (None, SHORT, DIMENSIONS):
            raise InvalidInput(f"{MODEL} has no vectors of {query.dimensions} numbers", param="dimensions")
        tokens = np.array([len(text.split()) for text in query.texts], np.int32)
        if not query.truncate and (tokens > WINDOW).any():
            raise TextTooLong(f"a text has more than {WINDOW} tokens", param="input")
        vectors = np.stack([vector_of(text, query.prompt or "") for text in query.texts])
        hits = sum(text in self.cached for text in query.texts)
        self.cached.update(query.texts)
        truncated = int((tokens > WINDOW).sum())
        return EmbedAnswer(
            vectors[:, : query.dimensions or DIMENSIONS], tokens, hits, truncated, MODEL, TEXT_MODEL
        )

    async def search(self, query: SearchQuery) -> SearchAnswer:
        self.asked.append(query)
        version = self._read(query.min_version)
        found = [
            Recommendation(item.item_id, item.title, 1.0 / (place + 1))
            for place, item in enumerate(self.known_items.values())
            if set(query.tags) <= set(item.tags)
            and item.item_id not in query.exclude
            and (query.candidates is None or item.item_id in query.candidates)
        ]
        model = TEXT_MODEL if self.has_text_model else None
        return SearchAnswer(tuple(found[: query.n]), version, model, waiting=2)

    async def rerank(self, query: RerankQuery) -> RerankAnswer:
        self.asked.append(query)
        self._read(0)
        asked = vector_of(query.query)
        scores = [float(vector_of(document) @ asked) for document in query.documents]
        order = sorted(range(len(scores)), key=lambda place: -scores[place])[: query.top_n]
        tokens = sum(len(text.split()) for text in (query.query, *query.documents))
        return RerankAnswer(tuple(order), tuple(scores[place] for place in order), tokens, TEXT_MODEL)

    async def cache_statistics(self) -> dict[str, object]:
        self._read(0)
        return {"store": "memory", "hits": 3, "tiers": [{"name": "memory", "entries": len(self.cached)}]}

    async def invalidate_cache(self, what: CacheInvalidation) -> int:
        self.asked.append(what)
        self._read(0)
        all_of_it = what.everything or what.model == TEXT_MODEL
        dropped = self.cached & (self.cached if all_of_it else set(what.texts))
        self.cached -= dropped
        return len(dropped)

    async def node_embedding(
        self, node_id: str, kind: str | None, owner: str | None, min_version: int
    ) -> NodeEmbedding:
        version = self._read(min_version, node_id)
        if kind is None and node_id in self.known_users and node_id in self.known_items:
            raise InvalidInput("a user and an item have this id: say kind", param="kind")
        if kind == "memory":
            self._user(str(owner))
            self._memory(owner, node_id)
            return NodeEmbedding(node_id, kind, np.array([1.5, 0.0], np.float32), ENCODER, version)
        found = "user" if node_id in self.known_users and kind != "item" else "item"
        if found == "item":
            self._item(node_id)
        return NodeEmbedding(node_id, found, np.array([0.5, -1.0], np.float32), ENCODER, version)

    async def encoders(self) -> list[EncoderInfo]:
        self._read(0)
        return [EncoderInfo(ENCODER, "active", 2, {"seed": 1})]

    async def activate_encoder(self, digest: str) -> WriteResult:
        self._read(0)
        if digest != ENCODER:
            raise UnknownEncoder(f"there is no encoder {digest!r}", param="digest")
        self.version += 1
        return WriteResult(self.version, 1)

    async def ready(self) -> tuple[bool, dict[str, object]]:
        self._read(0)
        return self.is_ready, {"encoder": "loaded" if self.is_ready else "loading"}

    async def status(self) -> dict[str, object]:
        self._read(0)
        return {"head": self.version, "users": len(self.known_users)}


def vector_of(text: str, prompt: str = "") -> np.ndarray:
    """A unit vector float32 [DIMENSIONS] that any process makes of this text and prompt alike."""
    seed = int.from_bytes(hashlib.sha256(f"{prompt}\0{text}".encode()).digest()[:8], "little")
    vector = np.random.default_rng(seed).standard_normal(DIMENSIONS)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _page(records: list, limit: int, after: str | None, version: int) -> Page:  # type: ignore[type-arg]
    start = int(after) if after else 0
    end = start + limit
    return Page(tuple(records[start:end]), str(end) if end < len(records) else None, version)
