"""The store's tables. Queryable as they stand: one row per thing, latest state, `version` that wrote it."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

SCHEMA_VERSION = 4
"""2: text_vectors. 3: relations; validity and source of memories. 4: api_keys."""

metadata = MetaData()

meta = Table(
    "meta",
    metadata,
    Column("id", Integer, primary_key=True),  # always 1
    Column("store_id", String(32), nullable=False),
    Column("schema_version", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),  # the writer in power; see GraphStore.take_over
    Column("head", BigInteger, nullable=False),  # newest committed version
    Column("horizon", BigInteger, nullable=False),  # tombstones up to here are gone
    # Kept here, not derived: after a purge the largest row in a table says nothing about rows given out.
    Column("next_user_row", BigInteger, nullable=False),
    Column("next_item_row", BigInteger, nullable=False),
    Column("next_memory_row", BigInteger, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("row", BigInteger, primary_key=True, autoincrement=False),
    Column("user_id", Text, nullable=False),
    Column("attributes", JSON, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Index("users_by_version", "version"),
    Index("users_by_id", "user_id"),
)

items = Table(
    "items",
    metadata,
    Column("row", BigInteger, primary_key=True, autoincrement=False),
    Column("item_id", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("year", Integer),
    Column("text", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Index("items_by_version", "version"),
    Index("items_by_id", "item_id"),
)

ratings = Table(
    "ratings",
    metadata,
    Column("user_row", BigInteger, primary_key=True, autoincrement=False),
    Column("item_row", BigInteger, primary_key=True, autoincrement=False),
    Column("value", Float, nullable=False),
    Column("timestamp", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Index("ratings_by_version", "version"),
    sqlite_with_rowid=False,  # the primary key is the table: one b-tree instead of two
)

memories = Table(
    "memories",
    metadata,
    Column("row", BigInteger, primary_key=True, autoincrement=False),
    Column("memory_id", Text, nullable=False),
    Column("user_row", BigInteger, nullable=False),
    Column("text", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("valid_at", BigInteger),  # Unix seconds; null: always did
    Column("invalid_at", BigInteger),  # Unix seconds; null: still does
    Column("source", Text, nullable=False, server_default=""),
    Index("memories_by_version", "version"),
    Index("memories_by_user", "user_row"),
)

relations = Table(
    "relations",
    metadata,
    Column("memory_row", BigInteger, primary_key=True, autoincrement=False),
    Column("name", String(64), primary_key=True),
    Column("target_kind", String(16), primary_key=True),
    Column("target_row", BigInteger, primary_key=True, autoincrement=False),
    Column("version", BigInteger, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Index("relations_by_version", "version"),
    sqlite_with_rowid=False,  # as for ratings
)

text_vectors = Table(
    "text_vectors",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("row", BigInteger, primary_key=True, autoincrement=False),
    Column("model", String(128), primary_key=True),
    Column("text_digest", String(32), nullable=False),  # empty in a tombstone
    Column("vector", LargeBinary, nullable=False),  # float16, little-endian; empty in a tombstone
    Column("version", BigInteger, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Index("text_vectors_by_version", "version"),
    # With a rowid, unlike ratings: rows of about a kilobyte fill the inner pages of the one b-tree, and
    # writes take three times as long.
)

pointers = Table(
    "pointers",
    metadata,
    Column("scope", String(256), primary_key=True),
    Column("name", String(256), primary_key=True),
    Column("value", JSON, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Index("pointers_by_version", "version"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", String(64), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("user_id", Text, nullable=False),  # empty unless the role is "user"
    Column("digest", String(64), nullable=False),  # SHA-256 of the secret; empty in a tombstone
    Column("label", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),  # Unix seconds
    Column("expires_at", BigInteger),  # Unix seconds; null: never
    Column("version", BigInteger, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Index("api_keys_by_version", "version"),
)

pointer_history = Table(
    "pointer_history",
    metadata,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("scope", String(256), primary_key=True),
    Column("name", String(256), primary_key=True),
    Column("value", JSON, nullable=False),
    Column("written_at", Float, nullable=False),  # Unix seconds
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("scope", String(512), primary_key=True),
    Column("key", String(256), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("changed", Integer, nullable=False),
    Column("expires_at", Float, nullable=False),  # Unix seconds
    Index("idempotency_by_expiry", "expires_at"),
)
