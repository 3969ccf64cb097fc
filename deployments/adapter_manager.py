"""Puts, activates, rolls back and deletes adapters: files in the store of adapters, pointers in the feed."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from deployments.adapter_folder import AdapterFolder
from deployments.adapter_versions import (
    AdapterVersions,
    put_state,
    put_version,
    state_of,
    version_of,
)
from deployments.generation_messages import (
    ActivateAdapter,
    AdapterCandidate,
    AdapterListing,
    AdapterState,
    AdapterVersion,
    AdapterWritten,
    PutAdapter,
)
from deployments.graph_client import GraphStateClient
from deployments.settings import Settings
from graph.errors import (
    AdapterInUse,
    Conflict,
    InvalidInput,
    NotYet,
    PointerMoved,
    Unavailable,
    UnknownAdapter,
    WeftError,
)
from graph.schema import Idempotency, Operation, Pointer, WriteRequest
from models.adapter_pointers import (
    MAX_ARMS,
    AdapterArm,
    AdapterFiles,
    AdapterScope,
    check_adapter_name,
    check_version_label,
    encode_version,
    split_version_name,
    state_scope,
)

if TYPE_CHECKING:
    from models.adapters import Candidate

log = logging.getLogger(__name__)

T = TypeVar("T")

_ATTEMPTS = 8
_CATCH_UP_S = 5.0
_RESTART_S = 15.0
_RETRY_S = 0.05
_OWN_KEY_TTL_S = 600.0  # a write is repeated for seconds, not for a day


class Store(Protocol):
    """Adapters by digest; `models.adapters.AdapterStore`. Blocking."""

    def import_folder(self, relative: str) -> AdapterFiles: ...

    def import_archive(self, path: Path) -> AdapterFiles: ...

    def load(self, digest: str) -> object: ...

    def delete(self, digest: str) -> bool: ...

    def candidates(self) -> Sequence[Candidate]: ...


class Feed(Protocol):
    """How far this replica has followed; `deployments.following.Follower`."""

    version: int

    async def wait_for(self, version: int, timeout_s: float) -> bool: ...


class AdapterManager:
    """One per replica of the language model; several may work at once.

    Every change is one write that names the versions of the pointers it was decided from: whoever comes
    second is refused, looks again and decides anew. Making a version active writes its own pointer again, so
    that it cannot be deleted in the same moment. Files are imported and removed under a lock that all
    replicas share: what is about to get a version is not removed as unused.
    """

    def __init__(
        self,
        settings: Settings,
        state: GraphStateClient,
        feed: Feed,
        versions: Callable[[], AdapterVersions],
        store: Store,
        resident: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """`versions` and `resident` are asked anew every time."""
        self._state, self._feed, self._versions = state, feed, versions
        self._store, self._resident = store, resident
        self._folder = AdapterFolder(settings.adapter_dir, settings.upload_dir)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Make the folders and remove uploads that nobody came for."""
        await asyncio.to_thread(self._folder.prepare)

    async def stop(self) -> None:
        """Finish what was begun."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------------------------------------------ reading

    async def list(
        self, limit: int, after: str | None, scope: AdapterScope | None, name: str | None
    ) -> AdapterListing:
        """Versions in the order of scope, name and label; candidates of the inbox with the first page."""
        version, versions, resident = self._feed.version, self._versions(), set(self._resident())
        pointers, following = versions.page(limit, after, scope, name)
        states: dict[tuple[AdapterScope, str], AdapterState | None] = {}
        found: list[AdapterVersion] = []
        for pointer in pointers:
            key_scope, key_name, _ = split_version_name(pointer.name)
            key = (key_scope, key_name)
            if key not in states:
                states[key] = versions.state(*key)
            found.append(version_of(pointer, states[key], resident.__contains__))
        candidates: tuple[AdapterCandidate, ...] = ()
        if after is None and scope is None and name is None:
            listed = await asyncio.to_thread(self._store.candidates)
            candidates = tuple(AdapterCandidate(c.path, c.digest, c.size_bytes, c.problem) for c in listed)
        present = tuple(state for state in states.values() if state is not None)
        return AdapterListing(tuple(found), present, candidates, version, following)

    async def history(self, scope: AdapterScope, name: str) -> tuple[AdapterState, ...]:
        """Every state the pointer had, oldest first."""
        check_adapter_name(scope, name)
        found = await self._state.pointer_history(state_scope(scope), name)
        return tuple(state_of(pointer) for pointer in found)

    # ------------------------------------------------------------------------------------------------ writing

    async def put(self, what: PutAdapter) -> AdapterWritten:
        """Import files and give them a label; the same files under the same label again change nothing."""
        check_adapter_name(what.scope, what.name)
        check_version_label(what.version)
        if (what.path is None) == (what.upload is None):
            raise InvalidInput("give exactly one of a path in the inbox and an upload", param="path")
        upload = None if what.upload is None else self._folder.upload(what.upload)
        return await self._to_the_end(self._put(what, upload))

    async def _put(self, what: PutAdapter, upload: Path | None) -> AdapterWritten:
        try:
            async with self._folder.locked():
                if upload is not None:
                    files = await asyncio.to_thread(self._store.import_archive, upload)
                else:
                    files = await asyncio.to_thread(self._store.import_folder, what.path or "")
                try:
                    return await self._repeatedly(lambda: self._record(what, files))
                except Conflict:
                    await self._drop_unused(files.digest)
                    raise
        finally:
            if upload is not None:
                await asyncio.to_thread(upload.unlink, missing_ok=True)

    async def _record(self, what: PutAdapter, files: AdapterFiles) -> AdapterWritten:
        versions = self._versions()
        place = (what.scope, what.name, what.version)
        before, state = versions.pointer(*place), versions.state(what.scope, what.name)
        known = None if before is None else before.value.get("digest")
        if before is not None and known == files.digest:
            return AdapterWritten(before.version, put=self._described(before, state), replayed=True)
        if known:
            raise Conflict(
                f"version {what.version!r} of {what.scope}/{what.name} has other files (digest "
                f"{str(known)[:12]}, these {files.digest[:12]}) and versions never change: choose a new label"
            )
        put = put_version(*place, encode_version(files), 0 if before is None else before.version)
        version = await self._write([put])
        pointer = Pointer(put.scope, put.name, put.value, version)
        return AdapterWritten(version, put=self._described(pointer, state))

    async def activate(self, what: ActivateAdapter) -> AdapterWritten:
        """Make versions the active ones, keeping what was; raises UnknownAdapter for one never put."""
        check_adapter_name(what.scope, what.name)
        labels = [label for label, _ in what.arms]
        for label in labels:
            check_version_label(label)
        if len(labels) > MAX_ARMS or len(set(labels)) < len(labels):
            raise InvalidInput(f"at most {MAX_ARMS} arms, each with another version", param="arms")
        for label, weight in what.arms:
            if not (math.isfinite(weight) and 0 < weight <= 1e6):
                raise InvalidInput(f"weight {weight} of {label!r}: must be above 0 to 1e6", param="arms")
        return await self._to_the_end(self._repeatedly(lambda: self._activate(what)))

    async def _activate(self, what: ActivateAdapter) -> AdapterWritten:
        versions = self._versions()
        arms: list[AdapterArm] = []
        operations: list[Operation] = []
        for label, weight in what.arms:
            pointer = versions.find(what.scope, what.name, label)
            if pointer is None:
                raise UnknownAdapter(f"{what.scope}/{what.name} has no version {label!r}: put it first")
            digest = str(pointer.value["digest"])
            await self._verify(digest)
            arms.append(AdapterArm(label, digest, weight))
            again = put_version(what.scope, what.name, label, dict(pointer.value), pointer.version)
            operations.append(again)
        state = versions.state(what.scope, what.name)
        before = () if state is None else state.arms
        if before == tuple(arms):
            # Writing it again would lose what there is to roll back to.
            version = self._feed.version if state is None else state.version
            return AdapterWritten(version, state or _nothing(what.scope, what.name), replayed=True)
        action = "activate" if arms else "deactivate"
        return await self._move(what.scope, what.name, state, tuple(arms), before, action, operations)

    async def roll_back(self, scope: AdapterScope, name: str) -> AdapterWritten:
        """Make what was active before active again; raises Conflict when nothing was."""
        check_adapter_name(scope, name)
        return await self._to_the_end(self._repeatedly(lambda: self._roll_back(scope, name)))

    async def _roll_back(self, scope: AdapterScope, name: str) -> AdapterWritten:
        versions = self._versions()
        state = versions.state(scope, name)
        if state is None or not state.previous:
            raise Conflict(f"{scope}/{name} had nothing active before: there is nothing to roll back to")
        for arm in state.previous:
            if versions.find(scope, name, arm.version) is None:
                raise UnknownAdapter(
                    f"version {arm.version!r} of {scope}/{name} was deleted: activate another version"
                )
            await self._verify(arm.digest)
        return await self._move(scope, name, state, state.previous, state.arms, "rollback", [])

    async def _move(
        self,
        scope: AdapterScope,
        name: str,
        state: AdapterState | None,
        arms: tuple[AdapterArm, ...],
        previous: tuple[AdapterArm, ...],
        action: str,
        operations: Sequence[Operation],
    ) -> AdapterWritten:
        expected = 0 if state is None else state.version
        put = put_state(scope, name, arms, previous, action, expected)
        version = await self._write([*operations, put])
        log.info("adapter %s/%s: %s %s", scope, name, action, ", ".join(arm.version for arm in arms))
        return AdapterWritten(version, AdapterState(scope, name, arms, previous, version, action))

    async def delete(self, scope: AdapterScope, name: str, version: str) -> AdapterWritten:
        """Remove a version, and its files when no other has them.

        Raises AdapterInUse while it is active, or what a rollback returns to beside another that is active.
        """
        check_adapter_name(scope, name)
        check_version_label(version)
        return await self._to_the_end(self._delete(scope, name, version))

    async def _delete(self, scope: AdapterScope, name: str, version: str) -> AdapterWritten:
        async with self._folder.locked():
            written, digest = await self._repeatedly(lambda: self._remove(scope, name, version))
            await self._drop_unused(digest)
        return written

    async def _remove(self, scope: AdapterScope, name: str, version: str) -> tuple[AdapterWritten, str]:
        versions = self._versions()
        pointer, state = versions.find(scope, name, version), versions.state(scope, name)
        if pointer is None:
            raise UnknownAdapter(f"{scope}/{name} has no version {version!r}")
        operations: list[Operation] = [put_version(scope, name, version, None, pointer.version)]
        if state is not None and not state.arms and version in {arm.version for arm in state.previous}:
            # Whoever has switched everything off and deletes wants none back: else the last never goes.
            previous = tuple(arm for arm in state.previous if arm.version != version)
            operations.append(put_state(scope, name, (), previous, "deactivate", state.version))
        elif state is not None:
            for arms, what in ((state.arms, "active"), (state.previous, "what a rollback returns to")):
                if version in {arm.version for arm in arms}:
                    raise AdapterInUse(
                        f"version {version!r} of {scope}/{name} is {what}: activate another one "
                        f"{'first' if arms is state.arms else 'twice, so that it is neither'}"
                    )
        written = await self._write(operations)
        gone = self._described(pointer, state)
        return AdapterWritten(written, state, gone), str(pointer.value["digest"])

    # ---------------------------------------------------------------------------------------------- internals

    async def _verify(self, digest: str) -> None:
        """Read the whole adapter before anybody depends on it.

        Its files may be gone or damaged, or the base model another one than when they were put; raises what
        the store does.
        """
        await asyncio.to_thread(self._store.load, digest)

    def _described(self, pointer: Pointer, state: AdapterState | None) -> AdapterVersion:
        found = version_of(pointer, state)
        return replace(found, resident=found.digest in self._resident())

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work that goes on when the caller is cancelled: threads do, and locks must outlast them."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _repeatedly(self, change: Callable[[], Awaitable[T]]) -> T:
        """Decide from everything that is written, and write, until nobody else wrote in between."""
        for left in reversed(range(_ATTEMPTS)):
            await self._level()
            try:
                return await change()
            except PointerMoved:
                if not left:
                    raise
        raise AssertionError("unreachable")

    async def _level(self) -> None:
        """Wait until this replica has seen everything that is written."""
        head = int((await self._through_restarts(self._state.status))["version"])
        if not await self._feed.wait_for(head, _CATCH_UP_S):
            raise NotYet(f"the language model has not reached version {head}")

    async def _write(self, operations: Sequence[Operation]) -> int:
        """Write, also through a restart of the writer; the version that has it."""
        key = Idempotency("adapters", uuid.uuid4().hex, "", ttl_s=_OWN_KEY_TTL_S, keep_unchanged=False)
        request = WriteRequest(tuple(operations), key)
        (outcome,) = await self._through_restarts(lambda: self._state.write([request]))
        if isinstance(outcome, WeftError):
            raise outcome
        return outcome.version

    async def _through_restarts(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call while the graph state is away; it must be one that can be repeated."""
        deadline = time.monotonic() + _RESTART_S
        while True:
            try:
                return await call()
            except Unavailable:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(_RETRY_S)

    def clear(self, digests: Collection[str]) -> None:
        """Remove, in the background, files whose last version went with its user."""
        task = asyncio.create_task(self._clear(tuple(digests)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _clear(self, digests: Sequence[str]) -> None:
        async with self._folder.locked():
            for digest in digests:
                await self._drop_unused(digest)

    async def _drop_unused(self, digest: str) -> None:
        """Remove files that no version has; only under the lock.

        What it was called after has happened, so that a failure only leaves files behind.
        """
        try:
            await self._level()
            if not self._versions().in_use(digest):
                await asyncio.to_thread(self._store.delete, digest)
        except (Unavailable, OSError) as error:
            log.warning("the files of adapter %s stay, though no version has them: %s", digest, error)


def _nothing(scope: AdapterScope, name: str) -> AdapterState:
    return AdapterState(scope, name, (), (), 0)
