"""Adapters that clients upload as a plain tar archive, which is read in memory and never extracted."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import BinaryIO

from graph.errors import InvalidAdapter, Unavailable
from models.adapter_import import RawAdapter
from models.language_model.lora_config import MAX_CONFIG_BYTES
from models.language_model.lora_weights import CONFIG_FILE, WEIGHTS_FILE

IGNORED_FILE = "README.md"
_MAX_MEMBERS = 8
_MAX_OVERHEAD = 1 << 20  # headers, padding and a text beside the two files


def read_archive(path: Path, max_bytes: int) -> RawAdapter:
    """The two files out of an archive that holds them at its top.

    Raises InvalidAdapter for what it holds, Unavailable where it cannot be read.
    """
    try:
        return _read(path, max_bytes)
    except OSError as error:
        raise Unavailable(f"the upload cannot be read: {error.strerror}; send it again") from error


def _read(path: Path, max_bytes: int) -> RawAdapter:
    size = path.stat().st_size
    if size > max_bytes + MAX_CONFIG_BYTES + _MAX_OVERHEAD:
        raise InvalidAdapter(f"the archive has {size} bytes; an adapter has at most {max_bytes}")
    found: dict[str, bytes] = {}
    try:
        with (
            path.open("rb") as file,
            tarfile.open(fileobj=_Bounded(file, size), mode="r:") as archive,  # type: ignore[call-overload]
        ):
            for count, member in enumerate(archive, start=1):
                if count > _MAX_MEMBERS:
                    raise InvalidAdapter(f"the archive has more than {_MAX_MEMBERS} members")
                name = member.name.removeprefix("./")
                if member.type == tarfile.DIRTYPE and name in (".", ""):
                    continue
                _check_member(member, name, found)
                limit = MAX_CONFIG_BYTES if name == CONFIG_FILE else max_bytes
                content = archive.extractfile(member)
                if content is None:
                    raise InvalidAdapter(f"the archive's member {name} cannot be read")
                # The declared size is not believed.
                data = content.read(limit + 1)
                if len(data) > limit:
                    raise InvalidAdapter(f"{name} has more than {limit} bytes")
                if len(data) != member.size:
                    raise InvalidAdapter(f"the archive ends within {name}")
                found[name] = data if name != IGNORED_FILE else b""
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise InvalidAdapter(
            f"the upload is no whole, uncompressed tar archive: {str(error)[:120]}"
        ) from error
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if name not in found]
    if missing:
        raise InvalidAdapter(f"the archive has no {' and no '.join(missing)} at its top, or is truncated")
    return RawAdapter(found[CONFIG_FILE], found[WEIGHTS_FILE])


def _check_member(member: tarfile.TarInfo, name: str, found: dict[str, bytes]) -> None:
    if name not in (CONFIG_FILE, WEIGHTS_FILE, IGNORED_FILE):
        raise InvalidAdapter(
            f"the archive holds {member.name[:120]!r}; only {CONFIG_FILE}, {WEIGHTS_FILE} and "
            f"{IGNORED_FILE} are allowed"
        )
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise InvalidAdapter(f"the archive's member {name} is no regular file")
    if name in found:
        raise InvalidAdapter(f"the archive holds {name} twice")


class _Bounded:
    """A file that never tries to read beyond its end: tarfile asks for what a header declares."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def read(self, count: int = -1) -> bytes:
        rest = max(0, self._size - self._file.tell())
        return self._file.read(rest if count < 0 else min(count, rest))

    def seek(self, position: int, whence: int = 0) -> int:
        return self._file.seek(position, whence)

    def tell(self) -> int:
        return self._file.tell()
