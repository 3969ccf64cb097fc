"""Where the embedding cache is, as the settings and REDIS_HOST, REDIS_PORT and REDIS_PASSWORD name it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from graph.errors import InvalidInput
from models.embedding_cache.opening import SCHEMES
from models.embedding_cache.redis_address import SCHEMES as REDIS_SCHEMES
from models.embedding_cache.redis_address import parse_redis_url

_FILE_SCHEMES = ("sqlite", "jsonl", "parquet", "datasets")


def check_cache_url(url: str) -> None:
    """Raises InvalidInput for a URL that names no store; the message repeats nothing that may be secret."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in SCHEMES:
        named = f"begins with {scheme!r}" if separator else "has no scheme"
        allowed = ", ".join(f"{known}://" for known in SCHEMES)
        raise InvalidInput(f"the URL of the embedding cache {named}; allowed are {allowed}")
    if scheme in REDIS_SCHEMES:
        parse_redis_url(url)
    elif scheme in _FILE_SCHEMES and file_of(url) is None:
        raise InvalidInput(f"{scheme}:// names no path; write it as in {scheme}:///var/lib/weft/cache")


def file_of(url: str) -> Path | None:
    """File or folder that the URL names; None for a URL of another kind or without a path."""
    split = urlsplit(url)
    path = unquote(split.netloc + split.path)
    return Path(path) if split.scheme in _FILE_SCHEMES and path.strip("/") else None


def redis_url(variables: Mapping[str, str]) -> str | None:
    """The Redis that REDIS_HOST and its like name, as a URL with the password; None where none is set.

    Raises InvalidInput for a host or a port that is none.
    """
    host, port, password = (variables.get(f"REDIS_{name}") for name in ("HOST", "PORT", "PASSWORD"))
    if not (host or port or password):
        return None
    host, port = (host or "localhost").strip("[]"), port or "6379"
    if any(sign in host for sign in "/@?#"):
        # Not repeated: a URL in this place may hold a password.
        raise InvalidInput("REDIS_HOST is no host name: a whole URL belongs into WEFT_CACHE__URL")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        # Kubernetes sets it to tcp://HOST:PORT in every pod beside a service that is called redis.
        raise InvalidInput(
            f"REDIS_PORT is {port!r}; it must be a number from 1 to 65535, unless WEFT_CACHE__URL is set, "
            "which goes first"
        )
    secret = f":{quote(password, safe='')}@" if password else ""
    return f"redis://{secret}{f'[{host}]' if ':' in host else host}:{port}"
