"""Puts a backup (`graph.backup`) where a service can start on it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from graph.backup import STORE_FILE, Folder, Named, Report, check_schema, disk_errors, missing_of
from graph.backup_manifest import Manifest, read_backup
from graph.durable_files import copy_file, sync, sync_folders
from graph.errors import Conflict, Corrupt, InvalidInput, NotFound, Unavailable
from graph.lock import lock_of
from graph.store_backends import PostgreSQL, SQLite, backend_of
from graph.store_identity import StoreFacts, give_new_id, read_facts

_STAGING = ".restoring"


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of a restore."""

    backup: Manifest
    store_id: str
    """The new one."""
    version: int
    missing: dict[str, str]
    """Folders that the store names and that are not there, each with what it is."""


def restore_backup(
    source: Path,
    store_url: str,
    data_dir: Path,
    folders: Sequence[Folder],
    named: Named,
    *,
    report: Report = lambda stage, done, total: None,
) -> Restored:
    """Put a backup where a service can start on it, as a new store: see `give_new_id`.

    Of PostgreSQL only files are restored; the database has to be there again, and gets its new id.

    Raises NotFound where there is no backup or no restored database, Corrupt for a backup that is damaged,
    InvalidInput for one of another kind of database, Conflict where a store or files of one are already,
    StoreLocked while a process uses them, Unavailable when disk or database does not serve. Nothing has been
    written then.
    """
    with disk_errors(data_dir):
        manifest = read_backup(source)
        backend = backend_of(store_url)
        kind = "postgresql" if isinstance(backend, PostgreSQL) else "sqlite"
        if manifest.database != kind:
            raise InvalidInput(
                f"{source} is the backup of a store in {manifest.database}, WEFT_STORE__URL names {kind}",
                param="store.url",
            )
        check_schema(manifest.schema_version, source)
        file = backend.file if isinstance(backend, SQLite) else None
        _check_free(file, folders)
        if file is not None:
            _make_private(data_dir)  # the lock is in it
        with lock_of(store_url, data_dir, "the command `weft restore`"):
            _check_free(file, folders)
            if file is None:
                facts = _restored_database(store_url, manifest)
            _make_private(data_dir)
            with _undone_on_error() as placed:
                for folder in folders:
                    _restore_folder(source, manifest, folder, placed, report)
                if file is None:
                    sync(data_dir)  # the files before the id: without them it could not be restored again
                    missing = missing_of(named(facts.pointers), manifest.files)
                    store_id = _new_id_of_database(store_url, manifest.store_id)
                else:
                    facts = _restore_store(source, manifest, file, placed)
                    store_id = facts.store_id
                    missing = missing_of(named(facts.pointers), manifest.files)
    return Restored(manifest, store_id, facts.version, missing)


def _new_id_of_database(store_url: str, old: str) -> str:
    """A new id; looked up where the connection broke before it was known whether it had been written."""
    try:
        return give_new_id(store_url, old)
    except Unavailable:
        facts = read_facts(store_url)
        if facts is None or facts.store_id == old:
            raise
        return facts.store_id


def _make_private(folder: Path) -> None:
    """Memories and digests of keys will be in it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _check_free(file: Path | None, folders: Sequence[Folder]) -> None:
    if file is not None:
        for path in (file, *_beside(file)):
            if path.exists():
                raise Conflict(f"{path} is there: a backup is restored where nothing is, move it away first")
    for folder in folders:
        for path in folder.entries()[:1]:
            raise Conflict(f"{path} is there: a backup is restored where nothing is, move it away first")


def _restored_database(store_url: str, manifest: Manifest) -> StoreFacts:
    where = backend_of(store_url).location
    facts = read_facts(store_url)
    if facts is None:
        raise NotFound(
            f"no store at {where}: restore the database with PostgreSQL's own tools first, then the files"
        )
    if facts.store_id != manifest.store_id:
        raise Conflict(
            f"{where} holds store {facts.store_id}, the backup is of store {manifest.store_id}: restore the "
            "database that belongs to it first"
        )
    check_schema(facts.schema_version, where)
    return facts


def _restore_folder(
    source: Path, manifest: Manifest, folder: Folder, placed: list[Path], report: Report
) -> None:
    names = [name for name in manifest.files if name.startswith(f"{folder.name}/")]
    if not names:
        return
    staging = folder.path / _STAGING
    shutil.rmtree(staging, ignore_errors=True)  # of a restore that was killed
    staging.mkdir(parents=True)
    placed.append(staging)
    for done, name in enumerate(names):
        report(folder.name, done, len(names))
        target = staging / name.removeprefix(f"{folder.name}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy_checked(source, name, manifest, target)
    sync_folders(staging)
    for entry in sorted(staging.iterdir()):
        place = folder.path / entry.name
        entry.rename(place)
        placed.append(place)
    staging.rmdir()
    sync(folder.path)
    report(folder.name, len(names), len(names))


def _restore_store(source: Path, manifest: Manifest, file: Path, placed: list[Path]) -> StoreFacts:
    """Last of all: a data directory that has a store has everything."""
    staged = file.with_name(f"{_STAGING}-{file.name}")
    file.parent.mkdir(parents=True, exist_ok=True)
    # Of a restore that was killed: SQLite would replay another store's log into this one.
    for path in (staged, *_beside(staged)):
        path.unlink(missing_ok=True)
        placed.append(path)
    _copy_checked(source, STORE_FILE, manifest, staged)
    url = f"sqlite:///{staged}"
    give_new_id(url, manifest.store_id)
    facts = read_facts(url)
    assert facts is not None
    sync(staged)
    staged.rename(file)
    placed.append(file)
    sync(file.parent)
    return facts


def _beside(file: Path) -> list[Path]:
    """What SQLite keeps beside a database while it is open."""
    return [file.with_name(file.name + ending) for ending in ("-wal", "-shm", "-journal")]


def _copy_checked(source: Path, name: str, manifest: Manifest, target: Path) -> None:
    if copy_file(source / name, target)[0] != manifest.files[name].sha256:
        raise Corrupt(f"the backup {source}: {name} changed while it was restored")


@contextmanager
def _undone_on_error() -> Iterator[list[Path]]:
    """What is put into the list is removed again when the rest fails."""
    placed: list[Path] = []
    try:
        yield placed
    except BaseException:
        for path in reversed(placed):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        raise
