"""PostgreSQL and Redis on a host of a test network, with passwords, for all hosts of the network."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from tests.cluster.hosts import Host
from tests.processes import wait_until

_POSTGRES = 5432
_REDIS = 6379
_ASK_POSTGRES = "import os, psycopg; psycopg.connect(os.environ['URL'], connect_timeout=3).close()"
_ASK_REDIS = "import os, redis; redis.from_url(os.environ['URL']).ping()"


def why_not() -> str | None:
    """What is not installed that the servers need; None if nothing is missing."""
    there = {"redis-server": shutil.which("redis-server"), "PostgreSQL's initdb": _binaries()}
    absent = [name for name, path in there.items() if path is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def start_postgres(host: Host) -> str:
    """Start a server with an empty database; its URL as the other hosts reach it."""
    folder = host.folder / "postgres"
    folder.mkdir()
    password = secrets.token_urlsafe(24)
    (folder / "password").write_text(password, encoding="ascii")
    owner = pwd.getpwnam("postgres")  # it refuses to run as root
    for path in (folder, folder / "password"):
        os.chown(path, owner.pw_uid, owner.pw_gid)
    as_user = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
    binaries, data = _binaries(), folder / "data"
    assert binaries is not None
    env = {"PATH": os.environ["PATH"]}
    host.run(
        [
            *as_user,
            str(binaries / "initdb"),
            f"--pgdata={data}",
            "--username=weft",
            "--auth=scram-sha-256",
            f"--pwfile={folder / 'password'}",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        ],
        env,
    )
    with (data / "pg_hba.conf").open("a", encoding="ascii") as rules:
        rules.write(f"host all all {host.address}/24 scram-sha-256\n")
    settings = {
        "port": str(_POSTGRES),
        "listen_addresses": host.address,
        "unix_socket_directories": str(folder),
        "shared_buffers": "16MB",
    }
    flags = [flag for name, value in settings.items() for flag in ("-c", f"{name}={value}")]
    host.start([*as_user, str(binaries / "postgres"), "-D", str(data), *flags], env, folder / "log")
    url = f"postgresql://weft:{password}@{host.address}:{_POSTGRES}/postgres"
    wait_until(lambda: _answers(host, _ASK_POSTGRES, url), 30, "PostgreSQL answers")
    return url


def start_redis(host: Host) -> str:
    """Start an empty Redis; its URL as the other hosts reach it."""
    folder = host.folder / "redis"
    folder.mkdir()
    password = secrets.token_urlsafe(24)
    configuration = folder / "redis.conf"
    lines = (f"bind {host.address}", f"port {_REDIS}", f"requirepass {password}", 'save ""', f"dir {folder}")
    configuration.write_text("\n".join(lines), encoding="ascii")
    env = {"PATH": os.environ["PATH"]}
    host.start(["redis-server", str(configuration)], env, folder / "log")
    url = f"redis://:{password}@{host.address}:{_REDIS}/0"
    wait_until(lambda: _answers(host, _ASK_REDIS, url), 30, "Redis answers")
    return url


def _answers(host: Host, question: str, url: str) -> bool:
    # In the environment: what stands in a command line is for everybody to read.
    try:
        host.run([sys.executable, "-c", question], {"PATH": os.environ["PATH"], "URL": url}, timeout_s=20)
    except subprocess.CalledProcessError:
        return False
    return True


def _binaries() -> Path | None:
    """Where PostgreSQL's programs are."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    path = str(found[-1]) if found else shutil.which("initdb")
    return None if path is None else Path(path).parent
