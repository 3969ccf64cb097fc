"""Which adapter versions are active for a user, a domain and everybody, as pointers of the feed hold it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

AdapterScope: TypeAlias = Literal["user", "domain", "global"]
ADAPTER_SCOPES: tuple[AdapterScope, ...] = ("user", "domain", "global")
GLOBAL_NAME = "default"
"""The only name in the scope "global"."""


@dataclass(frozen=True, slots=True)
class AdapterArm:
    """One of the versions a pointer names; users are assigned to arms in proportion to the weights."""

    version: str
    digest: str
    weight: float = 1.0
