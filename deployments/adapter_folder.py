"""The folder of adapters as replicas share it: who may change it, and what the ingress received."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

from graph.errors import InvalidInput, Unavailable

_UPLOAD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_UPLOAD_KEPT_S = 3600.0  # what an ingress that died left behind
_LOCK_S = 60.0
_RETRY_S = 0.05


class AdapterFolder:
    """Locks are the operating system's: they end with the process that holds them, however it ends."""

    def __init__(self, folder: Path, uploads: Path) -> None:
        self._folder, self._uploads = folder, uploads
        self._alone = asyncio.Lock()

    def prepare(self) -> None:
        """Make the folders and remove uploads that nobody came for. Blocking."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._uploads.mkdir(parents=True, exist_ok=True)
        oldest = time.time() - _UPLOAD_KEPT_S
        for path in self._uploads.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another replica cleans too
                if path.is_file() and path.stat().st_mtime < oldest:
                    path.unlink()

    def upload(self, name: str) -> Path:
        """Where the ingress put a file; raises InvalidInput for what is not the name of one."""
        if not _UPLOAD.fullmatch(name):
            raise InvalidInput(f"upload {name[:40]!r} is not the name of a file", param="upload")
        return self._uploads / name

    @contextlib.asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Nobody else on this machine imports or removes files meanwhile; Unavailable after a minute."""
        async with self._alone:
            deadline = time.monotonic() + _LOCK_S
            with (self._folder / ".lock").open("w", encoding="ascii") as file:
                while not _lock(file.fileno()):
                    if time.monotonic() >= deadline:
                        raise Unavailable("another replica is importing adapters; try again shortly")
                    await asyncio.sleep(_RETRY_S)
                yield


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
