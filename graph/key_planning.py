"""Planning writes of API keys. A user's keys are that user's own: they go when the user goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from graph.errors import Conflict, UnknownApiKey
from graph.planned_graph import PlannedGraph
from graph.schema import ApiKey, DeleteApiKey, PutApiKey, User
from graph.validation import check_api_key


def put_api_key(graph: PlannedGraph, operation: PutApiKey, create_user: Callable[[str], User]) -> None:
    check_api_key(operation)
    if graph.api_key(operation.key_id) is not None:
        raise Conflict(f"there is a key {operation.key_id!r} already", param="key_id")
    if operation.user_id and graph.user(operation.user_id) is None:
        # So that deleting the user finds the key: an id that is used again must not open to an older key.
        create_user(operation.user_id)
    graph.now.api_keys[operation.key_id] = ApiKey(
        operation.key_id,
        operation.role,
        operation.user_id,
        operation.digest,
        operation.label,
        operation.created_at,
        operation.expires_at,
        graph.version,
    )


def delete_api_key(graph: PlannedGraph, operation: DeleteApiKey) -> None:
    key = graph.api_key(operation.key_id)
    if key is None:
        raise UnknownApiKey(f"no key {operation.key_id[:80]!r}; it may have been revoked", param="key_id")
    revoke(graph, key)


def revoke(graph: PlannedGraph, key: ApiKey) -> None:
    """Leave a tombstone, without the digest, the label and whose it was."""
    graph.now.api_keys[key.key_id] = replace(
        key, user_id="", digest="", label="", version=graph.version, deleted=True
    )
