"""Adapter versions and what is active of them, as one replica knows them from the feed."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence

from deployments.generation_messages import AdapterState, AdapterVersion
from graph.schema import Pointer, PutPointer
from graph.view import GraphView
from models.adapter_pointers import (
    ADAPTER_SCOPES,
    VERSION_SCOPE,
    AdapterArm,
    AdapterScope,
    decode_arms,
    decode_digest,
    decode_previous,
    decode_version,
    encode_state,
    split_version_name,
    state_scope,
    version_name,
)

_STATE_SCOPES = {state_scope(scope): scope for scope in ADAPTER_SCOPES}


class AdapterVersions:
    """All versions in the order of their pointers' names, and which of them share files."""

    def __init__(self, view: GraphView) -> None:
        self._view = view
        self._digests: dict[str, str] = {}  # by pointer name
        self._users: dict[str, set[str]] = {}  # pointer names by digest
        for pointer in view.pointers():
            if pointer.scope == VERSION_SCOPE and (digest := decode_digest(pointer.value)):
                self._digests[pointer.name] = digest
                self._users.setdefault(digest, set()).add(pointer.name)
        self._names = sorted(self._digests)

    def apply(self, pointers: Iterable[Pointer]) -> set[str]:
        """Take over pointers that the view has already; returns digests that no version has any more."""
        left: set[str] = set()
        for pointer in pointers:
            if pointer.scope != VERSION_SCOPE:
                continue
            now = None if pointer.deleted else decode_digest(pointer.value)
            before = self._digests.pop(pointer.name, None)
            if before is not None:
                self._users[before].discard(pointer.name)
                left.add(before)
            if now is not None:
                self._digests[pointer.name] = now
                self._users.setdefault(now, set()).add(pointer.name)
                if before is None:
                    insort(self._names, pointer.name)
            elif before is not None:
                del self._names[bisect_left(self._names, pointer.name)]
        gone = {digest for digest in left if not self._users[digest]}
        for digest in gone:
            del self._users[digest]
        return gone

    def in_use(self, digest: str) -> bool:
        """Whether any version has these files."""
        return digest in self._users

    def find(self, scope: AdapterScope, name: str, version: str) -> Pointer | None:
        """The pointer of a version, unless it was never put or is deleted."""
        found = self.pointer(scope, name, version)
        return found if found is not None and decode_digest(found.value) else None

    def pointer(self, scope: AdapterScope, name: str, version: str) -> Pointer | None:
        """Like `find`, also of a deleted version."""
        return self._view.pointer(VERSION_SCOPE, version_name(scope, name, version))

    def page(
        self, limit: int, after: str | None, scope: AdapterScope | None, name: str | None
    ) -> tuple[list[Pointer], str | None]:
        """Pointers of versions behind the cursor, and the cursor of the page after them."""
        prefix = f"{scope}/{name}/" if scope and name else f"{scope}/" if scope else ""
        first = bisect_left(self._names, prefix)
        if after is not None:
            first = max(first, bisect_right(self._names, after))
        found: list[str] = []
        for place in range(first, len(self._names)):
            key = self._names[place]
            if not key.startswith(prefix):
                break
            if name is None or split_version_name(key)[1] == name:
                found.append(key)
                if len(found) > limit:
                    break
        page = [self._view.pointer(VERSION_SCOPE, key) for key in found[:limit]]
        return [p for p in page if p is not None], found[limit - 1] if len(found) > limit else None

    def state(self, scope: AdapterScope, name: str) -> AdapterState | None:
        """What is active, if anything ever was."""
        found = self._view.pointer(state_scope(scope), name)
        return None if found is None else state_of(found)

    def active(self) -> Iterator[AdapterState]:
        """Every pointer that names a version now."""
        for pointer in self._view.pointers():
            if is_state(pointer) and not pointer.deleted:
                state = state_of(pointer)
                if state.arms:
                    yield state


def put_version(
    scope: AdapterScope, name: str, version: str, value: dict[str, object] | None, if_version: int
) -> PutPointer:
    """Say what a version is; None: it is deleted."""
    return PutPointer(
        VERSION_SCOPE, version_name(scope, name, version), value or {"digest": None}, if_version
    )


def put_state(
    scope: AdapterScope,
    name: str,
    arms: Sequence[AdapterArm],
    previous: Sequence[AdapterArm],
    action: str,
    if_version: int,
) -> PutPointer:
    return PutPointer(state_scope(scope), name, encode_state(arms, previous, action), if_version)


def is_state(pointer: Pointer) -> bool:
    return pointer.scope in _STATE_SCOPES


def state_of(pointer: Pointer) -> AdapterState:
    """A pointer of the scopes `adapter.user`, `adapter.domain` and `adapter.global`."""
    return AdapterState(
        _STATE_SCOPES[pointer.scope],
        pointer.name,
        decode_arms(pointer.value),
        decode_previous(pointer.value),
        pointer.version,
        str(pointer.value.get("action", "")),
    )


def version_of(
    pointer: Pointer, state: AdapterState | None, resident: Callable[[str], bool] = lambda digest: False
) -> AdapterVersion:
    """A pointer of the scope `adapter_version` that is not deleted."""
    scope, name, version = split_version_name(pointer.name)
    files = decode_version(pointer.value)
    if files is None:
        raise ValueError(f"version {pointer.name} is deleted")
    return AdapterVersion(
        scope,
        name,
        version,
        files.digest,
        files.size_bytes,
        files.rank,
        files.modules,
        files.created_at,
        active=state is not None and version in {arm.version for arm in state.arms},
        resident=resident(files.digest),
    )
