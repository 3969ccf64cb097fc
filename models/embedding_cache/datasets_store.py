"""The cache as Hugging Face datasets: every segment is one that `datasets.load_from_disk` opens."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.embedding_cache.segment_store import SegmentStore
from models.embedding_cache.segments import DamagedSegment, Head, Row
from models.embedding_cache.store import StoreUnavailable

_OPEN = 32
_HEAD = ["namespace", "key", "written_at", "expires_at", "dropped"]


class DatasetsStore(SegmentStore):
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
        """Raises StoreUnavailable if datasets is not installed or the folder cannot be used."""
        super().__init__(
            folder,
            DatasetsFormat(),
            buffer_rows=buffer_rows,
            max_segments=max_segments,
            lock_timeout_s=lock_timeout_s,
            clock=clock,
        )


class DatasetsFormat:
    """An address is the number of a row; the last segments read stay memory-mapped."""

    kind = "datasets"
    suffix = ".dataset"

    def __init__(self) -> None:
        try:
            import datasets
            import pyarrow
        except ImportError as error:
            raise StoreUnavailable(
                f"the datasets store needs Hugging Face datasets ({error}): pip install 'weft[files]'"
            ) from error
        self._datasets = datasets
        self._arrow = pyarrow
        binary, number = datasets.Value("binary"), datasets.Value("float64")
        self._features = datasets.Features(
            {
                "namespace": datasets.Value("string"),
                "key": binary,
                "value": binary,
                "written_at": number,
                "expires_at": number,
                "dropped": datasets.Value("bool"),
            }
        )
        self._lock = threading.Lock()
        self._mapped: OrderedDict[Path, Any] = OrderedDict()

    def write(self, path: Path, rows: Sequence[Row]) -> None:
        columns = dict(zip(Row._fields, zip(*rows, strict=True), strict=True))
        columns["dropped"] = tuple(row.value is None for row in rows)
        segment = self._datasets.Dataset.from_dict(
            {name: list(column) for name, column in columns.items()}, features=self._features
        )
        with self._quietly():
            segment.save_to_disk(str(path))

    def heads(self, path: Path) -> Iterator[Head]:
        with self._damage(path):
            table = self._open(path).data.table
            # Beyond this point nothing is checked: an offset that lies would be followed anywhere.
            table.validate(full=True)
            columns = [table.column(name).to_pylist() for name in _HEAD]
        for address, head in enumerate(zip(*columns, strict=True)):
            yield Head(address, *head)

    def rows(self, path: Path, addresses: Sequence[int]) -> list[Row]:
        with self._damage(path):
            table = self._open(path).data.table.take(list(addresses))
            columns = [table.column(name).to_pylist() for name in Row._fields]
        return [Row(*row) for row in zip(*columns, strict=True)]

    def _open(self, path: Path) -> Any:
        with self._lock:
            if path in self._mapped:
                self._mapped.move_to_end(path)
                return self._mapped[path]
            found = self._datasets.load_from_disk(str(path))
            if not isinstance(found, self._datasets.Dataset) or set(found.column_names) != set(
                self._features
            ):
                raise DamagedSegment("not a dataset of entries")
            self._mapped[path] = found
            while len(self._mapped) > _OPEN:
                self._mapped.popitem(last=False)
            return found

    @contextmanager
    def _damage(self, path: Path) -> Iterator[None]:
        try:
            yield
        except (self._arrow.ArrowException, ValueError, KeyError, TypeError, OSError) as error:
            if not path.is_dir():
                raise FileNotFoundError(f"{path} is gone") from error
            if (
                isinstance(error, OSError)
                and error.errno is not None
                and not isinstance(error, FileNotFoundError)
            ):
                raise
            raise DamagedSegment(str(error) or type(error).__name__) from error

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """A bar per segment would drown the one of whoever fills the store."""
        if self._datasets.utils.are_progress_bars_disabled():
            yield
            return
        self._datasets.utils.disable_progress_bars()
        try:
            yield
        finally:
            self._datasets.utils.enable_progress_bars()
