"""LoRA adapters as the clients see them: the calls and what they answer."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.client_calls import Call, Upload, given, segment
from deployments.client_results import build

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_UPLOAD_TIMEOUT_S = 300.0
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class AdapterArm:
    version: str
    digest: str
    weight: float


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """Files that somebody put under a label. `active`: some pointer names it; `resident`: in memory."""

    scope: str
    name: str
    version: str
    digest: str
    size_bytes: int
    rank: int
    modules: tuple[str, ...]
    created_at: float
    active: bool
    resident: bool


@dataclass(frozen=True, slots=True)
class AdapterState:
    """What is active for a user, a domain or everybody, and what was before."""

    scope: str
    name: str
    arms: tuple[AdapterArm, ...]
    previous: tuple[AdapterArm, ...]
    action: str
    version: str


@dataclass(frozen=True, slots=True)
class AdapterCandidate:
    """A folder in the service's inbox; `problem` says why it cannot be put, None when it can."""

    path: str
    digest: str | None
    size_bytes: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class Adapters:
    versions: tuple[AdapterVersion, ...]
    states: tuple[AdapterState, ...]
    candidates: tuple[AdapterCandidate, ...]
    version: str
    next: str | None


def list_adapters(
    scope: str | None = None, name: str | None = None, limit: int = 100, after: str | None = None
) -> Call[Adapters]:
    """Versions, what is active, and what waits in the inbox."""
    params = {"limit": limit} | given(scope=scope, name=name, after=after)
    return Call("GET", "/v1/adapters", _adapters_of, params)


def put_adapter(
    scope: str, name: str, version: str, folder: Path | str | None = None, *, inbox: str | None = None
) -> Call[AdapterVersion]:
    """Give an adapter (a PEFT folder here, or a path in the service's inbox) a label. Activates nothing."""
    if (folder is None) == (inbox is None):
        raise ValueError("put_adapter takes exactly one of a folder here and a path in the inbox")
    path = f"{_path(scope, name)}/versions/{segment(version)}"
    body = None if inbox is None else {"path": inbox}
    return Call(
        "PUT",
        path,
        lambda data: build(AdapterVersion, data["adapter"]),
        body=body,
        upload=None if folder is None else _archive(Path(folder)),
        timeout_s=_UPLOAD_TIMEOUT_S,
        reads=False,
    )


def delete_adapter(scope: str, name: str, version: str) -> Call[None]:
    """Remove a version; refused while it is active or the one to roll back to."""
    path = f"{_path(scope, name)}/versions/{segment(version)}"
    return Call("DELETE", path, lambda data: None, reads=False)


def activate_adapter(
    scope: str, name: str, version: str | None = None, *, arms: Mapping[str, float] | None = None
) -> Call[AdapterState]:
    """Make a version active, or several (`arms`: version to share of the users), or none of them (None)."""
    if version is not None and arms is not None:
        raise ValueError("activate_adapter takes a version or arms")
    body: dict[str, Any] = {"version": version}
    if arms is not None:
        body = {"arms": [{"version": label, "weight": weight} for label, weight in arms.items()]}
    return _move(scope, name, "activate", body)


def roll_back_adapter(scope: str, name: str) -> Call[AdapterState]:
    """Make what was active before active again."""
    # A second one would undo the first.
    return _move(scope, name, "rollback", {}, once=True)


def adapter_history(scope: str, name: str) -> Call[tuple[AdapterState, ...]]:
    """Every state, oldest first."""
    return Call(
        "GET",
        f"{_path(scope, name)}/history",
        lambda data: tuple(_state_of({"scope": scope, "name": name, **entry}) for entry in data["history"]),
    )


def _move(scope: str, name: str, action: str, body: object, once: bool = False) -> Call[AdapterState]:
    return Call(
        "POST",
        f"{_path(scope, name)}/{action}",
        lambda data: _state_of(data["state"]),
        body=body,
        idempotent=False,
        once=once,
        reads=False,
    )


def _path(scope: str, name: str) -> str:
    return f"/v1/adapters/{segment(scope)}/{segment(name)}"


def _arms(entries: list[Mapping[str, Any]]) -> tuple[AdapterArm, ...]:
    return tuple(build(AdapterArm, entry) for entry in entries)


def _state_of(data: Mapping[str, Any]) -> AdapterState:
    arms = {"arms": _arms(data["arms"]), "previous": _arms(data["previous"])}
    return build(AdapterState, {**data, **arms})


def _adapters_of(data: Mapping[str, Any]) -> Adapters:
    return Adapters(
        tuple(build(AdapterVersion, entry) for entry in data["adapters"]),
        tuple(_state_of(entry) for entry in data["states"]),
        tuple(build(AdapterCandidate, entry) for entry in data["candidates"]),
        data["version"],
        data["next"],
    )


def _archive(folder: Path) -> Upload:
    """The folder's two files as a tar, read while it is sent."""
    sizes = []
    for name in ADAPTER_FILES:
        path = folder / name
        if not path.is_file():
            needed = " and ".join(ADAPTER_FILES)
            raise FileNotFoundError(f"{path} is missing: an adapter is a folder with {needed}")
        sizes.append(path.stat().st_size)

    def padding(size: int) -> int:
        return -size % tarfile.BLOCKSIZE

    def chunks() -> Iterator[bytes]:
        for name, size in zip(ADAPTER_FILES, sizes, strict=True):
            member = tarfile.TarInfo(name)
            member.size = size
            yield member.tobuf(tarfile.USTAR_FORMAT)
            left = size
            with (folder / name).open("rb") as file:
                while left and (chunk := file.read(min(_CHUNK_BYTES, left))):
                    left -= len(chunk)
                    yield chunk
            if left:
                raise OSError(f"{folder / name} became shorter while it was sent")
            yield bytes(padding(size))
        yield bytes(2 * tarfile.BLOCKSIZE)

    length = sum(tarfile.BLOCKSIZE + size + padding(size) for size in sizes) + 2 * tarfile.BLOCKSIZE
    return Upload("application/x-tar", length, chunks)
