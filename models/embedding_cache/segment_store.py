"""What the file formats share as stores: an index in memory over a folder of segments, and compaction."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from models.embedding_cache.segments import DamagedSegment, Row, SegmentFolder, SegmentFormat
from models.embedding_cache.store import Entry, StoreStatistics, StoreUnavailable

_log = logging.getLogger(__name__)

_BATCH = 1000
_BUFFER_BYTES = 16 * 1024 * 1024
_SEGMENT_ROWS = 65_536
_ATTEMPTS = 5


class _Where(NamedTuple):
    segment: int
    address: int
    expires_at: float | None
    written_at: float


class SegmentStore:
    """An EmbeddingStore for batch jobs, in a folder. Base of JSONLStore, ParquetStore and DatasetsStore.

    What is put waits in a buffer until it holds `buffer_rows` entries, or `flush` or `close`: this handle
    reads it meanwhile, others do not, a crash loses it. Any number of processes read; those that write take
    turns. The index is in memory. More than `max_segments` are compacted into few.
    """

    def __init__(
        self,
        folder: str | Path,
        format_: SegmentFormat,
        *,
        buffer_rows: int = 4096,
        max_segments: int = 64,
        lock_timeout_s: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises StoreUnavailable if the folder cannot be used."""
        self.kind = format_.kind
        self.location = str(Path(folder).absolute())
        self.damaged_segments = 0
        self._format = format_
        self._buffer_rows = buffer_rows
        self._max_segments = max_segments
        self._clock = clock
        self._lock = threading.RLock()
        self._buffer: dict[tuple[str, bytes], Row] = {}
        self._buffer_bytes = 0
        self._index: dict[str, dict[bytes, _Where]] = {}
        self._loaded: set[int] = set()
        self._damaged: set[int] = set()
        with self._failures():
            self._folder = SegmentFolder(Path(self.location), format_.suffix, lock_timeout_s)
            self._refresh()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location!r})"

    def get_many(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        if not keys:
            return []
        with self._failures():
            rows = self._rows([(namespace, key) for key in keys])
        return [None if row is None else row.value for row in rows]

    def put_many(
        self, namespace: str, keys: Sequence[bytes], values: Sequence[bytes], ttl_s: float | None
    ) -> None:
        now = self._clock()
        expires_at = None if ttl_s is None else now + ttl_s
        self._put(
            Row(namespace, key, value, now, expires_at) for key, value in zip(keys, values, strict=True)
        )

    def delete(self, namespace: str, keys: Sequence[bytes]) -> int:
        with self._failures():
            self._refresh()
            return self._drop([(namespace, key) for key in dict.fromkeys(keys)])

    def clear(self, namespace: str | None = None) -> int:
        with self._failures(), self._folder.exclusively():
            self._refresh()
            if namespace is not None:
                dropped = self._drop([at for at in self._keys() if at[0] == namespace])
                self.compact()
                return dropped
            dropped = sum(self.namespaces().values())
            self._buffer, self._buffer_bytes = {}, 0
            for number in self._folder.numbers():
                self._folder.remove(number)
            self._refresh()
            return dropped

    def prune(self, older_than_s: float) -> int:
        with self._failures(), self._folder.exclusively():
            self._refresh()
            now = self._clock()
            horizon = now - older_than_s
            old = [
                at
                for at, (written_at, expires_at) in self._times().items()
                if written_at < horizon or _expired(expires_at, now)
            ]
            self._drop(old)
            self.compact()
            return len(old)

    def namespaces(self) -> dict[str, int]:
        with self._failures():
            self._refresh()
            now = self._clock()
            found: dict[str, int] = {}
            for (namespace, _), (_, expires_at) in self._times().items():
                if not _expired(expires_at, now):
                    found[namespace] = found.get(namespace, 0) + 1
            return found

    def entries(self, namespace: str | None = None) -> Iterator[Entry]:
        with self._failures():
            self._refresh()
            keys = iter([at for at in self._keys() if namespace in (None, at[0])])
        while chunk := list(islice(keys, _BATCH)):
            with self._failures():
                rows = self._rows(chunk)
            for row in rows:
                if row is not None and row.value is not None:
                    yield Entry(row.namespace, row.key, row.value, row.written_at, row.expires_at)

    def put_entries(self, entries: Iterable[Entry]) -> int:
        written = 0
        left = iter(entries)
        while batch := list(islice(left, _BATCH)):
            now = self._clock()
            live = [entry for entry in batch if not _expired(entry.expires_at, now)]
            self._put(
                Row(*entry[:3], now if entry.written_at is None else entry.written_at, entry.expires_at)
                for entry in live
            )
            written += len(live)
        return written

    def statistics(self) -> StoreStatistics:
        """`bytes` are those on disk, replaced entries not yet compacted away and the buffer included."""
        entries = sum(self.namespaces().values())
        with self._failures():
            used = self._folder.disk_bytes() + self._buffer_bytes
        return StoreStatistics(self.kind, self.location, entries, used)

    def flush(self) -> None:
        """Write what is buffered; raises StoreUnavailable, and then it is lost."""
        with self._failures():
            if not self._buffer:
                return
            rows, self._buffer, self._buffer_bytes = list(self._buffer.values()), {}, 0
            with self._folder.exclusively():
                self._folder.add(self._format, rows)
                self._refresh()
                size = sum(len(space) for space in self._index.values())
                if len(self._loaded) > self._max_segments + 2 * math.ceil(size / _SEGMENT_ROWS):
                    self.compact()

    def compact(self) -> None:
        """Rewrite the live entries into few segments. A damaged segment is set aside, its good rows kept."""
        with self._failures(), self._folder.exclusively():
            self.flush()
            self._refresh()
            old = sorted(self._loaded)
            damaged = set(self._damaged)
            keys = iter(self._keys())
            while chunk := list(islice(keys, _SEGMENT_ROWS)):
                rows = [row for row in self._rows(chunk) if row is not None]
                if rows:
                    self._folder.add(self._format, rows)
            for number in old:
                # The oldest first: a tombstone must not go before what it hides.
                if number in damaged | self._damaged:
                    self._folder.set_aside(number)
                else:
                    self._folder.remove(number)
            self._refresh()

    def close(self) -> None:
        self.flush()

    def _put(self, rows: Iterable[Row]) -> None:
        with self._failures():
            for row in rows:
                self._buffer[row.namespace, row.key] = row
                self._buffer_bytes += len(row.value or b"") + len(row.key)
            if len(self._buffer) >= self._buffer_rows or self._buffer_bytes >= _BUFFER_BYTES:
                self.flush()

    def _drop(self, keys: Sequence[tuple[str, bytes]]) -> int:
        now, times = self._clock(), self._times()
        there = [at for at in keys if at in times]
        self._put(Row(*at, None, now, None) for at in there)
        return sum(not _expired(times[at][1], now) for at in there)

    def _keys(self) -> list[tuple[str, bytes]]:
        """In the order of the disk, so that batches of them read whole stretches."""
        placed = sorted(
            (where.segment, where.address, namespace, key)
            for namespace, space in self._index.items()
            for key, where in space.items()
        )
        found = dict.fromkeys((namespace, key) for _, _, namespace, key in placed)
        return list(found | dict.fromkeys(self._buffer))

    def _times(self) -> dict[tuple[str, bytes], tuple[float, float | None]]:
        """When entries were written and expire; those dropped in the buffer left out."""
        found = {
            (namespace, key): (where.written_at, where.expires_at)
            for namespace, space in self._index.items()
            for key, where in space.items()
        }
        for at, row in self._buffer.items():
            if row.value is None:
                found.pop(at, None)
            else:
                found[at] = (row.written_at, row.expires_at)
        return found

    def _rows(self, keys: Sequence[tuple[str, bytes]]) -> list[Row | None]:
        """The live rows of these keys, in order."""
        for _ in range(_ATTEMPTS):
            self._refresh()
            try:
                return self._read(keys)
            except FileNotFoundError:
                continue  # compacted by another process since the folder was listed
        raise StoreUnavailable(f"the segments in {self.location} change faster than they can be read")

    def _read(self, keys: Sequence[tuple[str, bytes]]) -> list[Row | None]:
        now = self._clock()
        found: dict[tuple[str, bytes], Row] = {}
        wanted: dict[int, dict[int, tuple[str, bytes]]] = {}
        for at in keys:
            if at in self._buffer:
                found[at] = self._buffer[at]
            elif where := self._index.get(at[0], {}).get(at[1]):
                wanted.setdefault(where.segment, {})[where.address] = at
        for number, addresses in wanted.items():
            order = sorted(addresses)
            try:
                rows = self._format.rows(self._folder.segment(number), order)
            except DamagedSegment as damage:
                self._note_damage(number, damage)
                for at in addresses.values():
                    del self._index[at[0]][at[1]]
                continue
            for address, row in zip(order, rows, strict=True):
                # Whatever happened to the file: a value is handed out under its own key only.
                if (row.namespace, row.key) == addresses[address]:
                    found[addresses[address]] = row
        live = {
            at: row
            for at, row in found.items()
            if row.value is not None and not _expired(row.expires_at, now)
        }
        return [live.get(at) for at in keys]

    def _refresh(self) -> None:
        """Follow what other processes wrote, dropped and compacted."""
        for _ in range(_ATTEMPTS):
            numbers = self._folder.numbers()
            if not self._loaded <= set(numbers):
                self._index, self._loaded, self._damaged = {}, set(), set()
            try:
                for number in numbers:
                    if number not in self._loaded:
                        self._load(number)
                return
            except FileNotFoundError:
                self._index, self._loaded, self._damaged = {}, set(), set()
        raise StoreUnavailable(f"the segments in {self.location} change faster than they can be read")

    def _load(self, number: int) -> None:
        try:
            for head in self._format.heads(self._folder.segment(number)):
                space = self._index.setdefault(head.namespace, {})
                if head.dropped:
                    space.pop(head.key, None)
                else:
                    space[head.key] = _Where(number, head.address, head.expires_at, head.written_at)
        except DamagedSegment as damage:
            self._note_damage(number, damage)
        self._loaded.add(number)

    def _note_damage(self, number: int, damage: DamagedSegment) -> None:
        if number not in self._damaged:
            self._damaged.add(number)
            self.damaged_segments += 1
            _log.warning(
                "the %s segment %s is damaged (%s): going on without what it cannot give",
                self.kind,
                self._folder.segment(number),
                damage,
            )

    @contextmanager
    def _failures(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except OSError as error:
                raise StoreUnavailable(f"the {self.kind} store {self.location} failed: {error}") from error


def _expired(expires_at: float | None, now: float) -> bool:
    return expires_at is not None and expires_at <= now
