"""The audit log: every generation one line, rotated, and never in anybody's way."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import deployments.audit_log as module
from deployments.audit_log import AuditLog
from deployments.setting_groups import AuditSettings


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Any]:
    logs: list[AuditLog] = []

    def open_log(**limits: Any) -> AuditLog:
        logs.append(AuditLog(AuditSettings.model_validate(limits), tmp_path / "audit"))
        return logs[-1]

    yield open_log
    for log in logs:
        log.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_record_is_one_line(opened: Any, tmp_path: Path) -> None:
    log = opened()
    for n in range(500):
        log.write({"n": n, "prompt": "two\nlines, é and 界, a lone \ud800 surrogate"})
    assert log.flush()
    path = tmp_path / "audit" / "generations-0.jsonl"
    assert [entry["n"] for entry in lines(path)] == list(range(500))
    assert lines(path)[0]["prompt"] == "two\nlines, é and 界, a lone \ud800 surrogate"
    assert "界" in path.read_text(encoding="utf-8")
    assert log.status() == {"file": str(path), "written": 500, "lost": 0, "failure": None}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_full_files_are_renamed_and_the_oldest_goes(opened: Any, tmp_path: Path) -> None:
    log = opened(max_bytes=1 << 16, keep_files=2)
    text = "x" * 1000
    for n in range(400):
        log.write({"n": n, "text": text})
    assert log.flush()
    folder = tmp_path / "audit"
    names = sorted(p.name for p in folder.glob("*.jsonl*"))
    assert names == ["generations-0.jsonl", "generations-0.jsonl.1", "generations-0.jsonl.2"]
    kept = [e["n"] for name in reversed(names) for e in lines(folder / name)]
    assert kept == list(range(400 - len(kept), 400))
    assert len(kept) > 2 * 60
    assert all((folder / name).stat().st_size <= 1 << 16 for name in names)


def test_two_replicas_write_two_files_and_the_next_takes_over_a_free_one(opened: Any, tmp_path: Path) -> None:
    first, second = opened(), opened()
    for name, log in (("first", first), ("second", second)):
        log.write({"from": name})
        assert log.flush()
    assert lines(Path(first.status()["file"])) == [{"from": "first"}]
    assert lines(Path(second.status()["file"])) == [{"from": "second"}]
    first.close()
    third = opened()
    third.write({"from": "third"})
    assert third.flush()
    assert [e["from"] for e in lines(Path(first.status()["file"]))] == ["first", "third"]
    assert len(list((tmp_path / "audit").glob("*.jsonl"))) == 2


def test_closing_writes_what_waits(opened: Any, tmp_path: Path) -> None:
    log = opened()
    for n in range(2_000):
        log.write({"n": n})
    log.close()
    assert len(lines(tmp_path / "audit" / "generations-0.jsonl")) == 2_000


def test_a_line_that_a_crash_cut_off_spoils_no_other(opened: Any, tmp_path: Path) -> None:
    path = tmp_path / "audit" / "generations-0.jsonl"
    path.parent.mkdir()
    path.write_text('{"n": 0}\n{"n": 1, "tex', encoding="utf-8")
    log = opened()
    log.write({"n": 2})
    assert log.flush()
    first, damaged, last = path.read_text(encoding="utf-8").splitlines()
    assert (json.loads(first), damaged, json.loads(last)) == ({"n": 0}, '{"n": 1, "tex', {"n": 2})


def test_a_full_disk_costs_lines_and_nothing_else(
    opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = threading.Event()

    class Disk(module.FileIO):
        def write(self, data: Any) -> int:
            if full.is_set():
                return super().write(bytes(data)[:5])
            return super().write(data)

    monkeypatch.setattr(module, "FileIO", Disk)
    log = opened()
    log.write({"n": 0})
    assert log.flush()
    full.set()
    for n in range(1, 4):
        log.write({"n": n})
    assert log.flush()
    assert (log.status()["written"], log.status()["lost"]) == (1, 3)
    assert log.status()["failure"] == (
        f"{os.strerror(errno.ENOSPC)}: {tmp_path / 'audit' / 'generations-0.jsonl'}"
    )
    full.clear()
    log.write({"n": 4})
    assert log.flush()
    assert (log.status()["written"], log.status()["lost"], log.status()["failure"]) == (2, 3, None)
    text = (tmp_path / "audit" / "generations-0.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(text[0]) == {"n": 0}
    assert json.loads(text[-1]) == {"n": 4}
    assert sum("lines are lost" in record.message for record in caplog.records) == 1


def test_a_folder_that_cannot_be_made_costs_lines_and_nothing_else(opened: Any, tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("a file in its place", encoding="utf-8")
    log = opened()
    log.write({"n": 0})
    assert log.flush()
    assert (log.status()["file"], log.status()["lost"]) == (None, 1)
    (tmp_path / "audit").unlink()
    log.write({"n": 1})
    assert log.flush()
    assert lines(tmp_path / "audit" / "generations-0.jsonl") == [{"n": 1}]


def test_a_disk_that_hangs_blocks_nobody(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = threading.Event()
    monkeypatch.setattr(module, "_MAX_WAITING", 10)
    log = opened()
    monkeypatch.setattr(log, "_append", lambda line: hangs.wait(20))
    started = time.monotonic()
    for n in range(100):
        log.write({"n": n})
    assert time.monotonic() - started < 1.0
    assert log.status()["lost"] >= 100 - 10 - 1
    assert log.status()["failure"] == "the disk does not keep up"
    hangs.set()
    assert log.flush()
