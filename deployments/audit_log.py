"""What was generated, for whom and with which adapter: one JSON line per generation."""

from __future__ import annotations

import errno
import json
import logging
import os
import queue
import threading
from collections.abc import Mapping
from io import FileIO
from pathlib import Path

from deployments.replica_number import ReplicaNumber
from deployments.setting_groups import AuditSettings

log = logging.getLogger(__name__)

_MAX_WAITING = 10_000
_PRIVATE = 0o600  # it says who asked, and when switched on, what


class AuditLog:
    """Lines of one replica, in `generations-<number>.jsonl` of a folder: the first number no other one holds.

    Numbers and not ids, so that replicas that come and go do not leave ever more files behind. A full file
    is renamed to `.1`, that one to `.2` and so on; the oldest goes. Writing happens on a thread of its own:
    a disk that is slow or full costs lines, which are counted, and never a generation.
    """

    def __init__(self, limits: AuditSettings, folder: Path) -> None:
        """Open the file; a folder that cannot be written is a warning and shows in `status`."""
        self._limits = limits
        self._folder = folder
        self._waiting: queue.Queue[Mapping[str, object] | threading.Event | None] = queue.Queue(_MAX_WAITING)
        self._number: ReplicaNumber | None = None
        self._path: Path | None = None
        self._file: FileIO | None = None
        self._written = self._lost = 0
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._work, name="audit-log", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, object]) -> None:
        """Take a line to be written soon; never blocks, never fails."""
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._lose(1, "the disk does not keep up")

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Whether everything taken so far was dealt with in time."""
        done = threading.Event()
        try:
            self._waiting.put(done, timeout=timeout_s)
        except queue.Full:
            return False
        return done.wait(timeout_s)

    def close(self) -> None:
        """Write what waits, for five seconds at most, and let go of the file."""
        try:
            self._waiting.put(None, timeout=5.0)
        except queue.Full:
            log.warning("audit log: %d lines were not written in time", self._waiting.qsize())
            return
        self._thread.join(5.0)

    def status(self) -> dict[str, object]:
        """Plain JSON for operators; `lost` counts lines that could not be written."""
        return {
            "file": None if self._path is None else str(self._path),
            "written": self._written,
            "lost": self._lost,
            "failure": self._failure,
        }

    # ------------------------------------------------------------------------------------------ on its thread

    def _work(self) -> None:
        while (entry := self._waiting.get()) is not None:
            if isinstance(entry, threading.Event):
                entry.set()
                continue
            try:
                self._append(_line(entry))
            except OSError as error:
                self._lose(1, f"{error.strerror or type(error).__name__}: {error.filename or self._folder}")
                self._forget_file()
            else:
                self._written += 1
                self._failure = None
        self._forget_file()
        if self._number is not None:
            self._number.close()

    def _append(self, line: bytes) -> None:
        file = self._file or self._open()
        if file.tell() > 0 and file.tell() + len(line) > self._limits.max_bytes:
            self._rotate()
            file = self._open()
        if file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def _open(self) -> FileIO:
        if self._path is None:
            self._path = self._own_path()
        # Unbuffered: what could not be written is not tried again behind the next line.
        file = FileIO(self._path, "a+", opener=lambda path, flags: os.open(path, flags, _PRIVATE))
        self._file = file
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")  # after a line that a full disk or a crash cut off
        return file

    def _own_path(self) -> Path:
        self._number = self._number or ReplicaNumber(self._folder, "generations")
        return self._folder / f"generations-{self._number.value}.jsonl"

    def _rotate(self) -> None:
        self._forget_file()
        assert self._path is not None
        for number in range(self._limits.keep_files - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))

    def _forget_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _lose(self, lines: int, reason: str) -> None:
        if self._failure is None:
            log.warning("audit log: lines are lost: %s", reason)
        self._lost += lines
        self._failure = reason


def _line(record: Mapping[str, object]) -> bytes:
    # A lone surrogate of a prompt becomes its JSON escape.
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", errors="backslashreplace") + b"\n"
