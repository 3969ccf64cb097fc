"""The store's lock between processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from graph.errors import StoreLocked
from graph.lock import StoreLock, read_holder

HOLD = """
import sys
from pathlib import Path
from graph.lock import StoreLock
lock = StoreLock(Path(sys.argv[1]), "the other process", "http://127.0.0.1:1")
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""
ROOT = Path(__file__).parents[2]


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.integration
def test_another_process_holds_it_until_it_is_killed(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as process:
        with pytest.raises(StoreLocked, match=rf"held by the other process \(pid {process.pid}\)"):
            StoreLock(tmp_path, "me").acquire()
        holder = read_holder(tmp_path)
        assert holder == {"pid": process.pid, "holder": "the other process", "url": "http://127.0.0.1:1"}
        process.send_signal(signal.SIGKILL)
        process.wait()
        with StoreLock(tmp_path, "me"):
            found = read_holder(tmp_path)
            assert found is not None
            assert found["holder"] == "me"


@pytest.mark.integration
def test_acquire_waits_for_the_holder_to_go(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as process:
        assert process.stdin is not None
        process.stdin.close()  # it ends
        lock = StoreLock(tmp_path, "me")
        lock.acquire(timeout_s=20)
        lock.release()


def test_the_same_process_cannot_take_it_twice(tmp_path: Path) -> None:
    with StoreLock(tmp_path / "new", "first", "http://x"):
        with pytest.raises(StoreLocked, match="held by first"):
            StoreLock(tmp_path / "new", "second").acquire()
        found = read_holder(tmp_path / "new")
        assert found is not None
        assert found["url"] == "http://x"
    assert read_holder(tmp_path / "new") is None
    with StoreLock(tmp_path / "new", "third"):
        pass


def test_nobody_holds_what_is_not_there(tmp_path: Path) -> None:
    assert read_holder(tmp_path) is None
    lock = StoreLock(tmp_path, "me")
    lock.release()  # not held: nothing happens
    (tmp_path / "store.lock").write_text("left by a process that is gone")
    assert read_holder(tmp_path) is None


def test_a_description_that_cannot_be_read_is_no_error(tmp_path: Path) -> None:
    with StoreLock(tmp_path, "me"):
        for text in ("", "{", "[1]"):
            (tmp_path / "store.lock").write_text(text)
            assert read_holder(tmp_path) == {}
            with pytest.raises(StoreLocked, match="held by another process"):
                StoreLock(tmp_path, "you").acquire()
