"""Which adapter versions are active for a user, a domain and everybody, as pointers of the feed hold it.

Two kinds of pointers:

- `adapter.user`, `adapter.domain`, `adapter.global`, each named by the user, the domain or "default": what is
  active, `{"arms": [{"version", "digest", "weight"}], "previous": [...], "action": ...}`;
- `adapter_version`, named `<scope>/<name>/<version>`: what a version is, `{"digest", "size_bytes", "rank",
  "modules", "created_at"}`, or `{"digest": null}` when it was deleted.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from graph.errors import Corrupt, InvalidInput
from graph.validation import checked_id

AdapterScope: TypeAlias = Literal["user", "domain", "global"]
ADAPTER_SCOPES: tuple[AdapterScope, ...] = ("user", "domain", "global")
GLOBAL_NAME = "default"
"""The only name in the scope "global"."""
VERSION_SCOPE = "adapter_version"
BASE = "base"
"""Reference to the base model alone."""
MAX_ARMS = 8

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_PARTS, _MAX_PART_BYTES = 4, 255


@dataclass(frozen=True, slots=True)
class AdapterArm:
    """One of the versions a pointer names; users are assigned to arms in proportion to the weights."""

    version: str
    digest: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """The files of an adapter, as their store and the pointers of versions describe them."""

    digest: str
    size_bytes: int
    rank: int
    modules: tuple[str, ...]
    """Ends of their names, as in `q_proj`, sorted."""
    created_at: float
    """Unix seconds of the first import."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What a request names: a digest, what is active under (scope, name), a version of it, or the base model.

    Without scope and digest it is the base model.
    """

    scope: AdapterScope | None = None
    name: str = ""
    version: str | None = None
    digest: str | None = None

    @property
    def is_base(self) -> bool:
        return self.scope is None and self.digest is None

    def __str__(self) -> str:
        if self.digest is not None:
            return self.digest
        if self.scope is None:
            return BASE
        return "/".join(part for part in (self.scope, self.name, self.version) if part)


def check_adapter_name(scope: str, name: str) -> None:
    """Raise InvalidInput unless adapters can be put under (scope, name)."""
    if scope not in ADAPTER_SCOPES:
        raise InvalidInput(f"scope {scope[:80]!r}: must be user, domain or global", param="scope")
    checked_id(name, "name")
    if scope == "global" and name != GLOBAL_NAME:
        raise InvalidInput(f"name {name!r}: the scope global has one name, {GLOBAL_NAME!r}", param="name")


def check_version_label(version: str) -> None:
    """Raise InvalidInput unless a version can be called so."""
    if _VERSION.fullmatch(version) is None:
        raise InvalidInput(
            f"version {version[:80]!r}: 1 to 64 letters, digits, '.', '_' and '-' of ASCII, "
            "beginning with a letter or digit",
            param="version",
        )


def check_inbox_path(path: str) -> tuple[str, ...]:
    """Parts of a path below the inbox; raises InvalidInput before anything touches the file system."""
    parts = tuple(path.removesuffix("/").split("/"))
    for part in parts:
        if (
            part.startswith(".")
            or not part
            or "\\" in part
            or not part.isprintable()  # control, bidirectional and private characters, surrogates, odd spaces
            or unicodedata.normalize("NFC", part) != part
            or len(part.encode()) > _MAX_PART_BYTES
        ):
            raise _bad_path(path)
    if len(parts) > _MAX_PARTS:
        raise _bad_path(path)
    return parts


def _bad_path(path: str) -> InvalidInput:
    return InvalidInput(
        f"path {path[:120]!a}: must be relative to the inbox, at most {_MAX_PARTS} parts of at most "
        f"{_MAX_PART_BYTES} bytes, without hidden ones, '..', backslashes and unprintable characters",
        param="path",
    )


def is_adapter_digest(text: str) -> bool:
    """Whether `text` has the form of an adapter's digest: 64 hex digits, small letters."""
    return _DIGEST.fullmatch(text) is not None


