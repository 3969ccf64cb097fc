"""Which adapter a request runs with: what it names, else its user's, its domain's, everybody's, else none.

Where a pointer names several versions, users are assigned to them by weighted rendezvous hashing (Thaler
and Ravishankar 1998; weights as in Schindelhauer and Schomaker 2005): each arm scores -weight / ln(u), u in
(0, 1) made of SHA-256 over pointer, user and version; the highest score wins. Shares are proportional to the
weights, a user stays with an arm on every machine, and changing one arm's weight moves users to or from this
arm alone. A request without a user counts as the user "": all of them meet the same arm of a pointer.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from graph.errors import InvalidInput, UnknownAdapter
from graph.schema import Pointer
from models.adapter_pointers import (
    GLOBAL_NAME,
    VERSION_SCOPE,
    AdapterArm,
    AdapterScope,
    Reference,
    decode_arms,
    decode_digest,
    encode_state,
    parse_reference,
    state_scope,
    version_name,
)
from models.language_model.protocol import MAX_BLEND_PARTS, AdapterChoice, AdapterPart

MAX_BLEND_WEIGHT = 10.0


class PointerReader(Protocol):
    """Latest values of pointers; a `graph.view.GraphView` is one."""

    def pointer(self, scope: str, name: str) -> Pointer | None: ...


class MemoryPointers:
    """Pointers without a store behind them, for the library's own use."""

    def __init__(self) -> None:
        self._pointers: dict[tuple[str, str], Pointer] = {}
        self.version = 0

    def pointer(self, scope: str, name: str) -> Pointer | None:
        return self._pointers.get((scope, name))

    def put(self, scope: str, name: str, value: Mapping[str, object]) -> None:
        """Write one pointer as the feed would hold it."""
        self.version += 1
        self._pointers[scope, name] = Pointer(scope, name, value, self.version)

    def put_version(self, scope: AdapterScope, name: str, version: str, digest: str | None) -> None:
        """Give a digest a version label; None deletes the label."""
        self.put(VERSION_SCOPE, version_name(scope, name, version), {"digest": digest})

    def activate(self, scope: AdapterScope, name: str, *arms: AdapterArm) -> None:
        """Make arms the active ones; none deactivates."""
        found = self.pointer(state_scope(scope), name)
        previous = () if found is None else decode_arms(found.value)
        action = "activate" if arms else "deactivate"
        self.put(state_scope(scope), name, encode_state(arms, previous, action))


class AdapterCascade:
    """Chooses adapters from pointers. Thread-safe as far as the reader is; it never blocks."""

    def __init__(self, pointers: Callable[[], PointerReader]) -> None:
        """`pointers` is asked anew for every choice, so that a reader may be replaced."""
        self._pointers = pointers

    def choose(
        self,
        user_id: str | None,
        domain: str | None,
        adapter: str | None,
        blend: Sequence[tuple[str, float]],
        failed: Mapping[str, str],
    ) -> AdapterChoice:
        """The adapters of one request.

        `adapter` is a reference and `blend` has (reference, weight); at most one of them is given. `failed`
        maps digests that could not be loaded to the reason: the cascade goes on below them. Raises
        InvalidInput for what is no reference or weight, UnknownAdapter where the request names something
        that is not there, not active, or among `failed`.
        """
        pointers = self._pointers()
        if blend:
            if adapter is not None:
                raise InvalidInput("give an adapter or a blend, not both", param="blend")
            return _blended(pointers, user_id, blend, failed)
        if adapter is not None:
            reference = parse_reference(adapter)
            if reference.is_base:
                return AdapterChoice(source="request", why="the request asked for the base model")
            name, digest, why = _resolve(pointers, reference, user_id, failed)
            return AdapterChoice(
                (AdapterPart(digest),), name, "request", f"the request asked for {reference}{why}"
            )
        return _cascaded(pointers, user_id, domain, failed)


def assign_arm(scope: AdapterScope, name: str, user_id: str | None, arms: Sequence[AdapterArm]) -> AdapterArm:
    """The arm of a user among at least one; see the module's docstring."""
    if len(arms) == 1:
        return arms[0]
    return max(arms, key=lambda arm: (_score(scope, name, user_id or "", arm), arm.version))


def _score(scope: str, name: str, user_id: str, arm: AdapterArm) -> float:
    # Neither of the first three can hold NUL, so different keys are different texts.
    key = "\0".join((scope, name, arm.version, user_id)).encode("utf-8", "surrogatepass")
    u = (int.from_bytes(hashlib.sha256(key).digest()[:6]) + 0.5) / (1 << 48)
    return -arm.weight / math.log(u)


