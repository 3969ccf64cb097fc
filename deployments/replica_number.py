"""A small number for each replica that writes files, so that those that come and go leave no ever more."""

from __future__ import annotations

import fcntl
from itertools import count
from pathlib import Path
from typing import IO


class ReplicaNumber:
    """The first number that no other process holds for `name` in a folder; held until closed or the end."""

    def __init__(self, folder: Path, name: str) -> None:
        """Raises OSError when the folder cannot be made or written."""
        folder.mkdir(parents=True, exist_ok=True)
        self.value, self._held = _take(folder, name)

    def close(self) -> None:
        self._held.close()


def _take(folder: Path, name: str) -> tuple[int, IO[str]]:
    for number in count():
        held = (folder / f".{name}-{number}.lock").open("w", encoding="ascii")
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.close()
            continue
        except OSError:
            held.close()
            raise
        return number, held
    raise AssertionError("unreachable")
