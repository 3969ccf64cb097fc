"""`weft cache`, run in this process: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import deployments.text_preparation as preparation
from deployments.cli import main
from deployments.cli_cache import seconds
from deployments.settings import Settings
from deployments.store_access import open_writer
from graph.errors import InvalidInput
from graph.lock import StoreLock
from graph.schema import PutItem, PutMemory, PutUser, WriteRequest
from models.embedding_cache.cached_encoder import CachedEncoder
from models.embedding_cache.opening import open_store
from models.embedding_cache.sqlite_store import SQLiteStore
from models.embedding_cache.store import StoreUnavailable
from models.text_encoder.hashing_encoder import HashingEncoder
from models.text_encoder.opening import TextModelSpec
from models.text_encoder.protocol import Encoded
from tests.models.embedding_cache.redis_server import EXECUTABLE, RedisServer, redis_server

SECRET = "s3kr/t@:%"


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Weft = Callable[..., Ended]


@pytest.fixture
def weft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Weft:
    """Runs a command; its cache is a file in `tmp_path` unless the environment says otherwise."""
    for name in ("REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WEFT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WEFT_TEXT_EMBEDDER__BACKEND", "hashing")
    monkeypatch.setenv("WEFT_TEXT_EMBEDDER__MODEL", "words")
    monkeypatch.setenv("WEFT_CACHE__URL", f"sqlite://{tmp_path}/cache.sqlite")

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["weft", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        assert SECRET not in printed.out + printed.err
        return Ended(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def lines(tmp_path: Path) -> str:
    """A file with three texts, one of them twice and one with a sign that ends no line."""
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffred\r\ngreen\u2028grass\nred\n\n  \nblue".encode())
    return str(path)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if EXECUTABLE is None:
        pytest.skip("no redis-server on this machine")
    with redis_server(tmp_path_factory.mktemp("redis"), password=SECRET) as server:
        yield server


@pytest.fixture(params=["sqlite", "redis"])
def cache(request: pytest.FixtureRequest, tmp_path: Path, weft: Weft, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of the cache that commands use."""
    if request.param == "redis":
        server = request.getfixturevalue("redis")
        with server.client() as client:
            client.flushall()
        monkeypatch.delenv("WEFT_CACHE__URL")
        monkeypatch.setenv("REDIS_HOST", "127.0.0.1")
        monkeypatch.setenv("REDIS_PORT", str(server.port))
        monkeypatch.setenv("REDIS_PASSWORD", SECRET)
    return str(request.param)


@pytest.mark.parametrize("format_", ["jsonl", "sqlite"])
def test_what_is_exported_and_imported_is_a_hit_again(
    weft: Weft, cache: str, format_: str, lines: str, tmp_path: Path
) -> None:
    place = f"{format_}://{tmp_path}/moved"
    assert weft("cache", "warm", lines, "--json").json == {
        "texts": 3,
        "hits": 0,
        "encoded": 3,
        "refused": 0,
    }
    found = weft("cache", "stats", "--json").json
    assert (found["store"]["kind"], found["store"]["entries"]) == (cache, 3)
    assert (list(found["models"].values()), found["service"]) == ([3], None)

    exported = weft("cache", "export", place, "--json")
    assert exported.json == {"copied": 3}
    assert "entries" in exported.err
    assert weft("cache", "invalidate", "--all", "--json").json == {"dropped": 3}
    assert weft("cache", "stats", "--json").json["models"] == {}
    assert weft("cache", "import", place, "--json").json == {"copied": 3}
    assert weft("cache", "warm", lines, "--json").json["hits"] == 3
    assert "3 were there" in weft("cache", "warm", lines).out
    assert "entries of words" in weft("cache", "stats").out


def test_entries_are_dropped_by_text_by_model_and_by_age(weft: Weft, cache: str, lines: str) -> None:
    def warmed() -> int:
        return int(weft("cache", "warm", lines, "--json").json["encoded"])

    assert warmed() == 3
    assert weft("cache", "invalidate", "red", "yellow", "--json").json == {"dropped": 1}
    assert warmed() == 1
    assert weft("cache", "invalidate", "--model", "words", "--json").json == {"dropped": 3}
    assert warmed() == 3
    assert weft("cache", "prune", "--older-than", "1h", "--json").json == {"dropped": 0}
    assert weft("cache", "prune", "--older-than", "0s", "--json").json == {"dropped": 3}
    assert warmed() == 3
    unknown = weft("cache", "invalidate", "--model", "nope")
    assert unknown.status == 1
    assert "'nope'" in unknown.err and "words-" in unknown.err