def _cascaded(
    pointers: PointerReader, user_id: str | None, domain: str | None, failed: Mapping[str, str]
) -> AdapterChoice:
    skipped: list[str] = []
    levels: tuple[tuple[AdapterScope, str | None], ...] = (
        ("user", user_id),
        ("domain", domain),
        ("global", GLOBAL_NAME),
    )
    for scope, name in levels:
        arms = () if name is None else _arms(pointers, scope, name)
        if not arms or name is None:
            continue
        arm = assign_arm(scope, name, user_id, arms)
        label = f"{scope}/{name}/{arm.version}"
        if (reason := failed.get(arm.digest)) is not None:
            skipped.append(f"{label} could not be loaded ({reason})")
            continue
        why = f"fell back to {label}" if skipped else f"{scope}/{name} has {arm.version} active"
        return AdapterChoice(
            (AdapterPart(arm.digest),), label, scope, "; ".join((*skipped, why + _share(arm, arms)))
        )
    if skipped:
        return AdapterChoice(why="; ".join((*skipped, "fell back to the base model")))
    return AdapterChoice()


def _blended(
    pointers: PointerReader,
    user_id: str | None,
    blend: Sequence[tuple[str, float]],
    failed: Mapping[str, str],
) -> AdapterChoice:
    if len(blend) > MAX_BLEND_PARTS:
        raise InvalidInput(
            f"a blend of {len(blend)} adapters; at most {MAX_BLEND_PARTS} are allowed", param="blend"
        )
    weights: dict[str, float] = {}
    names: dict[str, str] = {}
    for text, weight in blend:
        if not (math.isfinite(weight) and abs(weight) <= MAX_BLEND_WEIGHT):
            raise InvalidInput(
                f"weight {weight} of {text[:80]!r}: must be from "
                f"-{MAX_BLEND_WEIGHT:g} to {MAX_BLEND_WEIGHT:g}",
                param="blend",
            )
        reference = parse_reference(text)
        if reference.is_base:  # it has no low-rank term: any weight of it adds nothing
            continue
        name, digest, _ = _resolve(pointers, reference, user_id, failed)
        weights[digest] = weights.get(digest, 0.0) + weight
        names.setdefault(digest, name)
    parts = tuple(AdapterPart(digest, weight) for digest, weight in weights.items() if weight)
    if not parts:
        return AdapterChoice(source="request", why="the request's blend adds nothing to the base model")
    terms = " + ".join(f"{part.weight:g} x {names[part.digest]}" for part in parts)
    return AdapterChoice(
        parts,
        "+".join(names[part.digest] for part in parts),
        "request",
        f"the request asked for a blend: {terms}",
    )


def _resolve(
    pointers: PointerReader, reference: Reference, user_id: str | None, failed: Mapping[str, str]
) -> tuple[str, str, str]:
    """Name with version, digest, and what a sentence adds to the reference; raises UnknownAdapter."""
    name, why = str(reference), ""
    if reference.digest is not None:
        digest = reference.digest
    elif reference.scope is None:
        raise ValueError("the base model has no adapter to look up")
    elif reference.version is not None:
        key = version_name(reference.scope, reference.name, reference.version)
        found = pointers.pointer(VERSION_SCOPE, key)
        decoded = None if found is None else decode_digest(found.value)
        if decoded is None:
            what = "was never put" if found is None else "was deleted"
            raise UnknownAdapter(f"adapter {name!r} {what}; GET /v1/adapters lists versions", param="adapter")
        digest = decoded
    else:
        arms = _arms(pointers, reference.scope, reference.name)
        if not arms:
            raise UnknownAdapter(
                f"no adapter is active under {name!r}; activate a version, or name one as {name}/VERSION",
                param="adapter",
            )
        arm = assign_arm(reference.scope, reference.name, user_id, arms)
        name, digest = f"{name}/{arm.version}", arm.digest
        why = f", where {arm.version} is active{_share(arm, arms)}"
    if (reason := failed.get(digest)) is not None:
        raise UnknownAdapter(f"adapter {name} could not be loaded: {reason}", param="adapter")
    return name, digest, why


def _arms(pointers: PointerReader, scope: AdapterScope, name: str) -> tuple[AdapterArm, ...]:
    found = pointers.pointer(state_scope(scope), name)
    return () if found is None else decode_arms(found.value)


def _share(arm: AdapterArm, arms: Sequence[AdapterArm]) -> str:
    if len(arms) == 1:
        return ""
    share = arm.weight / sum(other.weight for other in arms)
    return f" for {share:.0%} of users, one of {len(arms)} versions compared"
