"""Which store a URL opens, and what is taken when it does not answer."""

from __future__ import annotations

import logging
import socket
from contextlib import closing
from pathlib import Path

import pytest

from graph.errors import InvalidInput
from models.embedding_cache import opening
from models.embedding_cache.opening import SCHEMES, open_store, open_with_fallback
from models.embedding_cache.store import StoreUnavailable
from tests.conftest import missing

from .redis_server import EXECUTABLE, redis_server

KEY = bytes(range(32))
NOWHERE = "redis://:hunter2@127.0.0.1:1"


@pytest.mark.parametrize(
    ("url", "kind", "made"),
    [
        ("sqlite://{}/new/cache.sqlite", "sqlite", "new/cache.sqlite"),
        ("sqlite://{}/with%20space.sqlite", "sqlite", "with space.sqlite"),
        ("jsonl://{}/lines", "jsonl", "lines/*.jsonl"),
        ("jsonl://{}/lines?gz=1", "jsonl", "lines/*.jsonl.gz"),
        ("parquet://{}/columns", "parquet", "columns/*.parquet"),
        ("datasets://{}/sets", "datasets", "sets/*.dataset"),
        ("memory://", "memory", ""),
    ],
)
def test_the_scheme_says_which(
    url: str, kind: str, made: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        store = open_store(url.format(tmp_path))
    assert store is not None and store.kind == kind
    assert f"connected to the embedding cache: {kind} at {store.location}" in caplog.text
    store.put_many("model", [KEY], [b"value"], None)
    assert store.get_many("model", [KEY]) == [b"value"]
    store.close()
    if made:
        (found,) = tmp_path.glob(made)
        assert str(found).startswith(store.location)


def test_none_is_no_store() -> None:
    assert open_store("none://") is None
    assert open_with_fallback("none://", Path("/nowhere/cache.sqlite")) == opening.Opened(None, None)


@pytest.mark.parametrize("url", ["memcached://:hunter2@cache", "cache.sqlite", "", "REDIS://:hunter2@cache"])
def test_an_unknown_scheme_lists_what_is_allowed(url: str, tmp_path: Path) -> None:
    for opened in (open_store, lambda url: open_with_fallback(url, tmp_path / "cache.sqlite")):
        with pytest.raises(InvalidInput) as refused:
            opened(url)  # type: ignore[operator]
        assert all(f"{scheme}://" in refused.value.message for scheme in SCHEMES)
        assert "hunter2" not in refused.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "parquet://"])
def test_files_need_a_path(url: str) -> None:
    with pytest.raises(InvalidInput, match="names no path"):
        open_store(url)


def test_redis_that_answers_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if EXECUTABLE is None:
        missing("no redis-server on the path")
    with redis_server(tmp_path / "redis", password="hunter2") as server:
        opened = open_with_fallback(server.url, tmp_path / "cache.sqlite", password="hunter2", timeout_s=5.0)
        assert opened.store is not None and opened.degraded is None
        assert (opened.store.kind, opened.store.location) == ("redis", server.url)
        opened.store.close()
        monkeypatch.setattr(opening, "DEFAULT_REDIS_URL", server.url)
        opened = open_with_fallback(None, tmp_path / "cache.sqlite", password="hunter2", timeout_s=5.0)
        assert opened.store is not None and opened.store.kind == "redis"
        opened.store.close()
    assert not (tmp_path / "cache.sqlite").exists()


def test_a_redis_asked_for_that_is_away_falls_back_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StoreUnavailable):
        open_store(NOWHERE)
    with caplog.at_level(logging.INFO):
        opened = open_with_fallback(NOWHERE, tmp_path / "cache.sqlite")
    assert opened.store is not None and opened.store.kind == "sqlite"
    opened.store.close()
    assert opened.degraded is not None
    assert "redis://127.0.0.1:1" in opened.degraded and "cache.sqlite" in opened.degraded
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert opened.degraded in warning.getMessage()
    assert "connected to the embedding cache: sqlite" in caplog.text
    assert "hunter2" not in caplog.text + opened.degraded


def test_no_redis_on_this_machine_is_nothing_to_warn_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "DEFAULT_REDIS_URL", NOWHERE)
    with caplog.at_level(logging.INFO):
        opened = open_with_fallback(None, tmp_path / "cache.sqlite")
    assert opened.store is not None and opened.store.kind == "sqlite"
    opened.store.close()
    assert opened.degraded is None
    assert all(record.levelno < logging.WARNING for record in caplog.records)


def test_something_that_accepts_and_says_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        monkeypatch.setattr(opening, "DEFAULT_REDIS_URL", f"redis://127.0.0.1:{silent.getsockname()[1]}")
        opened = open_with_fallback(None, tmp_path / "cache.sqlite", timeout_s=0.05)
    assert opened.store is not None and opened.store.kind == "sqlite"
    opened.store.close()


def test_nothing_to_write_to_degrades_to_no_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        opened = open_with_fallback(NOWHERE, tmp_path / "file" / "cache.sqlite")
    assert opened.store is None
    assert opened.degraded is not None
    assert "redis://127.0.0.1:1" in opened.degraded and "nothing is cached" in opened.degraded
    assert opened.degraded in caplog.text


@pytest.mark.parametrize(("scheme", "package"), [("parquet", "pyarrow"), ("datasets", "datasets")])
def test_a_package_that_is_not_installed_is_named(
    scheme: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(StoreUnavailable, match=r"pip install 'weft\[files\]'"):
        open_store(f"{scheme}://{tmp_path}/files")
