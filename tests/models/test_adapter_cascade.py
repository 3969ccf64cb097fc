"""Which adapter a request gets: levels, arms, explicit references, blends, and what could not be loaded."""

from __future__ import annotations

from collections import Counter

import pytest

from graph.errors import InvalidInput, UnknownAdapter
from graph.view import GraphView
from models.adapter_cascade import AdapterCascade, MemoryPointers, PointerReader, assign_arm
from models.adapter_pointers import AdapterArm
from models.language_model.protocol import AdapterChoice, AdapterPart

A, B, C, D = (letter * 64 for letter in "abcd")


@pytest.fixture
def pointers() -> MemoryPointers:
    made = MemoryPointers()
    for scope, name, version, digest in (
        ("user", "alice", "v1", D), ("user", "alice", "v2", A), ("domain", "films", "v1", B),
        ("global", "default", "v1", C),
    ):  # fmt: skip
        made.put_version(scope, name, version, digest)  # type: ignore[arg-type]
        made.activate(scope, name, AdapterArm(version, digest))  # type: ignore[arg-type]
    return made


@pytest.fixture
def cascade(pointers: MemoryPointers) -> AdapterCascade:
    return AdapterCascade(lambda: pointers)


def test_a_view_of_the_graph_is_a_reader() -> None:
    view: PointerReader = GraphView()
    assert AdapterCascade(lambda: view).choose("alice", "films", None, (), {}) == AdapterChoice()


def test_levels(cascade: AdapterCascade, pointers: MemoryPointers) -> None:
    def chosen(user: str | None, domain: str | None) -> tuple[str | None, str]:
        choice = cascade.choose(user, domain, None, (), {})
        return choice.adapter, choice.source

    assert chosen("alice", "films") == ("user/alice/v2", "user")
    assert chosen("alic", "films") == ("domain/films/v1", "domain")
    assert chosen("alice1", "film") == ("global/default/v1", "global")
    assert chosen(None, None) == ("global/default/v1", "global")
    pointers.activate("global", "default")
    assert chosen("bob", None) == (None, "base")
    assert cascade.choose("alice", None, None, (), {}).why == "user/alice has v2 active"


def test_what_could_not_be_loaded_is_passed_by(cascade: AdapterCascade) -> None:
    choice = cascade.choose("alice", "films", None, (), {A: "gone"})
    assert (choice.digest, choice.source) == (B, "domain")
    assert choice.why == "user/alice/v2 could not be loaded (gone); fell back to domain/films/v1"
    choice = cascade.choose("alice", "films", None, (), {A: "gone", B: "bad", C: "worse"})
    assert (choice.parts, choice.source) == ((), "base")
    assert choice.why.endswith("global/default/v1 could not be loaded (worse); fell back to the base model")


def test_explicit_references(cascade: AdapterCascade, pointers: MemoryPointers) -> None:
    for reference, adapter, digest in (
        ("user/alice", "user/alice/v2", A), ("user/alice/v1", "user/alice/v1", D), (C, C, C),
        ("base", None, None),
    ):  # fmt: skip
        choice = cascade.choose("bob", "films", reference, (), {})
        assert (choice.adapter, choice.digest, choice.source) == (adapter, digest, "request")
    for reference in ("user/alice", "user/alice/v2", A):
        with pytest.raises(UnknownAdapter, match="gone"):
            cascade.choose("alice", None, reference, (), {A: "gone"})
    pointers.put_version("user", "alice", "v1", None)
    for reference in ("user/alice/v1", "user/alice/v3", "user/bob", "domain/alice"):
        with pytest.raises(UnknownAdapter):
            cascade.choose("alice", "films", reference, (), {})
    with pytest.raises(InvalidInput):
        cascade.choose("alice", "films", "../v1", (), {})


def test_blends(cascade: AdapterCascade) -> None:
    blend = (("user/alice", 0.5), ("domain/films", 0.25), (A, 0.25), ("base", 3.0))
    choice = cascade.choose("alice", None, None, blend, {})
    assert choice.parts == (AdapterPart(A, 0.75), AdapterPart(B, 0.25))
    assert choice.adapter == "user/alice/v2+domain/films/v1"
    assert choice.why == "the request asked for a blend: 0.75 x user/alice/v2 + 0.25 x domain/films/v1"
    assert cascade.choose("alice", None, None, ((A, 1.0), (A, -1.0)), {}).parts == ()
    for bad in (((A, float("nan")),), ((A, float("inf")),), ((A, 11.0),), ((A, 1.0),) * 9, (("x", 1.0),)):
        with pytest.raises(InvalidInput):
            cascade.choose("alice", None, None, bad, {})
    with pytest.raises(InvalidInput):
        cascade.choose("alice", None, A, blend, {})
    with pytest.raises(UnknownAdapter):
        cascade.choose("alice", None, None, blend, {B: "gone"})


def assigned(weights: dict[str, float], name: str = "films") -> list[str]:
    """Version of each of 10,000 users."""
    arms = [AdapterArm(version, A, weight) for version, weight in weights.items()]
    return [assign_arm("domain", name, f"user{i}", arms).version for i in range(10_000)]


def test_arms_get_their_shares_and_keep_their_users() -> None:
    before = assigned({"v1": 1, "v2": 3, "v3": 6})
    shares = Counter(before)
    for version, share in (("v1", 0.1), ("v2", 0.3), ("v3", 0.6)):
        assert shares[version] / 10_000 == pytest.approx(share, abs=0.02)  # four standard deviations
    assert assigned({"v3": 60, "v1": 10, "v2": 30}) == before  # neither order nor unit matters
    assert assigned({"v1": 1, "v2": 3, "v3": 6}, "books") != before
    after = assigned({"v1": 2, "v2": 3, "v3": 6})
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert moved and {new for _, new in moved} == {"v1"}


def test_the_arm_of_a_user_is_fixed_for_good(pointers: MemoryPointers, cascade: AdapterCascade) -> None:
    pointers.activate("domain", "films", AdapterArm("v1", A), AdapterArm("v2", B))
    names = "alice", "bob", "carol", "dave", None
    found = [cascade.choose(name, "films", "domain/films", (), {}).adapter for name in names]
    assert found == [f"domain/films/{v}" for v in PINNED]
    assert found == [cascade.choose(name, None, "domain/films", (), {}).adapter for name in names]
    why = cascade.choose("eve", "films", None, (), {}).why
    assert why.endswith("for 50% of users, one of 2 versions compared")


PINNED = ("v1", "v1", "v1", "v1", "v2")
"""Recorded: a change of the hash would move users between arms in running comparisons."""
