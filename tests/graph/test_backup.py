"""Backups: what is in them, taken beside a writer and beside files that come and go."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import graph.backup
from graph.backup import write_backup
from graph.backup_manifest import Manifest, read_backup
from graph.errors import Conflict, Corrupt, NotFound, Unavailable
from graph.schema import PutPointer, PutRating
from graph.store import GraphStore
from graph.writer import GraphWriter
from tests.graph.backup_parts import COPIED, Parts, files_in, make_parts, named
from tests.graph.plain_model import assert_same_view, read_view, write


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return make_parts(tmp_path / "data")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "backups" / "monday"


def back_up(parts: Parts, target: Path, **options: Any) -> Manifest:
    return write_backup(target, parts.store_url, parts.folders, named, **options)


def nothing_left(target: Path) -> bool:
    return not target.exists() and not target.with_name("monday.partial").exists()


def test_where_a_disk_is_mounted_there_is_no_room_for_a_name(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "disk"
    target.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == target)
    with pytest.raises(Conflict, match="below it"):
        write_backup(target, parts.store_url, parts.folders, named)
    assert not any(tmp_path.glob("*.partial"))


def test_everything_that_cannot_be_computed_again_is_in_it(parts: Parts, target: Path) -> None:
    began = time.time()
    manifest = back_up(parts, target)
    assert files_in(target) == COPIED | {"manifest.json"}
    assert set(manifest.files) == COPIED
    for name in COPIED - {"weft.sqlite"}:
        assert (target / name).read_bytes() == (parts.data_dir / name).read_bytes()
    store, copy = parts.store(), GraphStore(target / "weft.sqlite")
    assert_same_view(read_view(copy), read_view(store))
    assert copy.store_id == store.store_id == manifest.store_id
    assert copy.head() == store.head()
    assert (manifest.database, manifest.version, manifest.missing) == ("sqlite", store.head().version, {})
    assert int(began) <= manifest.created_at <= time.time()
    assert target.stat().st_mode & 0o077 == 0
    assert (target / "audit/generations-0.jsonl").stat().st_mode & 0o777 == 0o600
    store.close()
    copy.close()


def test_what_was_written_is_what_is_read_back(parts: Parts, target: Path) -> None:
    assert back_up(parts, target) == read_backup(target)


def test_a_writer_goes_on_and_the_copy_is_of_its_beginning(
    parts: Parts, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit between every two steps of the copy: none waits, none is in it, and it ends."""
    monkeypatch.setattr("graph.sqlite_copy._PAGES_PER_STEP", 4)
    store = parts.store()
    writer = GraphWriter(store)
    before = writer.head.version
    steps = 0

    def commit(stage: str, done: int, total: int) -> None:
        nonlocal steps
        if stage == "store":
            assert total > 40
            assert steps < total, "the copy begins again and again"
            write(writer, PutRating("bo", f"i{steps}", 3.0, steps))
            steps += 1

    manifest = back_up(parts, target, report=commit)
    assert steps > 10
    assert manifest.version == before
    copy = GraphStore(target / "weft.sqlite")
    assert [user.user_id for user in read_view(copy).users()] == ["ada"]
    assert writer.head.version == before + steps
    assert store.head().version == before + steps
    store.close()
    copy.close()


def test_an_encoder_activated_meanwhile_is_whole_or_not_in_it(parts: Parts, target: Path) -> None:
    """The store is copied first: of what it names then, nothing comes too late for the copy of the files."""
    store = parts.store()
    writer = GraphWriter(store)

    def activate(stage: str, done: int, total: int) -> None:
        if stage == "adapters" and done == 0:
            shutil.copytree(parts.data_dir / "encoders/e1", parts.data_dir / "encoders/e2")
            write(writer, PutPointer("encoder", "active", {"digest": "e2"}))

    manifest = back_up(parts, target, report=activate)
    assert manifest.missing == {}
    assert manifest.version == writer.head.version - 1
    store.close()


def test_what_a_crashed_writer_left_in_its_log_is_in_it(parts: Parts, target: Path, tmp_path: Path) -> None:
    """As after SIGKILL: the newest commits are in the file's log alone."""
    store = parts.store()
    writer = GraphWriter(store)
    write(writer, PutRating("ada", "i9", 1.0, 9))
    crashed = tmp_path / "crashed"
    shutil.copytree(parts.data_dir, crashed)
    assert (crashed / "weft.sqlite-wal").stat().st_size > 0
    manifest = back_up(Parts(crashed, f"sqlite:///{crashed / 'weft.sqlite'}"), target)
    assert manifest.version == writer.head.version
    store.close()


