"""`weft adapters train`: texts in a file become an adapter in a folder or in the service."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from models.language_model.lora_weights import CONFIG_FILE, WEIGHTS_FILE
from tests.deployments.scripted_cli import Weft
from tests.deployments.test_cli_generation import ENTRY
from tests.deployments.test_client_generation import STATE

TEXTS = "the rain again, yours Kim\n\n  the soup again, yours Kim \n"
EMPTY = {"adapters": [], "states": [], "candidates": [], "version": "s.3", "next": None}
WRITTEN = {"version": "s.8", "changed": 1, "replayed": False}


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text(TEXTS)
    return path


def test_a_folder_is_kept_and_no_service_asked(weft: Weft, notes: Path, tmp_path: Path) -> None:
    command = ("adapters", "train", "user/ada", "--epochs", "2", "--json", "--out")
    ended = weft(*command, str(tmp_path / "kim"), "--texts", str(notes), answers=[httpx.Response(500)])
    assert (ended.status, ended.sent) == (0, [])
    found = json.loads(ended.out)
    assert found["folder"] == str(tmp_path / "kim")
    assert (found["training"]["examples"], found["training"]["steps"]) == (2, 2)
    again = weft(*command, str(tmp_path / "piped"), "--texts", "-", answers=[], stdin=TEXTS)
    assert again.status == 0
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / "kim" / file).read_bytes() == (tmp_path / "piped" / file).read_bytes()


def test_it_goes_into_the_service(weft: Weft, notes: Path) -> None:
    answers = [
        httpx.Response(200, json=EMPTY),
        httpx.Response(200, json={**WRITTEN, "adapter": ENTRY}),
        httpx.Response(200, json={**WRITTEN, "state": STATE}),
    ]
    options = ("--texts", str(notes), "--version", "v2", "--activate", "--epochs", "1")
    ended = weft("adapters", "train", "user/ada", *options, answers=answers)
    assert (ended.status, ended.out) == (0, "")
    assert "2 examples" in ended.err
    assert f"user/ada/v2: {'d' * 64}\nActive for user/ada: v2.\n" in ended.err
    assert [(method, path) for method, path, _ in ended.sent] == [
        ("GET", "/v1/adapters"),
        ("PUT", "/v1/adapters/user/ada/versions/v2"),
        ("POST", "/v1/adapters/user/ada/activate"),
    ]


def test_a_label_that_is_taken_is_refused_before_the_work(weft: Weft, notes: Path) -> None:
    taken = httpx.Response(200, json={**EMPTY, "adapters": [ENTRY], "states": [STATE]})
    options = ("--texts", str(notes), "--version", "v2")
    ended = weft("adapters", "train", "user/ada", *options, answers=[taken])
    assert (ended.status, len(ended.sent)) == (1, 1)
    assert "user/ada has a version v2" in ended.err


def test_mistakes_are_one_sentence(weft: Weft, notes: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_text("\n \n")
    out = ("--out", str(tmp_path / "out"))
    for options, said in (
        (("--texts", str(notes)), "give --version"),
        (("--texts", str(notes), "--activate", *out), "give --version"),
        (("--texts", "/nowhere.txt", *out), "/nowhere.txt cannot be read: No such file"),
        (("--texts", str(tmp_path / "latin.txt"), *out), "is not UTF-8 text: byte 3"),
        (("--texts", str(tmp_path / "empty.txt"), *out), "there is no text to learn from"),
        (("--texts", str(notes), "--base", "/nowhere", *out), "/nowhere"),
        (("--texts", str(notes), "--out", str(tmp_path)), "something else than an adapter"),
    ):
        ended = weft("adapters", "train", "user/ada", *options, answers=[httpx.Response(500)])
        assert (ended.status, ended.out, ended.sent) == (1, "", [])
        assert ended.err.lstrip().startswith("error: ")
        assert said in " ".join(ended.err.split())
        assert not (tmp_path / "out").exists()


def test_a_model_that_runs_elsewhere_is_not_trained(
    weft: Weft, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEFT_LANGUAGE_MODEL__BACKEND", "openai")
    monkeypatch.setenv("WEFT_LANGUAGE_MODEL__URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("WEFT_LANGUAGE_MODEL__MODEL", "far")
    options = ("--texts", str(notes), "--out", str(tmp_path / "out"))
    ended = weft("adapters", "train", "user/ada", *options, answers=[httpx.Response(500)])
    assert ended.status == 1
    assert "runs elsewhere" in ended.err
