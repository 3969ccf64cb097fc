"""The SQLite store: processes side by side, bounds, damage, other people's files, and disks that refuse."""

from __future__ import annotations

import logging
import os
import resource
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from models.embedding_cache.sqlite_store import SQLiteStore
from models.embedding_cache.store import Entry, StoreUnavailable

KEYS = [bytes([n % 256, n // 256]) * 16 for n in range(2_000)]
VALUES = [key * 25 for key in KEYS]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "below" / "cache.sqlite"


def filled(path: Path) -> None:
    with closing(SQLiteStore(path)) as store:
        store.put_many("model", KEYS, VALUES, None)


def test_the_file_is_made_with_its_folder_and_marked_as_ours(path: Path) -> None:
    filled(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (int.from_bytes(b"WEFT", "big"),)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("SELECT count(*), min(length(key)) FROM entries").fetchone() == (2_000, 32)
    with closing(SQLiteStore(path)) as store:
        assert store.get_many("model", KEYS) == VALUES


_WRITER = """
import sys
from models.embedding_cache.sqlite_store import SQLiteStore
store = SQLiteStore(sys.argv[1], busy_timeout_s=30.0)
for turn in range(20):
    keys = [bytes([n, turn]) * 16 for n in range(100)]
    store.put_many("model", keys, [key * 25 for key in keys], None)
    assert store.get_many("model", keys) == [key * 25 for key in keys]
store.close()
"""


def test_processes_that_start_and_write_at_once(path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, str(path)]) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    with closing(SQLiteStore(path)) as store:
        assert store.namespaces() == {"model": 2_000}
        assert all(entry.value == entry.key * 25 for entry in store.entries())


def test_the_oldest_go_when_the_bound_is_reached(path: Path) -> None:
    bound = 2_000_000
    with closing(SQLiteStore(path, max_bytes=bound)) as store:
        store.put_many("model", KEYS[:50], VALUES[:50], None)
        for at in range(0, 6_000, 100):
            keys = [b"%016d" % n * 2 for n in range(at, at + 100)]
            store.put_many("model", keys, [key * 25 for key in keys], None)
        # Written again: among the youngest now.
        store.put_many("model", KEYS[:50], VALUES[:50], None)
        store.put_many("model", keys, [key * 25 for key in keys], None)
        statistics = store.statistics()
        assert statistics.bytes is not None and statistics.entries is not None
        assert bound * 0.6 < statistics.bytes <= bound
        assert statistics.server_max_bytes == bound
        assert store.get_many("model", KEYS[:50]) == VALUES[:50]
        numbers = sorted(int(entry.key[:16]) for entry in store.entries() if entry.key not in KEYS[:50])
        assert numbers == list(range(6_000 - len(numbers), 6_000))
        assert path.stat().st_size < 2 * bound


def test_dropping_gives_the_disk_back(path: Path) -> None:
    with closing(SQLiteStore(path)) as store:
        store.put_many("model", KEYS, VALUES, None)
        full = store.statistics().bytes
        assert store.clear("model") == 2_000
        left = store.statistics().bytes
        assert full is not None and left is not None and left < full / 20
    assert path.stat().st_size < full / 20


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 9_000])
def test_a_damaged_file_is_moved_aside(path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING), closing(SQLiteStore(path)) as store:
        assert store.get_many("model", KEYS[:1]) == [None]
        store.put_many("model", KEYS[:1], VALUES[:1], None)
    (aside,) = path.parent.glob("cache.sqlite.damaged-*")
    assert aside.read_bytes() == content
    assert aside.name in caplog.text
    with closing(SQLiteStore(path)) as store:
        assert store.get_many("model", KEYS[:1]) == VALUES[:1]


def test_a_file_damaged_while_it_serves_is_replaced(path: Path) -> None:
    filled(path)
    with closing(SQLiteStore(path)) as store:
        assert store.get_many("model", KEYS[:1]) == VALUES[:1]
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(8192)
            file.write(os.urandom(size - 8192))
        found: list[bytes | None] = []
        for at in range(0, len(KEYS), 100):
            try:
                found = store.get_many("model", KEYS[at : at + 100])
            except StoreUnavailable:
                found = []
            assert all(v in (None, w) for v, w in zip(found, VALUES[at : at + 100], strict=False))
        store.put_many("model", KEYS, VALUES, None)
        assert store.get_many("model", KEYS) == VALUES
    assert list(path.parent.glob("cache.sqlite.damaged-*"))


def test_another_version_of_the_format_is_moved_aside(path: Path) -> None:
    filled(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version=99")
    with closing(SQLiteStore(path)) as store:
        assert store.namespaces() == {}
    assert len(list(path.parent.glob("cache.sqlite.damaged-*"))) == 1


def test_somebody_elses_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE accounts (id)")
        connection.execute("INSERT INTO accounts VALUES (7)")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(StoreUnavailable, match=r"another program.*accounts"):
        SQLiteStore(path)
    assert path.read_bytes() == before
    assert sorted(found.name for found in path.parent.iterdir()) == ["cache.sqlite", "cache.sqlite.lock"]


def test_an_empty_file_becomes_ours(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    filled(path)
    with closing(SQLiteStore(path)) as store:
        assert store.get_many("model", KEYS[:2]) == VALUES[:2]


def test_a_writer_that_holds_the_file_is_waited_for_so_long(path: Path) -> None:
    with closing(SQLiteStore(path, busy_timeout_s=0.1)) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="locked"):
                store.put_many("model", KEYS[:1], VALUES[:1], None)
            assert store.get_many("model", KEYS[:1]) == [None]
            other.execute("ROLLBACK")
        store.put_many("model", KEYS[:1], VALUES[:1], None)
        assert store.get_many("model", KEYS[:1]) == VALUES[:1]


def test_a_disk_that_takes_no_more(path: Path) -> None:
    with closing(SQLiteStore(path)) as store:
        store.put_many("model", KEYS[:100], VALUES[:100], None)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Python ignores SIGXFSZ: a write beyond the limit fails as one on a full disk does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
        try:
            with pytest.raises(StoreUnavailable):
                for _ in range(3):
                    store.put_many("model", KEYS, VALUES, None)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert store.get_many("model", KEYS[:100]) == VALUES[:100]
        store.put_many("model", KEYS, VALUES, None)
        assert store.get_many("model", KEYS) == VALUES


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable, match=r"cache\.sqlite"):
        SQLiteStore(tmp_path / "file" / "cache.sqlite")
    with pytest.raises(StoreUnavailable):
        SQLiteStore(tmp_path)


def test_closed_is_unavailable(path: Path) -> None:
    store = SQLiteStore(path)
    store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        store.get_many("model", KEYS[:1])


def test_a_forked_child_opens_its_own(path: Path) -> None:
    filled(path)
    with closing(SQLiteStore(path)) as store:
        assert store.get_many("model", KEYS[:1]) == VALUES[:1]
        inherited = list(store._file._idle)
        child = os.fork()
        if child == 0:
            store.put_many("child", KEYS[:1], VALUES[:1], None)
            os._exit(any(connection in inherited for connection in store._file._idle))
        assert os.waitpid(child, 0)[1] == 0
        assert store.namespaces() == {"model": 2_000, "child": 1}


def test_entries_are_seen_once_while_others_replace_them(path: Path) -> None:
    filled(path)
    with closing(SQLiteStore(path)) as store:
        entries = store.entries()
        seen: list[Entry] = [next(entries)]
        store.put_many("model", KEYS[:300], VALUES[:300], None)
        seen += entries
    assert sorted(entry.key for entry in seen) == sorted(KEYS)


def test_expired_entries_go_as_others_come(path: Path) -> None:
    now = [1000.0]
    with closing(SQLiteStore(path, clock=lambda: now[0])) as store:
        for round_ in range(20):
            now[0] += 60.0
            keys = [bytes([round_]) + key[1:] for key in KEYS[:200]]
            store.put_many("model", keys, VALUES[:200], ttl_s=90.0)
        with closing(sqlite3.connect(path)) as connection:
            (rows,) = connection.execute("SELECT count(*) FROM entries").fetchone()
        assert rows == 400  # what was written in the last 90 seconds