def parse_reference(text: str) -> Reference:
    """`user/alice`, `domain/films/v2`, `global/default`, a digest or `base`; else InvalidInput."""
    if text == BASE:
        return Reference()
    if is_adapter_digest(text):
        return Reference(digest=text)
    parts = text.split("/")
    if len(parts) not in (2, 3) or parts[0] not in ADAPTER_SCOPES:
        raise InvalidInput(
            f"adapter {text[:80]!r}: must be user/NAME, domain/NAME or global/{GLOBAL_NAME}, each perhaps "
            f"with /VERSION behind it, a digest of 64 hex digits, or {BASE!r}",
            param="adapter",
        )
    check_adapter_name(parts[0], parts[1])
    if len(parts) == 3:
        check_version_label(parts[2])
    return Reference(parts[0], parts[1], parts[2] if len(parts) == 3 else None)


def state_scope(scope: AdapterScope) -> str:
    """Scope in the feed of the pointers that say what is active."""
    return f"adapter.{scope}"


def version_name(scope: AdapterScope, name: str, version: str) -> str:
    """Name in the feed of the pointer that says what a version is."""
    return f"{scope}/{name}/{version}"


def split_version_name(key: str) -> tuple[AdapterScope, str, str]:
    """Scope, name and version out of such a name; neither of them can hold a slash."""
    scope, name, version = key.split("/")
    return cast(AdapterScope, scope), name, version


def encode_state(
    arms: Sequence[AdapterArm], previous: Sequence[AdapterArm], action: str
) -> dict[str, object]:
    """Value of a pointer that says what is active and what was before."""
    return {"arms": _encode_arms(arms), "previous": _encode_arms(previous), "action": action}


def decode_arms(value: Mapping[str, object]) -> tuple[AdapterArm, ...]:
    """What is active, out of such a value; none after a deactivation. Raises Corrupt."""
    return _decode_arms(value, "arms")


def decode_previous(value: Mapping[str, object]) -> tuple[AdapterArm, ...]:
    """What a rollback makes active again, out of such a value. Raises Corrupt."""
    return _decode_arms(value, "previous")


def encode_version(files: AdapterFiles) -> dict[str, object]:
    """Value of a pointer that says what a version is."""
    return {
        "digest": files.digest,
        "size_bytes": files.size_bytes,
        "rank": files.rank,
        "modules": list(files.modules),
        "created_at": files.created_at,
    }


def decode_version(value: Mapping[str, object]) -> AdapterFiles | None:
    """What a version is, out of its pointer's value; None when it was deleted. Raises Corrupt."""
    digest = decode_digest(value)
    if digest is None:
        return None
    size, rank, created = value.get("size_bytes"), value.get("rank"), value.get("created_at")
    modules = value.get("modules")
    if (
        isinstance(size, int)
        and isinstance(rank, int)
        and isinstance(created, int | float)
        and isinstance(modules, list | tuple)
    ):
        return AdapterFiles(digest, size, rank, tuple(str(module) for module in modules), float(created))
    raise Corrupt(f"the pointer of an adapter's version is incomplete: {value!r:.200}")


def decode_digest(value: Mapping[str, object]) -> str | None:
    """The digest of a version alone; None when it was deleted. Raises Corrupt."""
    digest = value.get("digest")
    if digest is None:
        return None
    if not (isinstance(digest, str) and is_adapter_digest(digest)):
        raise Corrupt(f"the pointer of an adapter's version holds no digest: {value!r:.200}")
    return digest


def _encode_arms(arms: Sequence[AdapterArm]) -> list[dict[str, object]]:
    return [{"version": arm.version, "digest": arm.digest, "weight": arm.weight} for arm in arms]


def _decode_arms(value: Mapping[str, object], key: str) -> tuple[AdapterArm, ...]:
    found = value.get(key)
    if not isinstance(found, list | tuple):
        raise Corrupt(f"a pointer of adapters holds no {key}: {value!r:.200}")
    return tuple(_decode_arm(arm) for arm in found)


def _decode_arm(value: object) -> AdapterArm:
    if isinstance(value, Mapping):
        version, digest, weight = value.get("version"), value.get("digest"), value.get("weight")
        if (
            isinstance(version, str)
            and isinstance(digest, str)
            and isinstance(weight, int | float)
            and math.isfinite(weight)
            and weight > 0
        ):
            return AdapterArm(version, digest, float(weight))
    raise Corrupt(f"a pointer of adapters holds an arm that is none: {value!r:.200}")
