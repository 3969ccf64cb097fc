"""Files that are still there after a power loss, and how to tell whether they are the same."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

_CHUNK_BYTES = 1 << 20


def digest_of_file(path: Path) -> str:
    """SHA-256 of its content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_file(source: Path, target: Path) -> tuple[str, int]:
    """Copy content and permissions to a file that is not there yet, durably; its SHA-256 and bytes.

    The digest is of what was read from `source`: a file that grows meanwhile is copied up to somewhere.
    """
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reading, target.open("xb") as writing:
        os.fchmod(writing.fileno(), stat.S_IMODE(os.fstat(reading.fileno()).st_mode))
        while chunk := reading.read(_CHUNK_BYTES):
            writing.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        writing.flush()
        os.fsync(writing.fileno())
    return digest.hexdigest(), size


def sync(path: Path) -> None:
    """Make a file's content, or a folder's list of names, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folders(root: Path) -> None:
    """Make the lists of names of a folder and of all folders below durable."""
    for folder, _, _ in os.walk(root, topdown=False):
        sync(Path(folder))
