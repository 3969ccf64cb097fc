"""Restores: what comes back, as another store, and what is refused before anything is written."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from graph.backup import Folder, write_backup
from graph.backup_manifest import _digest
from graph.errors import (
    Conflict,
    Corrupt,
    Fenced,
    ForeignToken,
    InvalidInput,
    NotFound,
    StoreLocked,
    Unavailable,
    WeftError,
)
from graph.lock import lock_of
from graph.restore import Restored, restore_backup
from graph.schema import PutRating, PutUser, Token
from graph.snapshot import newest_snapshot, write_snapshot
from graph.store_identity import dump_command, give_new_id, read_facts
from graph.writer import GraphWriter
from tests.conftest import missing
from tests.graph.backup_parts import COPIED, KEY, Parts, files_in, make_parts, named
from tests.graph.plain_model import model_of, read_view, write
from tests.graph.test_backup import set_schema
from tests.postgres_server import postgres_schema


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return make_parts(tmp_path / "data")


@pytest.fixture
def backup(parts: Parts, tmp_path: Path) -> Path:
    target = tmp_path / "backup"
    write_backup(target, parts.store_url, parts.folders, named)
    return target


@pytest.fixture
def fresh(tmp_path: Path) -> Parts:
    """Where nothing is."""
    return Parts(tmp_path / "restored", f"sqlite:///{tmp_path / 'restored' / 'weft.sqlite'}")


def restore(source: Path, parts: Parts) -> Restored:
    return restore_backup(source, parts.store_url, parts.data_dir, parts.folders, named)


def test_everything_comes_back_as_another_store(parts: Parts, backup: Path, fresh: Parts) -> None:
    old = parts.store()
    restored = restore(backup, fresh)
    assert files_in(fresh.data_dir) == COPIED | {"store.lock"}
    for name in COPIED - {"weft.sqlite"}:
        assert (fresh.data_dir / name).read_bytes() == (parts.data_dir / name).read_bytes()
    assert (fresh.data_dir / "audit/generations-0.jsonl").stat().st_mode & 0o777 == 0o600
    assert fresh.data_dir.stat().st_mode & 0o777 == 0o700
    store = fresh.store()
    assert model_of(read_view(store)) == model_of(read_view(old))
    assert store.store_id == restored.store_id != old.store_id
    assert restored.version == store.head().version == old.head().version
    assert (restored.backup.store_id, restored.missing) == (old.store_id, {})
    # What was done once stays done once.
    assert store.remembered([KEY]) == old.remembered([KEY]) != {}
    with pytest.raises(ForeignToken):
        Token(old.store_id, 1).version_in(store.store_id)
    assert restore(
        backup, Parts(fresh.data_dir / "b", f"sqlite:///{fresh.data_dir}/b.sqlite")
    ).store_id not in (
        old.store_id,
        store.store_id,
    )
    old.close()
    store.close()


def test_snapshots_of_the_lost_future_are_not_taken_for_its_own(
    parts: Parts, backup: Path, fresh: Parts
) -> None:
    old = parts.store()
    writer = GraphWriter(old)
    write(writer, PutUser("lost"))
    snapshots = fresh.data_dir / "snapshots"
    write_snapshot(snapshots, writer.view.contents())
    restored = restore(backup, fresh)
    store = fresh.store()
    other = GraphWriter(store)
    write(other, PutUser("found"))
    assert other.head.version == writer.head.version
    assert newest_snapshot(snapshots, restored.store_id) is None
    assert newest_snapshot(snapshots, old.store_id) is not None
    old.close()
    store.close()


def test_a_store_of_an_older_schema_is_brought_up_to_date(parts: Parts, tmp_path: Path, fresh: Parts) -> None:
    set_schema(parts, 3)
    target = tmp_path / "older"
    assert write_backup(target, parts.store_url, parts.folders, named).schema_version == 3
    restore(target, fresh)
    found = read_facts(fresh.store_url)
    assert found is not None
    assert found.schema_version == 3
    fresh.store().close()
    again = read_facts(fresh.store_url)
    assert again is not None
    assert again.schema_version == 4


# ------------------------------------------------------------------------------------------- damaged backups


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", sorted(COPIED))
def test_a_damaged_file_is_refused(
    backup: Path, fresh: Parts, name: str, damage: Callable[[Path], None]
) -> None:
    damage(backup / name)
    with pytest.raises(Corrupt, match=name):
        restore(backup, fresh)
    assert not fresh.data_dir.exists()


def test_a_folder_that_is_missing_is_refused(backup: Path, fresh: Parts) -> None:
    shutil.rmtree(backup / "encoders")
    with pytest.raises(Corrupt, match="lacks encoders/e1"):
        restore(backup, fresh)
    assert not fresh.data_dir.exists()


def edited(**changes: Any) -> Callable[[Path], None]:
    def edit(manifest: Path) -> None:
        content = json.loads(manifest.read_text()) | changes
        content["digest"] = _digest(content)
        manifest.write_text(json.dumps(content))

    return edit


def without_digest(manifest: Path) -> None:
    content = json.loads(manifest.read_text())
    content["version"] += 1
    manifest.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        (Path.unlink, NotFound, "no backup"),
        (cut, Corrupt, "no manifest"),
        (lambda path: path.write_text("[]"), Corrupt, "no manifest"),
        (without_digest, Corrupt, "its own checksum"),
        (edited(format=99), Corrupt, "format 99"),
        (edited(schema_version=99), Corrupt, "schema 99"),
        (edited(files={"../x": {"sha256": "", "size_bytes": 0}}), Corrupt, "outside"),
        (edited(files={"/etc/x": {"sha256": "", "size_bytes": 0}}), Corrupt, "outside"),
        *(
            (edited(files={name: {"sha256": "", "size_bytes": 0}}), Corrupt, "outside")
            for name in ("encoders//etc/x", "encoders/./x", "encoders/", "", "encoders/a/../../x")
        ),
        (edited(files={"x": {"sha256": ""}}), Corrupt, "no manifest"),
    ],
)
def test_a_manifest_that_is_none_is_refused(
    backup: Path, fresh: Parts, change: Callable[[Path], None], kind: type[WeftError], sentence: str
) -> None:
    change(backup / "manifest.json")
    with pytest.raises(kind, match=sentence):
        restore(backup, fresh)
    assert not fresh.data_dir.exists()


def test_where_no_backup_is(tmp_path: Path, fresh: Parts) -> None:
    for nothing in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(NotFound, match="no backup"):
            restore(nothing, fresh)


# ------------------------------------------------------------------------------------------- refused targets


@pytest.mark.parametrize("name", ["weft.sqlite", "weft.sqlite-wal", "encoders/e2", "adapters/a2", "audit/x"])
def test_what_is_there_is_not_written_over(backup: Path, fresh: Parts, name: str) -> None:
    path = fresh.data_dir / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(Conflict, match="move it away"):
        restore(backup, fresh)
    assert files_in(fresh.data_dir) == {name}
    assert path.read_bytes() == b"mine"


def test_a_data_directory_in_use_is_left_alone(backup: Path, fresh: Parts) -> None:
    with lock_of(fresh.store_url, fresh.data_dir, "the test"), pytest.raises(StoreLocked, match="the test"):
        restore(backup, fresh)
    assert files_in(fresh.data_dir) == {"store.lock"}


def test_one_that_fails_leaves_nothing_and_can_be_repeated(
    backup: Path, fresh: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("graph.restore.give_new_id", fail)
        with pytest.raises(Unavailable, match="No space left"):
            restore(backup, fresh)
    assert files_in(fresh.data_dir) == {"store.lock"}
    restore(backup, fresh)


def test_what_a_killed_one_left_is_in_nobodys_way(parts: Parts, backup: Path, fresh: Parts) -> None:
    """A log beside the staged store least of all: SQLite would replay it."""
    other = parts.store()
    write(GraphWriter(other), PutUser("another future"))
    fresh.data_dir.mkdir()
    shutil.copy(parts.data_dir / "weft.sqlite-wal", fresh.data_dir / ".restoring-weft.sqlite-wal")
    (fresh.data_dir / "encoders/.restoring/e1").mkdir(parents=True)
    (fresh.data_dir / "encoders/.restoring/e1/tensors").write_bytes(b"half")
    restored = restore(backup, fresh)
    other.close()
    assert files_in(fresh.data_dir) == COPIED | {"store.lock"}
    store = fresh.store()
    assert store.store_id == restored.store_id
    assert [user.user_id for user in read_view(store).users()] == ["ada"]
    store.close()


def test_a_writer_of_before_is_shut_out(parts: Parts) -> None:
    store = parts.store()
    writer = GraphWriter(store)
    fresh = give_new_id(parts.store_url, store.store_id)
    with pytest.raises(Fenced):
        write(writer, PutRating("ada", "i1", 1.0, 1))
    with pytest.raises(Conflict, match="nothing was changed"):
        give_new_id(parts.store_url, store.store_id)
    facts = read_facts(parts.store_url)
    assert facts is not None
    assert facts.store_id == fresh
    store.close()


# ------------------------------------------------------------------------------------------------ PostgreSQL


@pytest.fixture
def postgres_url() -> Iterator[str]:
    with postgres_schema() as url:
        yield url


def test_the_files_of_a_postgresql_store_and_its_own_dump(postgres_url: str, tmp_path: Path) -> None:
    """The command that is named makes the other half, and pg_restore brings it back."""
    if shutil.which("pg_dump") is None or shutil.which("pg_restore") is None:
        missing("pg_dump and pg_restore are not installed")
    parts = make_parts(tmp_path / "data", postgres_url)
    store = parts.store()
    before, head = model_of(read_view(store)), store.head()
    command = dump_command(postgres_url)
    assert command is not None
    run(*shlex.split(command), cwd=tmp_path)
    target = tmp_path / "backup"
    manifest = write_backup(target, postgres_url, parts.folders, named)
    assert (manifest.database, manifest.store_id) == ("postgresql", store.store_id)
    assert manifest.version == head.version
    assert files_in(target) == COPIED - {"weft.sqlite"} | {"manifest.json"}
    write(GraphWriter(store), PutUser("lost"))
    old_id = store.store_id
    store.close()

    fresh = Parts(tmp_path / "restored", postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        schema = connection.execute("SELECT current_schema()").fetchone()
        assert schema is not None
        connection.execute(f"DROP SCHEMA {schema[0]} CASCADE".encode())
        with pytest.raises(NotFound, match="restore the database"):
            restore(target, fresh)
        assert files_in(fresh.data_dir) == set()
    address = shlex.split(command)[-1]
    run("pg_restore", "--exit-on-error", "--no-owner", f"--dbname={address}", "weft.dump", cwd=tmp_path)
    restored = restore(target, fresh)
    assert files_in(fresh.data_dir) == COPIED - {"weft.sqlite"}
    again = fresh.store()
    assert model_of(read_view(again)) == before
    assert again.store_id == restored.store_id != old_id
    assert restored.version == again.head().version == head.version
    again.close()
    # The database has its new id: a second restore would be of another store's files.
    with pytest.raises(Conflict, match=f"holds store {restored.store_id}"):
        restore(target, Parts(tmp_path / "second", postgres_url))


def run(*command: str, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_files_that_the_restored_database_names_and_the_backup_lacks(
    postgres_url: str, tmp_path: Path
) -> None:
    parts = make_parts(tmp_path / "data", postgres_url)
    shutil.rmtree(parts.data_dir / "encoders/e1")
    target = tmp_path / "backup"
    write_backup(target, postgres_url, parts.folders, named, incomplete=True)
    restored = restore(target, Parts(tmp_path / "restored", postgres_url))
    assert restored.missing == {"encoders/e1": "the active encoder"}


def test_a_postgresql_store_in_use_is_left_alone(postgres_url: str, tmp_path: Path) -> None:
    parts = make_parts(tmp_path / "data", postgres_url)
    write_backup(tmp_path / "backup", postgres_url, parts.folders, named)
    fresh = Parts(tmp_path / "restored", postgres_url)
    with lock_of(postgres_url, parts.data_dir, "the test"), pytest.raises(StoreLocked, match="the test"):
        restore(tmp_path / "backup", fresh)
    assert not fresh.data_dir.exists()


def test_a_backup_of_the_other_database_is_refused(
    postgres_url: str, backup: Path, fresh: Parts, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="store in sqlite"):
        restore(backup, Parts(fresh.data_dir, postgres_url))
    parts = make_parts(tmp_path / "other", postgres_url)
    write_backup(tmp_path / "of-postgresql", postgres_url, parts.folders, named)
    with pytest.raises(InvalidInput, match="store in postgresql"):
        restore(tmp_path / "of-postgresql", fresh)
    assert not fresh.data_dir.exists()


def test_the_dump_command_holds_no_password() -> None:
    with postgres_schema() as url:
        parts = psycopg.conninfo.conninfo_to_dict(url)
        secret = (
            f"postgresql://{parts['user']}:hush1@{parts['host']}:{parts.get('port', 5432)}/{parts['dbname']}"
            f"?password=hush2&{url.partition('?')[2]}"
        )
        command = dump_command(secret)
    assert command is not None
    assert "hush" not in command
    assert "***" not in command
    assert f"@{parts['host']}" in command
    assert dump_command("sqlite:////x") is None


def test_a_folder_of_a_backup_has_a_place(tmp_path: Path) -> None:
    assert Folder("encoders", tmp_path / "not there").entries() == []
