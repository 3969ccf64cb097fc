"""A folder of append-only segments: written once, renamed into place, later replaced by fewer.

Segments are replayed in the order of their numbers, and of two rows with one key the later counts. Numbers
are never given twice, also not after everything was dropped: a reader remembers the rows of a number.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from models.embedding_cache.store import StoreUnavailable


class Row(NamedTuple):
    """What a segment holds of an entry, or of its end."""

    namespace: str
    key: bytes
    value: bytes | None
    """None: from here on there is no such entry."""
    written_at: float
    expires_at: float | None


class Head(NamedTuple):
    """A row without its value, and where in its segment it is."""

    address: int
    namespace: str
    key: bytes
    written_at: float
    expires_at: float | None
    dropped: bool


class DamagedSegment(Exception):
    """A segment, or a part of it, cannot be read. Not for callers of a store: it skips them, and counts."""


class SegmentFormat(Protocol):
    """How one segment is written and read.

    FileNotFoundError: it is gone; any other OSError: the disk fails; DamagedSegment: its bytes are wrong.
    """

    kind: str
    suffix: str

    def write(self, path: Path, rows: Sequence[Row]) -> None: ...

    def heads(self, path: Path) -> Iterator[Head]:
        """All rows in order; raises DamagedSegment after the last one that can be read."""
        ...

    def rows(self, path: Path, addresses: Sequence[int]) -> list[Row]:
        """The rows at ascending addresses. Raises DamagedSegment if any of them cannot be read."""
        ...


class SegmentFolder:
    """The segments of one store, as files."""

    def __init__(self, path: Path, suffix: str, lock_timeout_s: float) -> None:
        self.path = path
        self._suffix = suffix
        self._lock_timeout_s = lock_timeout_s
        self._name = re.compile(r"(\d{20})" + re.escape(suffix))
        self._threads = threading.RLock()
        self._held = 0
        path.mkdir(parents=True, exist_ok=True)

    def numbers(self) -> list[int]:
        """Of the segments there are, ascending."""
        found = (self._name.fullmatch(name) for name in os.listdir(self.path))
        return sorted(int(match[1]) for match in found if match)

    def segment(self, number: int) -> Path:
        return self.path / f"{number:020}{self._suffix}"

    def add(self, format_: SegmentFormat, rows: Sequence[Row]) -> int:
        """Write a segment and return its number. Only inside `exclusively`."""
        number = max([time.time_ns(), *(last + 1 for last in self.numbers()[-1:])])
        unfinished = self.path / f".unfinished-{number}{self._suffix}"
        try:
            format_.write(unfinished, rows)
            os.rename(unfinished, self.segment(number))
        except BaseException:
            _remove(unfinished)
            raise
        return number

    def remove(self, number: int) -> None:
        """Gone at once for whoever lists the folder, even where a segment is a folder itself."""
        unfinished = self.path / f".unfinished-{number}{self._suffix}.removed"
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.segment(number), unfinished)
            _remove(unfinished)

    def set_aside(self, number: int) -> None:
        """Keep a damaged segment under another name, for people."""
        segment = self.segment(number)
        with contextlib.suppress(FileNotFoundError):
            os.rename(segment, segment.with_name(segment.name + ".damaged"))

    def disk_bytes(self) -> int:
        total = 0
        for number in self.numbers():
            segment = self.segment(number)
            for path in segment.iterdir() if segment.is_dir() else (segment,):
                with contextlib.suppress(FileNotFoundError):
                    total += path.stat().st_size
        return total

    @contextlib.contextmanager
    def exclusively(self) -> Iterator[None]:
        """One thread of one process at a time; reentrant. Raises StoreUnavailable after the time allowed."""
        with self._threads:
            if self._held:
                yield
                return
            with (self.path / "lock").open("ab") as lock:
                self._wait_for(lock.fileno())
                self._held += 1
                try:
                    for leftover in self.path.glob(".unfinished-*"):
                        _remove(leftover)
                    yield
                finally:
                    self._held -= 1

    def _wait_for(self, descriptor: int) -> None:
        deadline = time.monotonic() + self._lock_timeout_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreUnavailable(
                        f"another process has been writing to {self.path} for {self._lock_timeout_s:g} s"
                    ) from None
                time.sleep(0.01)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
