"""`weft backup` and `weft restore`, run in this process: what they print, where, and how they end."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from deployments.cli import main
from deployments.settings import Settings
from deployments.store_access import active_encoder, read_api_keys, read_view
from graph.lock import StoreLock
from tests.postgres_server import postgres_schema
from tests.small_store import SmallStore, make_small_store


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Weft = Callable[..., Ended]


@pytest.fixture
def weft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Weft:
    """Runs a command against a data directory."""

    def run(data_dir: Path, *arguments: str) -> Ended:
        with monkeypatch.context() as environment, pytest.raises(SystemExit) as ended:
            environment.setenv("WEFT_DATA_DIR", str(data_dir))
            environment.setattr(sys, "argv", ["weft", *arguments])
            main()
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, " ".join(captured.err.split()))

    return run


@pytest.fixture
def small(tmp_path: Path) -> SmallStore:
    return make_small_store(tmp_path / "data")


def test_there_and_back(weft: Weft, small: SmallStore, tmp_path: Path) -> None:
    key = weft(small.data_dir, "keys", "create", "read", "--json").json
    with StoreLock(small.data_dir, "the running service", "http://127.0.0.1:1"):  # it is not asked
        ended = weft(small.data_dir, "backup", str(tmp_path / "backup"))
    assert (ended.status, ended.out) == (0, "")
    assert "5 files" in ended.err
    assert "pg_dump" not in ended.err
    assert weft(small.data_dir, "keys", "revoke", key["key_id"]).status == 0

    fresh = tmp_path / "fresh"
    ended = weft(fresh, "restore", str(tmp_path / "backup"))
    assert (ended.status, ended.out) == (0, "")
    old, new = read_view(Settings(data_dir=small.data_dir)), read_view(Settings(data_dir=fresh))
    assert new.store_id != old.store_id
    assert f"Store {old.store_id} at version {new.version} is restored" in ended.err
    assert f"as store {new.store_id}" in ended.err
    assert "API keys that were revoked since are valid again" in ended.err
    assert [key.key_id for key in read_api_keys(Settings(data_dir=fresh))] == [key["key_id"]]
    assert active_encoder(Settings(data_dir=fresh)) == fresh / "encoders" / small.active

    again = weft(fresh, "restore", str(tmp_path / "backup"))
    assert again.status == 1
    assert "move it away" in again.err
    assert "Traceback" not in again.err


def test_json(weft: Weft, small: SmallStore, tmp_path: Path) -> None:
    made = weft(small.data_dir, "backup", str(tmp_path / "backup"), "--json").json
    store = read_view(Settings(data_dir=small.data_dir))
    assert (made["store_id"], made["version"], made["database"]) == (store.store_id, store.version, "sqlite")
    assert (made["files"], made["missing"], made["pg_dump"]) == (5, {}, None)
    found = weft(tmp_path / "fresh", "restore", str(tmp_path / "backup"), "--json").json
    assert (found["restored_from"], found["version"]) == (store.store_id, store.version)
    assert found["created_at"] == made["created_at"]


@pytest.mark.parametrize("inside", ["", "/backups/monday"])
def test_a_backup_in_the_data_directory_is_refused(weft: Weft, small: SmallStore, inside: str) -> None:
    ended = weft(small.data_dir, "backup", f"{small.data_dir}{inside}")
    assert ended.status == 1
    assert "in the data directory" in ended.err


def test_a_missing_encoder_is_named(weft: Weft, small: SmallStore, tmp_path: Path) -> None:
    shutil.rmtree(small.data_dir / "encoders" / small.active)
    ended = weft(small.data_dir, "backup", str(tmp_path / "backup"))
    assert ended.status == 1
    assert f"encoders/{small.active} (the active encoder)" in ended.err
    assert not (tmp_path / "backup").exists()
    ended = weft(small.data_dir, "backup", str(tmp_path / "backup"), "--incomplete")
    assert ended.status == 0
    assert f"incomplete: not there: encoders/{small.active}" in ended.err
    ended = weft(tmp_path / "fresh", "restore", str(tmp_path / "backup"))
    assert ended.status == 0
    assert f"incomplete: not there: encoders/{small.active}" in ended.err


def test_a_store_that_is_not_there(weft: Weft, tmp_path: Path) -> None:
    ended = weft(tmp_path / "nothing", "backup", str(tmp_path / "backup"))
    assert ended.status == 1
    assert "no store" in ended.err
    assert not (tmp_path / "backup").exists()
    ended = weft(tmp_path / "nothing", "restore", str(tmp_path / "backup"))
    assert ended.status == 1
    assert "no backup" in ended.err


@pytest.fixture
def postgres_url() -> Iterator[str]:
    with postgres_schema() as url:
        yield url


def test_of_postgresql_the_other_half_is_named(
    weft: Weft, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = make_small_store(tmp_path / "data", postgres_url)
    parts = psycopg.conninfo.conninfo_to_dict(postgres_url)
    host = f"{parts['host']}:{parts.get('port', 5432)}"
    secret = f"postgresql://{parts['user']}:hush@{host}/{parts['dbname']}?{postgres_url.partition('?')[2]}"
    monkeypatch.setenv("WEFT_STORE__URL", secret)
    ended = weft(small.data_dir, "backup", str(tmp_path / "backup"))
    assert ended.status == 0
    assert "4 files" in ended.err
    assert "The database is not in it" in ended.err
    assert "`pg_dump --format=custom --file=weft.dump" in ended.err
    assert f"{parts['user']}@{host}" in ended.err
    assert "hush" not in ended.err
    assert "hush" not in "".join(p.read_text("latin-1") for p in (tmp_path / "backup").glob("*.json"))
    before = read_view(Settings())
    assert weft(tmp_path / "fresh", "restore", str(tmp_path / "backup")).status == 0
    after = read_view(Settings())
    assert after.store_id != before.store_id
    assert after.version == before.version
