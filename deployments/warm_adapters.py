"""Which adapters are loaded before anybody asks: those of the settings, and those a replica had before."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from deployments.adapter_versions import AdapterVersions
from deployments.opening_language_model import Residents
from graph.errors import InvalidInput, WeftError
from models.adapter_pointers import parse_reference

log = logging.getLogger(__name__)

_SAVE_EVERY_S = 30.0


class WarmAdapters:
    """Loads in the background at start; writes down what is in memory, every half minute and at the end."""

    def __init__(self, file: Path, residents: Residents, warm_up: Sequence[str]) -> None:
        self._file, self._residents, self._warm_up = file, residents, warm_up
        self._saved: tuple[str, ...] = ()
        self._task: asyncio.Task[None] | None = None

    def start(self, versions: AdapterVersions) -> None:
        """Once the feed is known; only the first call counts."""
        if self._task is None:
            self._task = asyncio.create_task(self._work(versions))

    async def stop(self) -> None:
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._save)

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
        while True:
            await asyncio.sleep(_SAVE_EVERY_S)
            await asyncio.to_thread(self._save)

    def _load(self, digests: Iterable[str]) -> None:
        for digest in digests:
            outcome = self._residents.request(digest)
            if isinstance(outcome, WeftError):
                log.warning("adapter %s cannot be loaded: %s", digest, outcome)

    def _read(self) -> list[str]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read, no adapters are loaded ahead: %s", self._file, error)
            return []
        return [digest for digest in found if isinstance(digest, str)] if isinstance(found, list) else []

    def _save(self) -> None:
        now = self._residents.resident()
        if now == self._saved:
            return
        temporary = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps(now), encoding="utf-8")
            temporary.replace(self._file)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._file, error)  # costs the next start a little time
        else:
            self._saved = now


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