def vanishing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Whatever is in `folder` disappears when its first file has been copied."""
    copy_file: Callable[[Path, Path], tuple[str, int]] = graph.backup.copy_file

    def copy_and_remove(source: Path, target: Path) -> tuple[str, int]:
        found = copy_file(source, target)
        if source.is_relative_to(folder):
            shutil.rmtree(folder)
        return found

    monkeypatch.setattr("graph.backup.copy_file", copy_and_remove)


def test_files_removed_meanwhile_are_left_out_whole(
    parts: Parts, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(parts.data_dir / "encoders/e1", parts.data_dir / "encoders/e0")
    vanishing(monkeypatch, parts.data_dir / "encoders/e0")
    back_up(parts, target)
    assert files_in(target) == COPIED | {"manifest.json"}
    assert not (target / "encoders/e0").exists()


@pytest.mark.parametrize("when", ["generations-0.jsonl", "generations-0.jsonl.1"])
def test_no_line_of_a_log_that_is_rotated_meanwhile_is_lost(
    parts: Parts, target: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Before the first of its files is copied or after, as `deployments.audit_log` does it."""
    log = parts.data_dir / "audit/generations-0.jsonl"
    log.write_text("newest\n")
    log.with_name(f"{log.name}.1").write_text("older\n")
    copy_file: Callable[[Path, Path], tuple[str, int]] = graph.backup.copy_file
    rotated = False

    def rotate_and_copy(source: Path, target: Path) -> tuple[str, int]:
        nonlocal rotated
        if source.name == when and not rotated:
            rotated = True
            log.with_name(f"{log.name}.1").rename(log.with_name(f"{log.name}.2"))
            log.rename(log.with_name(f"{log.name}.1"))
        return copy_file(source, target)

    monkeypatch.setattr("graph.backup.copy_file", rotate_and_copy)
    back_up(parts, target)
    assert rotated
    assert {path.read_text() for path in (target / "audit").iterdir()} == {"newest\n", "older\n"}


def test_the_active_encoder_removed_meanwhile_is_an_error(
    parts: Parts, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vanishing(monkeypatch, parts.data_dir / "encoders/e1")
    with pytest.raises(Corrupt, match=r"encoders/e1 \(the active encoder\)"):
        back_up(parts, target)
    assert nothing_left(target)


def test_an_incomplete_backup_is_kept_if_wanted(parts: Parts, target: Path) -> None:
    store = parts.store()
    write(GraphWriter(store), PutPointer("encoder", "active", {"digest": "e2"}))
    store.close()
    with pytest.raises(Corrupt, match="encoders/e2"):
        back_up(parts, target)
    assert nothing_left(target)
    manifest = back_up(parts, target, incomplete=True)
    assert read_backup(target).missing == manifest.missing == {"encoders/e2": "the active encoder"}


def test_folders_that_are_not_there_are_empty(parts: Parts, target: Path) -> None:
    shutil.rmtree(parts.data_dir / "adapters")
    assert set(back_up(parts, target).files) == COPIED - {"adapters/a1/weights"}


def test_links_are_followed(parts: Parts, target: Path, tmp_path: Path) -> None:
    (parts.data_dir / "encoders/e1").rename(tmp_path / "elsewhere")
    (parts.data_dir / "encoders/e1").symlink_to(tmp_path / "elsewhere")
    back_up(parts, target)
    assert files_in(target) == COPIED | {"manifest.json"}


def test_an_empty_folder_is_a_target_and_a_taken_one_is_not(parts: Parts, target: Path) -> None:
    target.mkdir(parents=True)
    back_up(parts, target)
    for taken in (target, target / "manifest.json"):
        with pytest.raises(Conflict, match="is there already"):
            back_up(parts, taken)
    read_backup(target)


def test_one_that_was_interrupted_is_named(parts: Parts, target: Path) -> None:
    partial = target.with_name("monday.partial")
    partial.mkdir(parents=True)
    with pytest.raises(Conflict, match=r"monday\.partial"):
        back_up(parts, target)
    assert partial.exists()
    assert not target.exists()


def test_where_no_store_is_nothing_is_made(parts: Parts, target: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(NotFound, match="no store"):
        back_up(Parts(nowhere, f"sqlite:///{nowhere / 'weft.sqlite'}"), target)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE something (x)")
    connection.close()
    with pytest.raises(NotFound, match="no store"):
        back_up(Parts(parts.data_dir, f"sqlite:///{other}"), target)
    assert nothing_left(target)
    assert not nowhere.exists()


def test_a_damaged_store_is_said_to_be(parts: Parts, target: Path) -> None:
    file = parts.data_dir / "weft.sqlite"
    whole = file.read_bytes()
    for damaged in (b"no database" * 100, whole[:8192] + b"\xff" * 8192 + whole[16384:]):
        file.write_bytes(damaged)
        with pytest.raises(Corrupt, match=r"weft\.sqlite"):
            back_up(parts, target)
        assert nothing_left(target)


def test_a_store_of_a_later_version_is_refused(parts: Parts, target: Path) -> None:
    set_schema(parts, 99)
    with pytest.raises(Corrupt, match="schema 99"):
        back_up(parts, target)
    assert nothing_left(target)


def set_schema(parts: Parts, version: int) -> None:
    with sqlite3.connect(parts.data_dir / "weft.sqlite") as connection:
        connection.execute("UPDATE meta SET schema_version = ?", (version,))
    connection.close()


def test_a_disk_that_does_not_take_it_is_unavailable(
    parts: Parts, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable, match="file"):
        back_up(parts, tmp_path / "file" / "monday")

    def full(source: Path, target: Path) -> tuple[str, int]:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("graph.backup.copy_file", full)
    with pytest.raises(Unavailable, match="No space left"):
        back_up(parts, target)
    assert nothing_left(target)
