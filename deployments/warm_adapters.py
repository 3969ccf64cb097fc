"""Which adapters are loaded before anybody asks: those of the settings, and those a replica had before."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from deployments.adapter_versions import AdapterVersions
from deployments.opening_language_model import Residents
from deployments.replica_number import ReplicaNumber
from graph.errors import InvalidInput, WeftError
from models.adapter_pointers import parse_reference

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_SAVE_ORDER_S = 30.0


class WarmAdapters:
    """Loads in the background at start; writes down what is in memory as soon as that changes.

    Not only at the end: whoever stops the service, or a replica, may give it no time. Each replica has a file
    of its own and reads those of all: which users it will have, nobody knows.
    """

    def __init__(self, folder: Path, residents: Residents, warm_up: Sequence[str]) -> None:
        self._folder, self._residents, self._warm_up = folder, residents, warm_up
        self._number: ReplicaNumber | None = None
        self._saved: tuple[str, ...] = ()
        self._saved_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    def start(self, versions: AdapterVersions) -> None:
        """Once the feed is known; only the first call counts."""
        if self._task is None:
            self._task = asyncio.create_task(self._work(versions))

    async def stop(self) -> None:
        if self._task is None:
            return
        # Not cancelled: a thread that reads or writes would go on alone, and open a lock that nobody closes.
        self._stopping.set()
        [failed] = await asyncio.gather(self._task, return_exceptions=True)
        if isinstance(failed, Exception):
            log.error("adapters were not loaded ahead", exc_info=failed)
        await asyncio.to_thread(self._save, self._residents.resident())
        if self._number is not None:
            self._number.close()

    async def _work(self, versions: AdapterVersions) -> None:
        before = await asyncio.to_thread(self._read)
        # Those of the settings last: when there is no room for all, the first loaded go first.
        wanted = [digest for digest in before if versions.in_use(digest)]
        for reference in self._warm_up:
            found = list(_digests(reference, versions))
            if not found:
                log.warning("adapters.warm_up: nothing is active under %r", reference)
            wanted += found
        self._load(dict.fromkeys(wanted))
        while not await self._stopped_within(_LOOK_S):
            now = self._residents.resident()
            # The order changes with every request, and matters little.
            if set(now) != set(self._saved) or time.monotonic() - self._saved_at > _SAVE_ORDER_S:
                await asyncio.to_thread(self._save, now)

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _load(self, digests: Iterable[str]) -> None:
        for digest in digests:
            outcome = self._residents.request(digest)
            if isinstance(outcome, WeftError):
                log.warning("adapter %s cannot be loaded: %s", digest, outcome)

    def _read(self) -> list[str]:
        try:
            self._number = ReplicaNumber(self._folder, "resident")
        except OSError as error:
            log.warning("adapters in memory cannot be written down: %s", error)
        return [digest for path in sorted(self._folder.glob(".resident-*.json")) for digest in _listed(path)]

    def _save(self, now: tuple[str, ...]) -> None:
        self._saved_at = time.monotonic()
        if now == self._saved or self._number is None:
            return
        try:
            path = self._folder / f".resident-{self._number.value}.json"
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(now), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            # Costs the next start a little time.
            log.warning("adapters in memory cannot be written down: %s", error)
        else:
            self._saved = now


def _listed(path: Path) -> list[str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read, its adapters are not loaded ahead: %s", path, error)
        return []
    return [digest for digest in found if isinstance(digest, str)] if isinstance(found, list) else []


def _digests(reference: str, versions: AdapterVersions) -> Iterable[str]:
    """Digests behind `user/alice`, `user/alice/v2` or a digest; nothing for what does not exist."""
    try:
        named = parse_reference(reference.strip())
    except InvalidInput:
        return []
    if named.digest is not None:
        return [named.digest] if versions.in_use(named.digest) else []
    if named.scope is None:
        return []
    if named.version is not None:
        pointer = versions.find(named.scope, named.name, named.version)
        return [] if pointer is None else [str(pointer.value["digest"])]
    state = versions.state(named.scope, named.name)
    return [] if state is None else [arm.digest for arm in state.arms]
