"""Processes and sockets as /proc shows them, for tests that start, kill and count other processes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

NO_MARK = "\0 no mark"  # which no environment holds


@dataclass(frozen=True, slots=True)
class Process:
    """One process, for good: a pid may be given to another, a pid with its start time may not."""

    pid: int
    started: int  # clock ticks since boot
    parent: int = field(compare=False)
    command: str = field(compare=False)

    @property
    def alive(self) -> bool:
        found = _read(self.pid)
        return found is not None and found.started == self.started

    def __str__(self) -> str:
        return f"{self.pid} {self.command[:100]}"


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket."""

    address: str  # as in /proc/net: hexadecimal, 0100007F is 127.0.0.1
    port: int
    process: Process

    @property
    def on_loopback(self) -> bool:
        if len(self.address) == 8:
            return self.address.endswith("7F")
        mapped = self.address.startswith("0" * 16 + "FFFF0000") and self.address.endswith("7F")
        return mapped or self.address == "0" * 24 + "01000000"


def processes() -> Iterator[Process]:
    """All processes that can be read, zombies left out."""
    for path in Path("/proc").glob("[0-9]*"):
        found = _read(int(path.name))
        if found is not None:
            yield found


def family(root: int, mark: str) -> set[Process]:
    """Descendants of `root`, itself included, and whatever was started with `mark` in its environment."""
    everyone = list(processes())
    found = {p for p in everyone if p.pid == root or _marked(p.pid, mark)}
    while more := {p for p in everyone if p not in found and p.parent in {f.pid for f in found}}:
        found |= more
    return found


def listeners(owners: Iterable[Process]) -> list[Listener]:
    """Listening TCP sockets of these processes."""
    sockets: dict[str, Process] = {}
    for owner in owners:
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{owner.pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    sockets[os.readlink(descriptor)] = owner
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].rpartition(":")
            owner_or_none = sockets.get(f"socket:[{fields[9]}]")
            if fields[3] == "0A" and owner_or_none is not None:
                found.append(Listener(address, int(port, 16), owner_or_none))
    return found


def wait_until(condition: Callable[[], T], timeout_s: float, what: str) -> T:
    """The first true value of `condition`; AssertionError naming `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.02)


def _read(pid: int) -> Process | None:
    try:
        # The name in parentheses may hold spaces and parentheses of its own.
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in "ZX":
        return None
    command = raw.replace(b"\0", b" ").decode(errors="replace").strip()
    return Process(pid, int(fields[19]), int(fields[1]), command)


def _marked(pid: int, mark: str) -> bool:
    try:
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
