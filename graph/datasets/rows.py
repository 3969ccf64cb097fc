"""Rows of a delimited text file, with the lines they stand on; broken ones go to the rejects."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TextIO, TypeAlias

from graph.datasets.records import Progress, no_progress
from graph.datasets.rejects import Rejects
from graph.errors import InvalidInput

Row: TypeAlias = tuple[int, str, list[str]]
"""(physical line from 1, the text of the row, its fields)."""

MAX_LINES_PER_ROW = 1_000
"""How far an open quote may reach before it counts as broken."""

_PROGRESS_EVERY = 8_192
_UNDECODABLE = re.compile("[\udc80-\udcff\0]")


@dataclass(frozen=True, slots=True)
class Form:
    """How the file writes its rows. `multiline`: a quoted field may hold line breaks."""

    delimiter: str = ","
    encoding: str = "utf-8-sig"
    quoted: bool = True
    multiline: bool = False


class RowFile:
    """One file, open for reading; a context manager.

    A broken line costs itself alone: an open quote never swallows the rows that follow. Blank lines are
    passed over. Raises InvalidInput when the file cannot be opened.
    """

    def __init__(
        self, path: Path, rejects: Rejects, form: Form | None = None, progress: Progress = no_progress
    ) -> None:
        self.name = path.name
        self.count = 0  # rows seen so far, broken ones included, the header not
        self._form = form or Form()
        self._rejects = rejects
        self._progress = progress
        self._ahead: deque[str] = deque()
        self._line = 0
        try:
            self._size = path.stat().st_size
            # Undecodable bytes become lone surrogates, so that they cost one row and not the file.
            self._file: TextIO = path.open(encoding=self._form.encoding, errors="surrogateescape")
        except (OSError, LookupError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InvalidInput(f"cannot read {path}: {reason}") from error

    def __enter__(self) -> RowFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def header(self) -> list[str]:
        """Names of the columns, from the first line; raises InvalidInput for an empty or undecodable one."""
        text = self._next().rstrip("\n")
        self._line = 1
        try:
            names = self._split(text)[0]
        except csv.Error as error:
            raise InvalidInput(f"the first line of {self.name} is no header: {error}") from error
        if not text.strip() or _UNDECODABLE.search(text):
            raise InvalidInput(f"{self.name} has no header: its first line has to name the columns")
        return [name.strip() for name in names]

    def rows(self, columns: int) -> Iterator[Row]:
        """Rows of exactly `columns` fields; all others are rejected."""
        delimiter, quoted = self._form.delimiter, self._form.quoted
        stage = f"reading {self.name}"
        while text := self._next():
            self._line += 1
            if self._line % _PROGRESS_EVERY == 0:
                self._progress(stage, self._file.buffer.tell(), self._size)
            line, text = self._line, text.rstrip("\n")
            if not text or text.isspace():
                continue
            self.count += 1
            if quoted and '"' in text:
                try:
                    fields, text = self._quoted(text, columns)
                except csv.Error as error:
                    self.reject(line, f"bad quoting: {error}", text)
                    continue
            else:
                fields = text.split(delimiter)
            # isascii() reads a flag, so the search is paid by the few lines that need it.
            if (not text.isascii() or "\0" in text) and _UNDECODABLE.search(text):
                self.reject(
                    line, f"undecodable bytes: not {self._form.encoding.removesuffix('-sig')} text", text
                )
            elif len(fields) != columns:
                self.reject(line, f"wrong number of columns: {len(fields)} instead of {columns}", text)
            else:
                yield line, text, fields
        self._progress(stage, self._size, self._size)

    def texts(self, lines: set[int]) -> dict[int, str]:
        """The text of some lines, read again: what was wrong with them showed only at the end."""
        self._file.seek(0)
        last = max(lines, default=0)
        return {
            line: text.rstrip("\n")
            for line, text in enumerate(islice(self._file, last), start=1)
            if line in lines
        }

    def reject(self, line: int, reason: str, raw: str) -> None:
        self._rejects.add(self.name, line, reason, raw)

    def _next(self) -> str:
        """The next line with its line break; empty at the end."""
        return self._ahead.popleft() if self._ahead else self._file.readline()

    def _quoted(self, text: str, columns: int) -> tuple[list[str], str]:
        """Fields and whole text of the row that starts with `text`; raises csv.Error."""
        try:
            return self._split(text)[0], text
        except csv.Error:
            if not self._form.multiline:
                raise
        taken = [text + "\n"]
        while len(taken) < MAX_LINES_PER_ROW and (more := self._next()):
            taken.append(more)
            # Only a quote can close the field, so other lines need no new attempt.
            if '"' not in more:
                continue
            try:
                fields, used = self._split(*taken)
            except csv.Error:
                continue
            if used == len(taken) and len(fields) == columns:
                self._line += used - 1
                return fields, "".join(taken).rstrip("\n")
            break
        self._ahead.extendleft(reversed(taken[1:]))
        raise csv.Error("a quote is opened and not closed")

    def _split(self, *lines: str) -> tuple[list[str], int]:
        """Fields of the first row in `lines` and how many lines it took; raises csv.Error."""
        reader = csv.reader(lines, delimiter=self._form.delimiter, strict=True)
        return next(reader), reader.line_num
