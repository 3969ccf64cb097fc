"""The files beside the store: where they are, and which of them its pointers name."""

from __future__ import annotations

from collections.abc import Sequence

from deployments.encoder_pointers import ACTIVE, SCOPE
from deployments.settings import Settings
from graph.backup import Folder
from graph.schema import Pointer
from models.adapter_pointers import ADAPTER_SCOPES, decode_arms, state_scope

_ENCODERS, _ADAPTERS, _AUDIT = "encoders", "adapters", "audit"


def folders_of(settings: Settings) -> tuple[Folder, ...]:
    """What a backup holds beside the store; snapshots and cached embeddings come from the store again."""
    return (
        Folder(_ENCODERS, settings.encoder_dir),
        Folder(_ADAPTERS, settings.adapter_dir),
        Folder(_AUDIT, settings.audit_dir),
    )


def named_files(pointers: Sequence[Pointer]) -> dict[str, str]:
    """Folders of a backup that a service on the store would open, each with what it is. Raises Corrupt."""
    found: dict[str, str] = {}
    scopes = {state_scope(scope): scope for scope in ADAPTER_SCOPES}
    for pointer in pointers:
        if (pointer.scope, pointer.name) == (SCOPE, ACTIVE):
            if pointer.value.get("digest"):
                found[f"{_ENCODERS}/{pointer.value['digest']}"] = "the active encoder"
        elif pointer.scope in scopes:
            for arm in decode_arms(pointer.value):
                found[f"{_ADAPTERS}/{arm.digest}"] = f"active for {scopes[pointer.scope]}/{pointer.name}"
    return found
