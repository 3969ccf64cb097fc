"""Copies of everything that cannot be computed again, taken while a service runs.

A backup is a folder with `manifest.json`, the store in `weft.sqlite` (not for PostgreSQL), and a folder for
each kind of files the store names. The store is copied first: what it names was there by then. The backup is
written under another name, synced, and renamed, so that a folder of its name is whole. `graph.restore` puts
it back.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from graph import tables
from graph.backup_manifest import CopiedFile, Manifest, write_manifest
from graph.durable_files import copy_file, digest_of_file, sync, sync_folders
from graph.errors import Conflict, Corrupt, NotFound, Unavailable
from graph.schema import Pointer
from graph.sqlite_copy import copy_sqlite
from graph.store_backends import SQLite, backend_of
from graph.store_identity import read_facts

STORE_FILE = "weft.sqlite"
_LISTED = 3

Named = Callable[[Sequence[Pointer]], Mapping[str, str]]
"""Which folders of a backup the pointers of a store name, each with what it is to the store."""
Report = Callable[[str, int, int], None]
"""Takes a stage, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Folder:
    """One kind of files: its name in a backup, and where they are.

    Entries whose names begin with a dot are somebody's work in progress, and left out.
    """

    name: str
    path: Path

    def entries(self) -> list[Path]:
        """What is in it now, sorted; nothing where it is not there."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return []
        return [self.path / name for name in sorted(names) if not name.startswith(".")]


def write_backup(
    target: Path,
    store_url: str,
    folders: Sequence[Folder],
    named: Named,
    *,
    incomplete: bool = False,
    report: Report = lambda stage, done, total: None,
) -> Manifest:
    """Copy the store and the files beside it to `target`, a folder that is not there yet or is empty.

    The writer goes on meanwhile: the copy has what was committed before it began and nothing that was begun
    after it ended. `incomplete` keeps a backup without files that the store names.

    Raises Conflict for a target that is taken, NotFound where there is no store, Corrupt for a store that is
    damaged or that names files which are not there, Unavailable when the disk or the database does not serve.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Conflict(f"{target} is there already and not an empty folder: a backup needs one of its own")
    if target.is_mount():
        raise Conflict(f"{target} is where a disk is mounted: name a folder below it")
    partial = target.with_name(f"{target.name}.partial")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.mkdir(mode=0o700)  # memories and keys are in it
        except FileExistsError:
            raise Conflict(
                f"{partial} is there: another backup is being written, or one was interrupted, and then it "
                "can be removed"
            ) from None
        try:
            manifest = _fill(partial, store_url, folders, named, report)
            if manifest.missing and not incomplete:
                raise Corrupt(f"the store names files that are not there: {listed(manifest.missing)}")
            write_manifest(partial, manifest)
            sync_folders(partial)
            partial.rename(target)
            sync(target.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return manifest


def listed(missing: Mapping[str, str]) -> str:
    """A few of them as words, and how many more there are."""
    shown = [f"{path} ({what})" for path, what in list(missing.items())[:_LISTED]]
    more = len(missing) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


# --------------------------------------------------------------------------------------------------- writing


def _fill(partial: Path, store_url: str, folders: Sequence[Folder], named: Named, report: Report) -> Manifest:
    created_at = int(time.time())
    backend = backend_of(store_url)
    files: dict[str, CopiedFile] = {}
    if isinstance(backend, SQLite):
        copied = partial / STORE_FILE
        if not backend.file.is_file():
            raise _no_store(backend.location)
        copy_sqlite(backend.file, copied, lambda done, total: report("store", done, total))
        copied.chmod(stat.S_IMODE(backend.file.stat().st_mode))
        facts = read_facts(f"sqlite:///{copied}")
        sync(copied)
        files[STORE_FILE] = CopiedFile(digest_of_file(copied), copied.stat().st_size)
    else:
        facts = read_facts(store_url)
    if facts is None:
        raise _no_store(backend.location)
    check_schema(facts.schema_version, backend.location)
    for folder in folders:
        files |= _copy_folder(folder, partial, report)
    return Manifest(
        database="sqlite" if isinstance(backend, SQLite) else "postgresql",
        store_id=facts.store_id,
        version=facts.version,
        schema_version=facts.schema_version,
        created_at=created_at,
        files=files,
        missing=missing_of(named(facts.pointers), files),
    )


def _copy_folder(folder: Folder, partial: Path, report: Report) -> dict[str, CopiedFile]:
    files: dict[str, CopiedFile] = {}
    seen: set[Path] = set()
    # Until there is nothing new: logs that are rotated meanwhile go on under other names, newest to older.
    while entries := [entry for entry in folder.entries() if entry not in seen]:
        for done, entry in enumerate(entries):
            report(folder.name, done, len(entries))
            seen.add(entry)
            files |= _copy_entry(entry, folder, partial)
        report(folder.name, len(entries), len(entries))
    return files


def _copy_entry(entry: Path, folder: Folder, partial: Path) -> dict[str, CopiedFile]:
    files: dict[str, CopiedFile] = {}
    try:
        for path in _files_of(entry):
            name = f"{folder.name}/{path.relative_to(folder.path).as_posix()}"
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            files[name] = CopiedFile(*copy_file(path, target))
    except FileNotFoundError as error:
        if Path(str(error.filename)).is_relative_to(partial):
            raise
        # Removed meanwhile: nothing of it is kept. Whether the store names it, is asked at the end.
        shutil.rmtree(partial / folder.name / entry.name, ignore_errors=True)
        return {}
    return files


def _files_of(entry: Path) -> Iterator[Path]:
    """Regular files of an entry of a folder, and of all folders below; links are followed."""
    if entry.is_file():
        yield entry
        return

    def refuse(error: OSError) -> None:
        raise error

    for place, _, names in os.walk(entry, onerror=refuse, followlinks=True):
        for name in sorted(names):
            path = Path(place, name)
            if path.is_file() or not path.exists():  # what vanished is to be noticed
                yield path


def missing_of(named: Mapping[str, str], files: Mapping[str, CopiedFile]) -> dict[str, str]:
    """Those of the named folders that have no file among `files`."""
    there = {"/".join(name.split("/")[:2]) for name in files}
    return {path: what for path, what in named.items() if path not in there}


def check_schema(schema_version: int, where: Path | str) -> None:
    """Raise Corrupt for a schema that this version does not read."""
    if schema_version not in range(1, tables.SCHEMA_VERSION + 1):
        raise Corrupt(
            f"{where} has schema {schema_version}, this version reads {tables.SCHEMA_VERSION}: "
            "use the Weft version that wrote it"
        )


def _no_store(location: str) -> NotFound:
    return NotFound(f"there is no store at {location}: nothing to back up")


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Raise Unavailable for what the operating system refuses."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"{error.filename or where}: {error.strerror or error}") from error
