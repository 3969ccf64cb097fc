"""What is in a backup: `manifest.json`, with a checksum of every file and of itself."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from graph.durable_files import digest_of_file, sync
from graph.errors import Corrupt, NotFound

FORMAT = 1
MANIFEST_FILE = "manifest.json"
Database: TypeAlias = Literal["sqlite", "postgresql"]


@dataclass(frozen=True, slots=True)
class CopiedFile:
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A backup: which store, at which version, and which files."""

    database: Database
    """In PostgreSQL the database is backed up with its own tools, and no file here."""
    store_id: str
    version: int
    schema_version: int
    created_at: int
    """Unix seconds, before the first file was copied."""
    files: dict[str, CopiedFile]
    """By path in the backup, with slashes."""
    missing: dict[str, str]
    """Folders that the store names and that were not there, each with what it is."""

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files.values())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it, durably."""
    content = {"format": FORMAT, **dataclasses.asdict(manifest)}
    content["digest"] = _digest(content)
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    sync(path)


def read_backup(folder: Path) -> Manifest:
    """The manifest of a backup whose every file was read and is as it was written.

    Raises NotFound where there is no backup, Corrupt for one that is damaged, incomplete, or of a format that
    this version does not read.
    """
    manifest = _read_manifest(folder)
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise Corrupt(f"the backup {folder} lacks {name}")
        size = path.stat().st_size
        if size != expected.size_bytes:
            raise Corrupt(f"the backup {folder}: {name} has {size} bytes instead of {expected.size_bytes}")
        if digest_of_file(path) != expected.sha256:
            raise Corrupt(f"the backup {folder}: {name} does not match its checksum")
    return manifest


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"no backup in {folder}: it has no {MANIFEST_FILE}") from error
    except ValueError as error:
        raise Corrupt(f"{path} is no manifest: {error}") from error
    try:
        if content["format"] != FORMAT:
            raise Corrupt(
                f"the backup {folder} has format {content['format']!r}, this version reads {FORMAT}: "
                "use the Weft version that wrote it"
            )
        if content["digest"] != _digest(content):
            raise Corrupt(f"{path} does not match its own checksum")
        files = {name: CopiedFile(**facts) for name, facts in content["files"].items()}
        manifest = Manifest(
            **{f.name: content[f.name] for f in dataclasses.fields(Manifest)} | {"files": files}
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"{path} is no manifest of a backup: {error!r}") from error
    for name in files:
        if {"", ".", ".."} & set(name.split("/")):  # a path that begins with "/", too
            raise Corrupt(f"{path} names a file outside the backup: {name!r}")
    return manifest


def _digest(content: dict[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
