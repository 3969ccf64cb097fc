"""The cache as JSON lines: to read with anything, to diff, to mail. Optionally gzipped."""

from __future__ import annotations

import binascii
import gzip
import time
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, cast

import orjson

from models.embedding_cache.segment_store import SegmentStore
from models.embedding_cache.segments import DamagedSegment, Head, Row


class JSONLStore(SegmentStore):
    """One object per line: namespace, key (hexadecimal), value (base64; null drops), written_at, expires_at,
    crc32 (of the line without it: half a damaged gzip file unpacks into plausible characters).

    Compressed, a read unpacks its segments from their start: good for moving entries, slow for look-ups.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        compressed: bool = False,
        buffer_rows: int = 4096,
        max_segments: int = 64,
        lock_timeout_s: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(
            folder,
            JSONLFormat(compressed),
            buffer_rows=buffer_rows,
            max_segments=max_segments,
            lock_timeout_s=lock_timeout_s,
            clock=clock,
        )


class JSONLFormat:
    """An address is the offset of a line, before compression."""

    kind = "jsonl"

    def __init__(self, compressed: bool) -> None:
        self.suffix = ".jsonl.gz" if compressed else ".jsonl"
        self._compressed = compressed

    def write(self, path: Path, rows: Sequence[Row]) -> None:
        with self._open(path, "wb") as file:
            file.writelines(map(_line, rows))

    def heads(self, path: Path) -> Iterator[Head]:
        bad = 0
        with self._open(path, "rb") as file:
            address = 0
            try:
                for line in file:
                    try:
                        row = _row(line)
                    except DamagedSegment:
                        bad += 1
                    else:
                        yield Head(
                            address, row.namespace, row.key, row.written_at, row.expires_at, row.value is None
                        )
                    address += len(line)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise DamagedSegment(f"from byte {address} on: {error}") from error
        if bad:
            raise DamagedSegment(f"{bad} lines that are not entries")

    def rows(self, path: Path, addresses: Sequence[int]) -> list[Row]:
        found = []
        with self._open(path, "rb") as file:
            try:
                for address in addresses:
                    file.seek(address)
                    found.append(_row(file.readline()))
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise DamagedSegment(str(error)) from error
        return found

    def _open(self, path: Path, mode: str) -> IO[bytes]:
        if self._compressed:
            return cast("IO[bytes]", gzip.open(path, mode, compresslevel=1))
        return cast("IO[bytes]", path.open(mode))


def _line(row: Row) -> bytes:
    found = row._asdict()
    found["key"] = row.key.hex()
    found["value"] = None if row.value is None else b64encode(row.value).decode("ascii")
    found["crc32"] = zlib.crc32(orjson.dumps(found))
    return orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE)


def _row(line: bytes) -> Row:
    try:
        if not line.endswith(b"\n"):
            raise DamagedSegment("a line without an end")
        found = orjson.loads(line)
        if found.pop("crc32") != zlib.crc32(orjson.dumps(found)):
            raise DamagedSegment("a line that does not match its checksum")
        value = found["value"]
        namespace, written_at, expires_at = found["namespace"], found["written_at"], found["expires_at"]
        if not isinstance(namespace, str) or not isinstance(written_at, int | float):
            raise DamagedSegment("a line that is not an entry")
        return Row(
            namespace,
            bytes.fromhex(found["key"]),
            None if value is None else b64decode(value, validate=True),
            float(written_at),
            None if expires_at is None else float(expires_at),
        )
    except (ValueError, TypeError, AttributeError, KeyError, binascii.Error) as error:
        raise DamagedSegment(f"a line that is not an entry: {error}") from error
