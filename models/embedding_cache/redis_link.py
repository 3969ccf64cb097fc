"""Batches of commands to one Redis server or to the nodes of a cluster, over redis-py's pooled connections.

redis-py's own clients spend more on a command in Python than the server does on a key: here a batch is
packed at once, and the next flight is on its way while the answers to the last are read. Nothing is
repeated on failure: that the store is away should be known after one timeout, not after several.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, ResponseError
from redis.retry import Retry

from models.embedding_cache.redis_address import RedisAddress
from models.embedding_cache.store import KEY_BYTES

Parts: TypeAlias = tuple[bytes, ...]
Reply: TypeAlias = Any  # bytes, int, None, list of them, or a ResponseError as a value

FLIGHT_BYTES = 128 * 1024
FLIES_ALONE_PARTS = 64  # so large a command keeps the server busy while the next is made
SOCKET_READ_BYTES = 256 * 1024
MAX_CONNECTIONS = 512


class RedisLink(Protocol):
    """How commands get to where their keys are.

    Every method raises redis.RedisError, RedisClusterException (which is no RedisError) or OSError.
    """

    sharded: bool
    """Whether one command must keep to keys of one hash tag."""

    def execute(self, commands: Iterable[Parts]) -> list[Reply]:
        """One reply per command, in order; an error that the server answers is a reply too."""
        ...

    def everywhere(self, command: Parts) -> list[Reply]:
        """The replies of all servers that hold keys to one command."""
        ...

    def scan(self, pattern: bytes, count: int) -> Iterator[list[bytes]]:
        """Names of keys by pages; a name may come twice."""
        ...

    def close(self) -> None: ...


class ServerLink:
    """One server."""

    sharded = False

    def __init__(self, address: RedisAddress, *, connect_timeout_s: float, timeout_s: float) -> None:
        kind: type[Any] = Connection
        if address.path is not None:
            kind = UnixDomainSocketConnection
        elif address.tls:
            kind = SSLConnection
        self._timeout_s = timeout_s
        self._pool = ConnectionPool(
            connection_class=kind,
            max_connections=MAX_CONNECTIONS,
            retry=Retry(NoBackoff(), 0),
            **_connection_settings(address, connect_timeout_s, timeout_s),
        )

    def execute(self, commands: Iterable[Parts]) -> list[Reply]:
        return _exchange(self._pool, commands, self._timeout_s)

    def everywhere(self, command: Parts) -> list[Reply]:
        return self.execute([command])

    def scan(self, pattern: bytes, count: int) -> Iterator[list[bytes]]:
        return _scan(self._pool, pattern, count, self._timeout_s)

    def close(self) -> None:
        self._pool.disconnect()


class ClusterLink:
    """The primaries of a Redis Cluster; redis-py follows its topology."""

    sharded = True

    def __init__(self, address: RedisAddress, *, connect_timeout_s: float, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        settings = _connection_settings(address, connect_timeout_s, timeout_s)
        if address.tls:
            settings["ssl"] = True
        self._connect: Callable[[], Any] = lambda: RedisCluster(
            retry=Retry(NoBackoff(), 0), max_connections=MAX_CONNECTIONS, **settings
        )
        self._lock = threading.Lock()
        self._connected: Any = None
        self._stale = False

    def execute(self, commands: Iterable[Parts]) -> list[Reply]:
        client = self._client()
        commands = list(commands)
        by_node: dict[str, tuple[ConnectionPool, list[int]]] = {}
        for place, command in enumerate(commands):
            node = client.nodes_manager.get_node_from_slot(_slot(command))
            pool = client.get_redis_connection(node).connection_pool
            by_node.setdefault(node.name, (pool, []))[1].append(place)
        replies: list[Reply] = [None] * len(commands)
        for pool, places in by_node.values():
            for place, reply in zip(
                places, self._exchange(pool, [commands[place] for place in places]), strict=True
            ):
                if isinstance(reply, MovedError | AskError):
                    # A slot on the move: redis-py's client knows the way and remembers it.
                    word, *arguments = commands[place]
                    reply = client.execute_command(word.decode("ascii"), *arguments)
                replies[place] = reply
        return replies

    def everywhere(self, command: Parts) -> list[Reply]:
        return [self._exchange(pool, [command])[0] for pool in self._pools()]

    def scan(self, pattern: bytes, count: int) -> Iterator[list[bytes]]:
        for pool in self._pools():
            yield from _scan(pool, pattern, count, self._timeout_s)

    def close(self) -> None:
        with self._lock:
            connected, self._connected = self._connected, None
        if connected is not None:
            connected.close()

    def _client(self) -> Any:
        # Building the client asks a node for the topology: at first use, so that a store of a cluster that is
        # away can be made and tried again later, as one of a single server can.
        if not self._lock.acquire(timeout=self._timeout_s):
            # Another thread is at it and gets no answer: not one timeout after the other.
            raise redis.TimeoutError("the nodes of the cluster do not answer")
        try:
            if self._connected is None:
                self._connected = self._connect()
            elif self._stale:
                self._connected.nodes_manager.initialize()
            self._stale = False
            return self._connected
        finally:
            self._lock.release()

    def _pools(self) -> list[ConnectionPool]:
        client = self._client()
        return [client.get_redis_connection(node).connection_pool for node in client.get_primaries()]

    def _exchange(self, pool: ConnectionPool, commands: Sequence[Parts]) -> list[Reply]:
        try:
            return _exchange(pool, commands, self._timeout_s)
        except (redis.ConnectionError, redis.TimeoutError, OSError):
            # The node may have been replaced by its replica: ask for the topology again next time.
            self._stale = True
            raise


@lru_cache(maxsize=4096)
def _slot_of_prefix(prefix: bytes) -> int:
    return int(key_slot(prefix))


def _slot(command: Parts) -> int:
    key = command[2] if command[0] == b"MEMORY" else command[1]
    # The hash tag is in what precedes the digest: all keys of a bucket share one slot and one look-up.
    return _slot_of_prefix(key[:-KEY_BYTES])


def _connection_settings(address: RedisAddress, connect_timeout_s: float, timeout_s: float) -> dict[str, Any]:
    settings = address.connection_arguments() | {
        "socket_connect_timeout": connect_timeout_s,
        "socket_timeout": timeout_s,
        "socket_read_size": SOCKET_READ_BYTES,
        # RESP2 without library information: no round trip is spent on greetings when a connection is made.
        "protocol": 2,
    }
    # Over TLS a greeting has to be: its answer takes the session tickets along that follow the handshake. The
    # pool would find them unread, and take them for an answer somebody left behind.
    return settings if address.tls else settings | {"driver_info": None}


def _exchange(pool: ConnectionPool, commands: Iterable[Parts], timeout_s: float) -> list[Reply]:
    """Send all, read all. `timeout_s` bounds every silence and, flight by flight, the average."""
    flights = _flights(commands)
    started = time.monotonic()
    connection: Any = pool.get_connection()
    try:
        replies: list[Reply] = []
        in_air = sent = 0
        while True:
            making = time.monotonic()
            packed, number = next(flights, (b"", 0))
            started += time.monotonic() - making  # digesting long texts is no slowness of the server
            if packed:
                connection.send_packed_command([packed], check_health=False)
            for _ in range(in_air):
                replies.append(_read(connection))
            in_air = number
            if not packed:
                return replies
            sent += len(packed)
            if time.monotonic() - started > (1 + max(1, sent / FLIGHT_BYTES)) * timeout_s:
                raise redis.TimeoutError(f"answers come slower than {FLIGHT_BYTES} bytes in {timeout_s:g} s")
    except BaseException:
        # Answers may be outstanding: whoever took this connection next would read them as theirs.
        connection.disconnect()
        raise
    finally:
        pool.release(connection)


def _read(connection: Any) -> Reply:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def _flights(commands: Iterable[Parts]) -> Iterator[tuple[bytes, int]]:
    pieces: list[bytes] = []
    size = 0
    for command in commands:
        piece = _packed(command)
        pieces.append(piece)
        size += len(piece)
        if size >= FLIGHT_BYTES or len(command) > FLIES_ALONE_PARTS:
            yield b"".join(pieces), len(pieces)
            pieces, size = [], 0
    if pieces:
        yield b"".join(pieces), len(pieces)


def _packed(command: Parts) -> bytes:
    word, *arguments = command
    if len(arguments) > 1 and len(lengths := set(map(len, arguments))) == 1:
        # Names of entries are of one length: what hiredis writes for each can stand between them in a join.
        head = b"\r\n$%d\r\n" % lengths.pop()
        return b"*%d\r\n$%d\r\n%b" % (len(command), len(word), head.join((word, *arguments))) + b"\r\n"
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub means any length
    return packed


def _scan(pool: ConnectionPool, pattern: bytes, count: int, timeout_s: float) -> Iterator[list[bytes]]:
    cursor = b"0"
    while True:
        command = (b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"%d" % count)
        (reply,) = _exchange(pool, [command], timeout_s)
        if isinstance(reply, ResponseError):
            raise reply
        cursor, names = reply
        yield names
        if cursor == b"0":
            return
