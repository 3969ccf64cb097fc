"""Where a Redis is and how to be let in, read from a URL. Its `location` and `repr` hold no secret."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from graph.errors import InvalidInput

SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster")
DEFAULT_PORT = 6379
_TLS_FILES = {"ssl_ca_certs": "ca_file", "ssl_certfile": "cert_file", "ssl_keyfile": "key_file"}
_QUERY = ("db", "ssl_check_hostname", *_TLS_FILES)


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """One server, or one node of a cluster from which the others are found."""

    host: str = "localhost"
    port: int = DEFAULT_PORT
    path: str | None = None  # of a Unix socket, in place of host and port
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    verify_hostname: bool = True
    cluster: bool = False

    @property
    def location(self) -> str:
        """The address as a URL without user, password and files."""
        if self.path is not None:
            return f"unix://{self.path}" + (f"?db={self.db}" if self.db else "")
        scheme = ("rediss" if self.tls else "redis") + ("+cluster" if self.cluster else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}" + (f"/{self.db}" if self.db else "")

    def connection_arguments(self) -> dict[str, Any]:
        """What redis-py's connection classes call these things."""
        found: dict[str, Any] = {"username": self.username, "password": self.password}
        if self.path is not None:
            return found | {"path": self.path, "db": self.db}
        found |= {"host": self.host, "port": self.port}
        if not self.cluster:
            found["db"] = self.db
        if self.tls:
            found |= {
                "ssl_ca_certs": self.ca_file,
                "ssl_certfile": self.cert_file,
                "ssl_keyfile": self.key_file,
                "ssl_check_hostname": self.verify_hostname,
            }
        return found


def parse_redis_url(
    url: str,
    *,
    username: str | None = None,
    password: str | None = None,
    ca_file: str | None = None,
    cluster: bool = False,
) -> RedisAddress:
    """Read `redis://[user:password@]host[:port][/db]`, `rediss://...`, `unix:///path` or `redis+cluster://...`.

    Query parameters, named as redis-py does: db, ssl_ca_certs, ssl_certfile, ssl_keyfile (paths of PEM files)
    and ssl_check_hostname. What is passed apart from the URL goes before what it says.

    Raises InvalidInput; the message repeats nothing that may be secret.
    """
    split = urlsplit(url)
    if split.scheme not in SCHEMES:
        allowed = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise InvalidInput(f"a Redis URL starts with one of {allowed}; this one with {split.scheme!r}")
    try:
        port = split.port
    except ValueError:
        raise InvalidInput("the port in the Redis URL is not a number from 0 to 65535") from None
    query = {name: values[-1] for name, values in parse_qs(split.query).items()}
    unknown = sorted(set(query) - set(_QUERY))
    if unknown:
        raise InvalidInput(f"unknown parameters {unknown} in the Redis URL; allowed are {', '.join(_QUERY)}")
    unix = split.scheme == "unix"
    if unix and not split.path:
        raise InvalidInput("unix:// needs the path of a socket, as in unix:///run/redis/redis.sock")
    cluster = cluster or split.scheme.endswith("+cluster")
    db_text = query.get("db", "0" if unix else split.path.strip("/") or "0")
    if not db_text.isascii() or not db_text.isdigit():
        raise InvalidInput("the database in the Redis URL is not a whole number, as in redis://host:6379/0")
    if cluster and (unix or db_text != "0"):
        raise InvalidInput("a Redis Cluster is reached over TCP and has database 0 only")
    files = {ours: query[theirs] for theirs, ours in _TLS_FILES.items() if theirs in query}
    if ca_file is not None:
        files["ca_file"] = ca_file
    return RedisAddress(
        host=unquote(split.hostname or "localhost"),
        port=port or DEFAULT_PORT,
        path=unquote(split.path) if unix else None,
        db=int(db_text),
        username=username if username is not None else _plain(split.username),
        password=password if password is not None else _plain(split.password),
        tls=split.scheme.startswith("rediss"),
        verify_hostname=query.get("ssl_check_hostname", "true").lower() not in ("0", "f", "false", "n", "no"),
        cluster=cluster,
        **files,
    )


def _plain(quoted: str | None) -> str | None:
    return unquote(quoted) if quoted else None
