"""`weft keys`: in the store while nothing runs, through the service while one does."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.cli import main
from deployments.cli_keys import _expiry, warn_of_access
from deployments.settings import Settings
from deployments.store_access import open_writer, read_api_keys
from graph.api_keys import digest_of, split_key
from graph.errors import InvalidInput
from graph.lock import StoreLock
from graph.schema import PutApiKey, WriteRequest
from tests.deployments.scripted_cli import Ended, Weft, weft

__all__ = ["weft"]

NOW = 1_700_000_000.0


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEFT_DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def command(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Runs a command where no service runs."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["weft", "keys", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err, [])

    return run


def test_a_key_is_made_listed_and_revoked_without_a_service(command: Callable[..., Ended]) -> None:
    made = command("create", "read", "--label", "a laptop", "--expires", "30d")
    assert made.status == 0
    key = made.out.strip()
    key_id, secret = split_key(key) or ("", "")
    assert key_id
    assert "Keep it" in made.err
    (stored,) = read_api_keys(Settings())
    assert (stored.key_id, stored.digest, stored.label) == (key_id, digest_of(secret), "a laptop")
    assert stored.expires_at == stored.created_at + 30 * 86_400

    listed = command("list")
    assert key_id in listed.out
    assert "a laptop" in listed.out
    assert secret not in listed.out

    assert command("revoke", key).status == 0  # the whole key will do
    assert read_api_keys(Settings()) == []
    assert "There is no key" in command("list").err
    again = command("revoke", key_id)
    assert again.status == 1
    assert "no key" in again.err


def test_a_users_key_and_json(command: Callable[..., Ended]) -> None:
    made = json.loads(command("create", "user", "--user", "ada", "--json").out)
    assert (made["role"], made["user_id"], made["expires_at"], made["expired"]) == (
        "user",
        "ada",
        None,
        False,
    )
    (listed,) = json.loads(command("list", "--json").out)
    assert listed == {name: value for name, value in made.items() if name != "key"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("create", "root"), "role 'root'"),
        (("create", "user"), "whose key it is"),
        (("create", "read", "--user", "ada"), "no other role takes it"),
        (("create", "read", "--label", "a\nb"), "label"),
        (("create", "read", "--expires", "soon"), "--expires 'soon'"),
        (("create", "read", "--expires", "2001-01-01"), "in the past"),
        (("revoke", "nonsense"), "no key 'nonsense'"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    command: Callable[..., Ended], arguments: tuple[str, ...], sentence: str
) -> None:
    ended = command(*arguments)
    assert ended.status == 1
    assert sentence in ended.err
    assert "Traceback" not in ended.err
    assert read_api_keys(Settings()) == []


def test_a_store_that_another_process_holds_is_left_alone(
    command: Callable[..., Ended], data_dir: Path
) -> None:
    with StoreLock(data_dir, "the test"):
        ended = command("create", "read")
    assert ended.status == 1
    assert "is held by the test" in ended.err


def test_a_running_service_makes_the_key(weft: Weft, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_API_KEY", "weft_0000000000000000.mine")
    answer = {
        "key_id": "weft_1111111111111111",
        "key": "weft_1111111111111111.secret",
        "role": "user",
        "user_id": "ada",
        "label": "",
        "created_at": "2026-01-01T00:00:00Z",
        "expires_at": None,
        "expired": False,
        "version": "s.4",
    }
    with StoreLock(data_dir, "the running service", "http://t"):
        ended = weft("keys", "create", "user", "--user", "ada", answers=[httpx.Response(200, json=answer)])
        assert ended.status == 0, ended.err
        assert ended.out == "weft_1111111111111111.secret\n"
        assert ended.sent == [("POST", "/v1/keys", {"role": "user", "label": "", "user_id": "ada"})]
        pages: list[Any] = [
            httpx.Response(200, json={"keys": [answer], "next": answer["key_id"], "version": "s.4"}),
            httpx.Response(200, json={"keys": [], "next": None, "version": "s.4"}),
        ]
        listed = weft("keys", "list", "--json", answers=pages)
        assert [key["key_id"] for key in json.loads(listed.out)] == ["weft_1111111111111111"]
        refused = {"code": "forbidden", "message": "this needs a key of the role admin", "type": "t"}
        error = refused | {"param": None, "request_id": "r", "retryable": False}
        ended = weft("keys", "revoke", answer["key_id"], answers=[httpx.Response(403, json={"error": error})])
        assert ended.status == 1
        assert "role admin" in ended.err
        assert "WEFT_API_KEY" in ended.err


def test_a_service_that_nobody_could_use_does_not_start(command: Callable[..., Ended]) -> None:
    required = Settings(auth="required")
    command("create", "read")
    with open_writer(required, "the test") as write:
        expired = PutApiKey("weft_0000000000000000", "admin", "0" * 64, 5, expires_at=6)
        write(WriteRequest((expired,)))
    with pytest.raises(InvalidInput, match="weft keys create admin"):
        warn_of_access(required)
    command("create", "admin")
    warn_of_access(required)


def test_an_insecure_service_says_so(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_access(Settings(insecure=True))
    assert "insecure:" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seconds"), [("1s", 1), ("15m", 900), ("12h", 43_200), ("30d", 2_592_000)])
def test_spans_count_from_now(text: str, seconds: int) -> None:
    assert _expiry(text, NOW) == NOW + seconds


def test_a_time_is_a_time() -> None:
    assert _expiry("2100-01-01", NOW) == 4_102_444_800
    for text in ("", "30", "d", "-1d", "1w", "30 d", "1.5h"):
        with pytest.raises(InvalidInput, match=re.escape(f"--expires {text[:80]!r}")):
            _expiry(text, NOW)
