"""Uploaded adapters: from the socket to a file, never held in memory."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO

from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from graph.errors import InvalidInput, Overloaded, Unavailable

TAR = "application/x-tar"
SLACK_BYTES = 1 << 20
"""What an archive may have beyond its adapter: headers, padding, a README."""

_PATH = re.compile(r"/v1/adapters/[^/]+/[^/]+/versions/[^/]+")
_CHUNK_BYTES = 1 << 20
MAX_RECEIVED = 8
"""Uploads at a time: what bounds the disk that half adapters can take."""
STALLED_S = 60.0
"""An upload of which nothing comes for so long gives its place to another."""


def media_type(headers: dict[bytes, bytes]) -> str:
    """The content type without its parameters, in lower case."""
    return headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()


def is_upload(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    """Whether the body of this request may be as large as an adapter."""
    if scope["method"] != "PUT" or media_type(headers) != TAR:
        return False
    return _PATH.fullmatch(scope["path"].removeprefix(scope.get("root_path") or "")) is not None


class Uploads:
    """A folder of files that exist as long as somebody reads them; None: no uploads are taken.

    What a killed process leaves there is removed by `deployments.adapter_folder`.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._receiving = 0

    @asynccontextmanager
    async def received(self, request: Request) -> AsyncIterator[str]:
        """The body as a file of the folder, by its name there; it is gone at the end, whatever happened.

        Raises InvalidInput for a body that is empty, broke off or stalled, Overloaded while too many are
        received already, Unavailable when the disk is full.
        """
        if self._folder is None:
            raise InvalidInput("this service takes no uploads; put a path in its inbox", param="content-type")
        if self._receiving >= MAX_RECEIVED:
            raise Overloaded(f"{MAX_RECEIVED} adapters are being uploaded already; try again shortly")
        name = f"{secrets.token_hex(16)}.tar"
        path = self._folder / name
        self._receiving += 1
        try:
            with _disk_full():
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                # Closing a buffered file waits for a thread that writes to it still.
                with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
                    await _write(file, request)
            yield name
        finally:
            self._receiving -= 1
            path.unlink(missing_ok=True)


async def _write(file: IO[bytes], request: Request) -> None:
    written = 0
    buffer = bytearray()
    chunks = request.stream()
    try:
        while True:
            async with asyncio.timeout(STALLED_S):
                chunk = await anext(chunks, None)
            if chunk is None:
                break
            buffer += chunk
            if len(buffer) >= _CHUNK_BYTES:
                await asyncio.to_thread(file.write, bytes(buffer))
                written += len(buffer)
                buffer.clear()
    except TimeoutError:
        raise InvalidInput(
            f"nothing more of the upload came for {STALLED_S:g} s, after {written + len(buffer):,} bytes; "
            "send it again",
            param="body",
        ) from None
    except ClientDisconnect:
        raise InvalidInput(
            f"the upload broke off after {written + len(buffer):,} bytes; send it again", param="body"
        ) from None
    await asyncio.to_thread(file.write, bytes(buffer))
    if written + len(buffer) == 0:
        raise InvalidInput("the body is empty; send a tar of the adapter's two files", param="body")


@contextmanager
def _disk_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Unavailable("there is no room on the disk for an upload") from error
        raise