def test_a_model_moves_without_the_others(
    weft: Weft, lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weft("cache", "warm", lines)
    monkeypatch.setenv("WEFT_TEXT_EMBEDDER__MODEL", "signs")
    weft("cache", "warm", lines)
    place = f"jsonl://{tmp_path}/moved"
    assert weft("cache", "export", place, "--model", "signs", "--json").json == {"copied": 3}
    assert weft("cache", "invalidate", "--all", "--json").json == {"dropped": 6}
    assert weft("cache", "import", place, "--json").json == {"copied": 3}
    (name,) = weft("cache", "stats", "--json").json["models"]
    assert name.startswith("signs-")


def test_the_store_is_warmed_with_every_item_and_memory(weft: Weft) -> None:
    with open_writer(Settings(), "test") as write:
        items = [PutItem(f"i{n}", f"Title {n % 3}", ("tag",), 1990, "") for n in range(6)]
        write(WriteRequest((*items, PutUser("ann"), PutMemory("m", "ann", "likes trains"))))
    assert weft("cache", "warm", "--json").json["encoded"] == 4  # equal texts are one


def test_queries_have_a_prompt_of_their_own(weft: Weft, lines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_TEXT_EMBEDDER__QUERY_PROMPT", "query: ")
    assert weft("cache", "warm", lines, "--json").json["hits"] == 0
    assert weft("cache", "warm", lines, "--queries", "--json").json["hits"] == 0
    assert weft("cache", "warm", lines, "--queries", "--json").json["hits"] == 3
    assert weft("cache", "warm", "--queries").status == 1


def test_a_file_without_texts_is_no_mistake(weft: Weft, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n \n")
    assert weft("cache", "warm", str(tmp_path / "empty"), "--json").json["texts"] == 0


class Choosy(HashingEncoder):
    """Takes no text with green in it."""

    def encode_counted(self, texts: Any, prompt: str | None = None, *, truncate: bool = True) -> Encoded:
        if any("green" in text for text in texts):
            raise InvalidInput("green is not allowed")
        return super().encode_counted(texts, prompt, truncate=truncate)


def test_a_refused_text_costs_the_others_nothing(
    weft: Weft, lines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(spec: TextModelSpec) -> HashingEncoder:
        return Choosy(model=spec.model)

    monkeypatch.setattr(preparation, "open_encoder", opened)
    done = weft("cache", "warm", lines, "--json")
    assert (done.json["encoded"], done.json["refused"]) == (2, 1)
    assert "green is not allowed" in done.err
    assert weft("cache", "warm", lines, "--json").json["hits"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("export", "foo://x"), "begins with 'foo'"),
        (("export", "x"), "no scheme"),
        (("export", "none://"), "keeps nothing"),
        (("export", "memory://"), "keeps nothing"),
        (("export", "jsonl://"), "no path"),
        (("export", f"redis://:{'s3kr%2Ft%40:%25'}@127.0.0.1:1"), "refused"),
        (("import", "jsonl:///nowhere/at/all"), "does not exist"),
        (("import", "sqlite:///nowhere.sqlite"), "does not exist"),
        (("prune", "--older-than", "soon"), "such as 30d"),
        (("invalidate",), "say what to drop"),
        (("invalidate", "--all", "text"), "say what to drop"),
        (("warm", "/nowhere/texts"), "cannot be read"),
    ],
)
def test_a_mistake_is_one_sentence(weft: Weft, arguments: tuple[str, ...], said: str) -> None:
    ended = weft("cache", *arguments)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert said in ended.err
    assert "s3kr" not in ended.err


def test_the_cache_is_no_place_to_move_itself_to(weft: Weft, tmp_path: Path) -> None:
    ended = weft("cache", "export", f"sqlite://{tmp_path}/cache.sqlite")
    assert ended.status == 1
    assert "the cache itself" in ended.err


def test_a_file_that_is_not_utf_8_is_refused(weft: Weft, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("für".encode("latin-1"))
    ended = weft("cache", "warm", str(tmp_path / "latin"))
    assert ended.status == 1
    assert "UTF-8" in ended.err


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("WEFT_CACHE__ENABLED", "false", "WEFT_CACHE__ENABLED is false"),
        ("WEFT_CACHE__URL", "none://", "none://"),
        ("WEFT_CACHE__URL", "memory://", "every process has its own"),
    ],
)
def test_without_a_cache_there_is_nothing_to_move(
    weft: Weft, lines: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    found = weft("cache", "stats", "--json")
    assert (found.status, found.json["store"], found.json["models"]) == (0, None, {})
    assert said in found.err
    for command in (("warm", lines), ("export", "jsonl:///x"), ("invalidate", "--all")):
        ended = weft("cache", *command)
        assert (ended.status, ended.out) == (1, "")
        assert said in ended.err


def test_a_redis_that_is_away_is_told_and_the_file_serves(
    weft: Weft, lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEFT_CACHE__URL", "redis://:s3kr%2Ft%40%3A%25@127.0.0.1:1")
    assert weft("cache", "warm", lines, "--json").json["encoded"] == 3
    found = weft("cache", "stats", "--json").json["store"]
    assert (found["kind"], found["entries"]) == ("sqlite", 3)
    assert found["location"] == str(tmp_path / "data" / "embeddings.sqlite")


def test_a_wrong_url_of_the_cache_stops_every_command_without_its_password(
    weft: Weft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEFT_CACHE__URL", "redis://:s3kr@host:port")
    ended = weft("cache", "stats")
    assert (ended.status, ended.out) == (1, "")
    assert "WEFT_CACHE__URL: the port" in ended.err
    assert "s3kr" not in ended.err


def test_the_configuration_hides_secrets(weft: Weft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_CACHE__URL", "redis://:s3kr@127.0.0.1:1")
    monkeypatch.setenv("WEFT_TEXT_EMBEDDER__API_KEY", "s3kr")
    monkeypatch.setenv("REDIS_PASSWORD", "s3kr")
    printed = weft("config", "--json")
    assert "s3kr" not in printed.out + printed.err
    assert printed.json["WEFT_CACHE__URL"]["from"] == "environment"


def test_another_command_that_holds_the_store_is_no_hindrance(weft: Weft, lines: str) -> None:
    with StoreLock(Settings().data_dir, "a test"):
        assert weft("cache", "warm", lines, "--json").json["encoded"] == 3


def test_entries_that_could_not_be_written_are_an_error(
    weft: Weft, lines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushing = threading.Event()
    flush = CachedEncoder.flush

    def noted(encoder: CachedEncoder) -> None:
        flushing.set()
        flush(encoder)

    def full(*_: object) -> None:
        # Not before the command waits for what it wrote: one that does not wait would not hear of this.
        flushing.wait(2)
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(CachedEncoder, "flush", noted)
    monkeypatch.setattr(SQLiteStore, "put_many", full)
    ended = weft("cache", "warm", lines)
    assert (ended.status, ended.out) == (1, "")
    assert "were not written" in ended.err


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90), ("0s", 0), ("1.5m", 90), ("12h", 43_200), ("2w", 1_209_600)]
)
def test_durations(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "5", "h", "-1h", "1 h", "1e3s", "nan", "infs"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidInput, match="no duration"):
        seconds(text)


def test_an_exported_entry_keeps_its_times(weft: Weft, lines: str, tmp_path: Path) -> None:
    weft("cache", "warm", lines)
    weft("cache", "export", f"parquet://{tmp_path}/moved")
    kept, moved = (
        open_store(url) for url in (f"sqlite://{tmp_path}/cache.sqlite", f"parquet://{tmp_path}/moved")
    )
    assert kept is not None and moved is not None
    try:
        assert {e.key: e for e in kept.entries()} == {e.key: e for e in moved.entries()}
    finally:
        kept.close()
        moved.close()
