"""Rows an import refused: where they stand and why."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

from graph.errors import InvalidInput

HEADER = ("file", "line", "reason", "raw")
MAX_RAW_CHARS = 200
MAX_EXAMPLES = 20


class Reject(NamedTuple):
    file: str
    line: int  # physical line of the file, from 1; of a row over several lines, the first
    reason: str  # "kind: detail"
    raw: str  # at most MAX_RAW_CHARS characters

    def __str__(self) -> str:
        return f"{self.file} line {self.line}: {self.reason}"


class Rejects:
    """Counts refused rows and, given a path, writes each to a CSV file as it comes.

    Written as they come because a wrong option can refuse every row of a large file. Rows of one file come in
    line order, except that duplicates follow at the end: they are known only then. The file appears with the
    first refused row; one that an earlier import left is replaced, or removed when nothing was refused.

    Raises InvalidInput when `path` holds anything but an earlier rejects file, or cannot be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.count = 0
        self.kinds: Counter[str] = Counter()
        self.examples: list[Reject] = []
        self._file: IO[str] | None = None
        if path is not None and path.exists():
            _refuse_foreign(path)

    def add(self, file: str, line: int, reason: str, raw: str) -> None:
        """Record one row; `reason` starts with its kind, up to the first colon."""
        reject = Reject(file, line, reason, raw[:MAX_RAW_CHARS])
        self.count += 1
        self.kinds[reason.partition(":")[0]] += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(reject)
        if self.path is None:
            return
        if self._file is None:
            self._file = self._open(self.path)
            csv.writer(self._file).writerow(HEADER)
        csv.writer(self._file).writerow(reject)

    def close(self) -> None:
        """Finish the file. Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None
        elif self.path is not None and self.count == 0:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Rejects:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def _open(path: Path) -> IO[str]:
        try:
            # Undecodable bytes arrive as lone surrogates, which plain UTF-8 refuses to write.
            return path.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        except OSError as error:
            raise InvalidInput(
                f"cannot write the rejects file {path}: {error.strerror}; name another with --rejects",
                param="rejects",
            ) from error


def _refuse_foreign(path: Path) -> None:
    """A slip on the command line must not overwrite somebody's data."""
    try:
        with path.open("rb") as file:
            first = file.readline(200).strip()
    except OSError as error:
        raise InvalidInput(
            f"cannot write the rejects file {path}: {error.strerror}", param="rejects"
        ) from error
    if first and first != ",".join(HEADER).encode():
        raise InvalidInput(
            f"{path} exists and is not a rejects file: name another with --rejects", param="rejects"
        )
