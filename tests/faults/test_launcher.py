"""`weft run` where something is in its way, or it is ended before its time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deployments.settings import Settings
from deployments.store_access import open_writer, read_view
from graph.lock import StoreLock, read_holder
from graph.schema import PutUser, WriteRequest
from tests.processes import wait_until
from tests.service import RUN, Service, free_port, launch, running_service, wait_until_ready, weft
from tests.small_store import make_small_store

pytestmark = pytest.mark.faults

BYSTANDERS = ("haproxy -", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return make_small_store(folder).data_dir


@contextmanager
def swept(service: Service) -> Iterator[Service]:
    """Whatever becomes of the test, nothing of this service outlives it."""
    try:
        yield service
    except BaseException as error:
        error.add_note(service.logs())
        raise
    finally:
        service.sweep()


def the_error(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence that a user gets."""
    assert "Traceback" not in done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    return sentence


# --------------------------------------------------------------------------------------- refused at the door


def test_a_port_in_use_is_one_sentence(data_dir: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = weft(data_dir, port, "run", status=1)
    sentence = the_error(done)
    assert f"port {port} is in use by" in sentence
    assert f"(pid {os.getpid()})" in sentence
    assert "WEFT_HTTP__PORT" in sentence
    assert len(done.stderr.splitlines()) == 1


def test_a_stale_proxy_is_named_with_its_pid(data_dir: Path, tmp_path: Path) -> None:
    program = tmp_path / "haproxy"  # a script's process carries the script's name
    program.write_text(
        f"#!{sys.executable}\nimport socket\nheld = socket.create_server(('127.0.0.1', 0))\n"
        "print(held.getsockname()[1], flush=True)\nheld.accept()\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    with subprocess.Popen([program], stdout=subprocess.PIPE, text=True) as proxy:
        try:
            assert proxy.stdout is not None
            port = int(proxy.stdout.readline())
            sentence = the_error(weft(data_dir, port, "run", status=1))
        finally:
            proxy.kill()
    assert f"port {port} is held by a proxy left over from an earlier run" in sentence
    assert f"`kill {proxy.pid}`" in sentence


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.com"])
def test_only_loopback_is_bound(data_dir: Path, host: str) -> None:
    sentence = the_error(weft(data_dir, free_port(), "run", status=1, extra={"WEFT_HTTP__HOST": host}))
    assert "WEFT_HTTP__HOST" in sentence
    assert "loopback" in sentence


def test_insecure_is_for_everybody_and_says_so(data_dir: Path, tmp_path: Path) -> None:
    extra = {"WEFT_HTTP__HOST": "0.0.0.0"}
    with running_service(data_dir, tmp_path, command=(*RUN, "--insecure"), extra=extra) as service:
        assert "insecure:" in service.log
        found = service.get("/v1/items?limit=1", headers={"host": "weft.example.com"})
        assert found.status_code == 200
    with running_service(data_dir, tmp_path, extra={"WEFT_INSECURE": "true"}) as service:
        # On loopback it keeps out what a browser of this machine is made to ask.
        found = service.get("/v1/items?limit=1", headers={"host": "weft.example.com"})
        assert found.json()["error"]["code"] == "foreign_host"


@pytest.mark.parametrize("command", ["run", "import", "demo"])
def test_a_held_store_is_one_sentence(data_dir: Path, tmp_path: Path, command: str) -> None:
    ratings = tmp_path / "ratings.csv"
    ratings.write_text("user_id,item_id,rating\nada,space-01,4\n", encoding="utf-8")
    arguments = ["import", "csv", "--ratings", str(ratings)] if command == "import" else [command]
    with StoreLock(data_dir, "the test"):
        done = weft(data_dir, free_port(), *arguments, status=1)
    sentence = the_error(done)
    assert f"is held by the test (pid {os.getpid()})" in sentence
    assert weft(data_dir, free_port(), "import", "csv", "--ratings", str(ratings))


# ------------------------------------------------------------------------------------ ended before their time


@pytest.mark.parametrize("moment", ["raylet --", "ServeReplica"])
def test_a_start_that_is_terminated_leaves_nothing(data_dir: Path, tmp_path: Path, moment: str) -> None:
    """While Ray starts, and while the deployments do: Ray handles SIGTERM differently in the two."""
    with swept(launch(data_dir, tmp_path)) as service:
        wait_until(lambda: any(moment in p.command for p in service.family()), 60, f"start of {moment}")
        os.kill(service.process.pid, signal.SIGTERM)
        assert service.wait_for_exit() == 130
        service.assert_gone()
        assert "Interrupted" in service.log
        assert "Traceback" not in service.log
    assert_store_works(data_dir)


def test_after_a_killed_launcher_the_next_start_works(data_dir: Path, tmp_path: Path) -> None:
    """Ray's processes follow their parent, but for two idle agents. The proxy may stay: then it is named."""
    with swept(launch(data_dir, tmp_path)) as service:
        wait_until_ready(service)
        with service.client() as client:
            client.rate("ada", "space-01", 4.5)
        os.kill(service.process.pid, signal.SIGKILL)
        service.process.wait(10)

        def only_bystanders() -> bool:
            # A process that is ending has lost its command line before it closes its files.
            held = read_holder(data_dir) is not None
            return not held and all(any(n in p.command for n in BYSTANDERS) for p in service.leftovers())

        wait_until(only_bystanders, 30, "end of all that holds or reaches the store")
        assert_store_works(data_dir)
        for proxy in (p for p in service.leftovers() if "haproxy -" in p.command):
            sentence = the_error(weft(data_dir, service.port, "run", status=1))
            assert f"`kill {proxy.pid}`" in sentence
            os.kill(proxy.pid, signal.SIGTERM)  # as told
            wait_until(lambda proxy=proxy: not proxy.alive, 10, "end of the proxy")
        port = service.port
    with swept(launch(data_dir, tmp_path, port=port)) as again:
        wait_until_ready(again)
        with again.client() as client:
            assert [(r.item_id, r.value) for r in client.list_ratings("ada").records] == [("space-01", 4.5)]
            client.rate("ada", "space-02", 3.0)
        again.interrupt()
        assert again.wait_for_exit() == 0
        again.assert_gone()


def assert_store_works(data_dir: Path) -> None:
    settings = Settings(data_dir=data_dir)
    with open_writer(settings, "the test") as write:
        result = write(WriteRequest((PutUser(f"visitor-{time.time_ns()}"),)))
    assert read_view(settings).version == result.version
