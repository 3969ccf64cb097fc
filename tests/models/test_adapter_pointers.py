"""References to adapters, names, labels and the values of their pointers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.errors import Corrupt, InvalidInput
from models.adapter_pointers import (
    AdapterArm,
    Reference,
    check_adapter_name,
    check_version_label,
    decode_arms,
    decode_digest,
    encode_state,
    parse_reference,
)

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("base", Reference()),
        (DIGEST, Reference(digest=DIGEST)),
        ("user/alice", Reference("user", "alice")),
        ("user/ö b/v2", Reference("user", "ö b", "v2")),
        ("domain/films/2026-01.1", Reference("domain", "films", "2026-01.1")),
        ("global/default", Reference("global", "default")),
    ],
)
def test_references(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference
    assert str(reference) == text
    assert reference.is_base == (text == "base")


@pytest.mark.parametrize(
    "text",
    ["", "user", "user/", "user//v1", "user/..", "user/a/..", "user/a/v1/x", "team/a", "global/other", "Base",
     DIGEST.upper(), DIGEST[1:], "user/a\n", "user/ a", "user/a/v 1", "user/a/", "user/a/" + "v" * 65,
     "/user/a"],
)  # fmt: skip
def test_texts_that_are_no_references(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_reference(text)


@given(st.text(max_size=20))
def test_any_text_is_a_reference_or_a_typed_error(text: str) -> None:
    for candidate in (text, f"user/{text}"):
        try:
            assert str(parse_reference(candidate)) == candidate
        except InvalidInput:
            continue


def test_names_and_labels_name_their_parameter() -> None:
    check_adapter_name("user", "alice")
    check_version_label("v1.0_a-b")
    for scope, name, param in (("team", "x", "scope"), ("user", "a/b", "name"), ("global", "x", "name")):
        with pytest.raises(InvalidInput) as caught:
            check_adapter_name(scope, name)
        assert caught.value.param == param
    for label in ("", ".", "..", "-v", "v/1", "ü", "v\n", "v" * 65):
        with pytest.raises(InvalidInput):
            check_version_label(label)


def test_values_of_pointers() -> None:
    arms = (AdapterArm("v1", DIGEST, 0.5), AdapterArm("v2", DIGEST, 2.0))
    assert decode_arms(encode_state(arms, (), "activate")) == arms
    assert decode_arms(encode_state((), arms, "deactivate")) == ()
    assert decode_digest({"digest": DIGEST}) == DIGEST
    assert decode_digest({"digest": None}) is None
    with pytest.raises(Corrupt):
        decode_digest({"digest": "x"})
    for bad in ({}, {"arms": 1}, {"arms": [1]}, {"arms": [{"version": "v", "digest": DIGEST, "weight": 0}]}):
        with pytest.raises(Corrupt):
            decode_arms(bad)
