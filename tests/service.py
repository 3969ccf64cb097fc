"""The whole service as a user starts it: `weft run` in a process of its own, stopped with Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deployments.client import WeftClient
from tests.processes import Process, family, wait_until

ROOT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 45.0

RUN = (sys.executable, "-m", "deployments.cli", "run")


class Service:
    """A started service and what a test wants to know of it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        data_dir: Path,
        port: int,
        log: Path,
        mark: str,
        store_url: str | None = None,
        key: str | None = None,
    ) -> None:
        self.process = process
        self.store_url = store_url  # None: a file in the data directory
        self.key = key  # with which the test asks, where the service wants one
        self.data_dir = data_dir
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        self._mark = mark
        self._seen: set[Process] = set()

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def logs(self) -> str:
        """The launcher's output and the end of what the replicas and the writer logged."""
        parts = [f"--- weft run\n{self.log}"]
        for folder in self.log_folders():
            found = [p for p in folder.rglob("*") if p.match("serve/*.log") or p.match("worker-*.err")]
            # A writer that was killed many times has as many logs: the last ones tell.
            for path in sorted(found, key=lambda p: p.stat().st_mtime)[-12:]:
                text = path.read_text(encoding="utf-8", errors="replace")
                if len(text.splitlines()) > 2:  # more than Ray's two lines of who it is
                    parts.append(f"--- {path.name}\n{text[-3000:]}")
        return "\n".join(parts)

    def log_folders(self) -> list[Path]:
        """Where Ray keeps the logs of this service's processes."""
        folders = {m[1] for p in self._seen if (m := re.search(r"--log_dir=(/\S+)", p.command))}
        return [Path(folder) for folder in sorted(folders)]

    def client(self, **options: Any) -> WeftClient:
        return WeftClient(self.url, **{"api_key": self.key} | options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        headers = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        options["headers"] = headers | options.get("headers", {})
        return httpx.get(self.url + path, timeout=20.0, trust_env=False, **options)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/v1/status").json()
        return found

    def writer_pid(self) -> int:
        """Pid of the graph state process, as soon as one answers."""
        return int(wait_until(lambda: self.status()["graph_state"].get("pid"), 20, "status of the writer"))

    def replica(self, deployment: str) -> Process:
        """The one replica of a deployment; Ray names its processes after what they run."""
        (found,) = (p for p in self.family() if f"ServeReplica:weft:{deployment}" in p.command)
        return found

    def weft(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        extra = {} if self.key is None else {"WEFT_API_KEY": self.key}
        return weft(self.data_dir, self.port, *arguments, status=status, extra=extra)

    def weft_json(self, *arguments: str) -> Any:
        return json.loads(self.weft(*arguments).stdout)

    def family(self) -> set[Process]:
        """Every process this service consists of now."""
        found = family(self.process.pid, self._mark)
        self._seen |= found
        return found

    def leftovers(self) -> set[Process]:
        """Processes of this service that still run, whether or not they still descend from it."""
        self.family()
        return {p for p in self._seen if p.alive}

    def interrupt(self) -> None:
        """Ctrl-C: a terminal sends it to the whole process group."""
        self.family()
        os.killpg(self.process.pid, signal.SIGINT)

    def wait_for_exit(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running {timeout_s:g} s later; its log:\n{self.log}") from None

    def assert_gone(self, timeout_s: float = 10.0) -> None:
        wait_until(lambda: not self.leftovers(), timeout_s, f"end of {sorted(map(str, self.leftovers()))}")

    def sweep(self) -> None:
        """SIGKILL to every process, in no order: as in a power cut, or after a failed test."""

        def none_left() -> bool:
            # Again and again: one that is killed late starts others after they were listed.
            left = self.leftovers()
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            return not left

        wait_until(none_left, 20, f"end of {sorted(map(str, self.leftovers()))}")
        self.process.wait(10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(data_dir: Path, port: int, mark: str = "") -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WEFT_", "RAY_"))}
    return kept | {
        "WEFT_DATA_DIR": str(data_dir),
        "WEFT_HTTP__PORT": str(port),
        # Quick to start, and anybody can say what its vectors are.
        "WEFT_TEXT_EMBEDDER__BACKEND": "hashing",
        "WEFT_TEXT_EMBEDDER__MODEL": "hashing",
        # Seconds of every start; tests that are about it switch it on.
        "WEFT_LANGUAGE_MODEL__ENABLED": "false",
        # A file of its own: the Redis of this machine belongs to somebody else.
        "WEFT_CACHE__URL": f"sqlite:///{data_dir / 'embeddings.sqlite'}",
        "UNDER_TEST": mark,
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",
    }


def launch(
    data_dir: Path,
    folder: Path,
    command: Sequence[str] = RUN,
    *,
    port: int | None = None,
    cwd: Path = ROOT,
    extra: dict[str, str] | None = None,
) -> Service:
    """Start a service without waiting for it; its output goes to a file in `folder`."""
    mark = f"weft-test-{uuid.uuid4().hex}"
    port = port or free_port()
    log = folder / f"{mark}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(data_dir, port, mark) | (extra or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a process group of its own, as a shell gives it
        )
    given = extra or {}
    return Service(
        process, data_dir, port, log, mark, given.get("WEFT_STORE__URL"), given.get("WEFT_API_KEY")
    )


def launch_serve_run(config: dict[str, Any], data_dir: Path, folder: Path, **extra: str) -> Service:
    """`serve run` of a configuration, on a Ray of its own; at the port that the configuration names."""
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = (str(Path(sys.executable).with_name("serve")), "run", str(path))
    # No cluster of somebody else's: `serve run` would join one that it finds.
    local = {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
    port = config["http_options"]["port"]
    return launch(data_dir, folder, command, port=port, extra=local | extra)


def answers(service: Service) -> bool:
    """Whether a service that was launched is ready; fails when it has ended."""
    assert service.process.poll() is None, "the service ended"
    try:
        return service.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def wait_until_ready(service: Service, timeout_s: float = START_TIMEOUT_S) -> None:
    def ready() -> bool:
        code = service.process.poll()
        assert code is None, f"the service ended with status {code} while starting; its log:\n{service.log}"
        return "Ctrl-C stops it." in service.log

    wait_until(ready, timeout_s, "start of the service")
    service.family()


@contextmanager
def running_service(data_dir: Path, folder: Path, **options: Any) -> Iterator[Service]:
    """A service that answers; on the way out it is stopped with Ctrl-C and must leave nothing behind."""
    service = launch(data_dir, folder, **options)
    try:
        wait_until_ready(service)
        # What the text indexer still writes would take versions that tests count.
        wait_until(lambda: service.status()["text_indexer"].get("waiting") == 0, 30, "text vectors")
        yield service
        service.interrupt()
        code = service.wait_for_exit()
        assert code == 0, f"the service ended with status {code}"
        service.assert_gone()
    except BaseException as error:
        error.add_note(service.logs())
        raise
    finally:
        service.sweep()


def weft(
    data_dir: Path, port: int, *arguments: str, status: int = 0, extra: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A `weft` command against that data directory, run to its end, which must have that exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "deployments.cli", *arguments],
        cwd=data_dir,
        env=environment(data_dir, port) | {"PYTHONPATH": str(ROOT)} | (extra or {}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """For a conftest to import: a failed test shows the logs of the services it used."""
    report = yield
    for value in getattr(item, "funcargs", {}).values():
        if isinstance(value, Service) and report.failed:
            report.sections.append(("service", value.logs()))
    return report
