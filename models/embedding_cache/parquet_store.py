"""The cache as Parquet files, for pipelines that speak Arrow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from models.embedding_cache.segment_store import SegmentStore
from models.embedding_cache.segments import DamagedSegment, Head, Row
from models.embedding_cache.store import StoreUnavailable

_GROUP_ROWS = 1024
_HEAD = ["namespace", "key", "written_at", "expires_at", "dropped"]


class ParquetStore(SegmentStore):
    """Columns: namespace (string), key, value (binary), written_at, expires_at (float64), dropped (bool)."""

    def __init__(
        self,
        folder: str | Path,
        *,
        buffer_rows: int = 4096,
        max_segments: int = 64,
        lock_timeout_s: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises StoreUnavailable if pyarrow is not installed or the folder cannot be used."""
        super().__init__(
            folder,
            ParquetFormat(),
            buffer_rows=buffer_rows,
            max_segments=max_segments,
            lock_timeout_s=lock_timeout_s,
            clock=clock,
        )


class ParquetFormat:
    """An address is the number of a row."""

    kind = "parquet"
    suffix = ".parquet"

    def __init__(self) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise StoreUnavailable(
                f"the Parquet store needs pyarrow ({error}): pip install 'weft[files]'"
            ) from error
        self._arrow = pyarrow
        self._parquet = pyarrow.parquet
        self._schema = pyarrow.schema(
            [
                ("namespace", pyarrow.string()),
                ("key", pyarrow.binary()),
                ("value", pyarrow.binary()),
                ("written_at", pyarrow.float64()),
                ("expires_at", pyarrow.float64()),
                ("dropped", pyarrow.bool_()),
            ]
        )

    def write(self, path: Path, rows: Sequence[Row]) -> None:
        namespaces, keys, values, written_at, expires_at = zip(*rows, strict=True)
        columns = [namespaces, keys, values, written_at, expires_at, [value is None for value in values]]
        table = self._arrow.table(
            [
                self._arrow.array(column, type=field.type)
                for column, field in zip(columns, self._schema, strict=True)
            ],
            schema=self._schema,
        )
        # Vectors and digests do not compress, and every value is another: no dictionary, no statistics.
        self._parquet.write_table(
            table,
            path,
            row_group_size=_GROUP_ROWS,
            compression="none",
            use_dictionary=["namespace"],
            write_statistics=False,
            write_page_checksum=True,
        )

    def heads(self, path: Path) -> Iterator[Head]:
        with self._opened(path) as file:
            table = file.read(columns=_HEAD)
            columns = [table.column(name).to_pylist() for name in _HEAD]
        for address, head in enumerate(zip(*columns, strict=True)):
            yield Head(address, *head)

    def rows(self, path: Path, addresses: Sequence[int]) -> list[Row]:
        found: list[Row] = []
        with self._opened(path) as file:
            for group, members in groupby(addresses, lambda address: address // _GROUP_ROWS):
                table = file.read_row_group(group).take([address % _GROUP_ROWS for address in members])
                columns = [table.column(name).to_pylist() for name in Row._fields]
                found += [Row(*row) for row in zip(*columns, strict=True)]
        return found

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Any]:
        # Opened here, so that an error with a number is the disk's; Arrow's own OSErrors have none.
        with path.open("rb") as raw:
            try:
                with self._parquet.ParquetFile(raw, page_checksum_verification=True) as file:
                    if file.schema_arrow.names != self._schema.names:
                        raise DamagedSegment(f"columns {file.schema_arrow.names}")
                    yield file
            except (self._arrow.ArrowException, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                raise DamagedSegment(str(error)) from error
