"""References to adapters, names, labels and the values of their pointers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.errors import Corrupt, InvalidInput
from models.adapter_pointers import (
    AdapterArm,
    AdapterFiles,
    Reference,
    check_adapter_name,
    check_inbox_path,
    check_version_label,
    decode_arms,
    decode_digest,
    decode_previous,
    decode_version,
    encode_state,
    encode_version,
    parse_reference,
    split_version_name,
    version_name,
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
    assert decode_previous(encode_state((), arms, "deactivate")) == arms
    assert decode_digest({"digest": DIGEST}) == DIGEST
    assert decode_digest({"digest": None}) is None
    with pytest.raises(Corrupt):
        decode_digest({"digest": "x"})
    for missing in ({}, {"arms": []}, {"previous": 1}):
        with pytest.raises(Corrupt):
            decode_previous(missing)
    for bad in ({}, {"arms": 1}, {"arms": [1]}, {"arms": [{"version": "v", "digest": DIGEST, "weight": 0}]}):
        with pytest.raises(Corrupt):
            decode_arms(bad)


def test_values_of_versions() -> None:
    files = AdapterFiles(DIGEST, 10, 4, ("k_proj", "q_proj"), 1.5)
    assert decode_version(encode_version(files)) == files
    assert decode_version({"digest": None}) is None
    for key, wrong in (("digest", "x"), ("size_bytes", "10"), ("rank", None), ("modules", "q_proj")):
        with pytest.raises(Corrupt):
            decode_version({**encode_version(files), key: wrong})
    assert split_version_name(version_name("user", "alice", "v1")) == ("user", "alice", "v1")


@pytest.mark.parametrize(
    "path",
    ["", "/", ".", "..", "a/..", "../a", "/etc/passwd", "a//b", "a//", "a/.hidden", "a\\b", "a\0", "a\n",
     "a\u202eb", "\ud800", "e\u0301", "x" * 256, "é" * 128, "a/b/c/d/e"],
)  # fmt: skip
def test_paths_that_are_refused(path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_inbox_path(path)
    assert caught.value.param == "path"
    assert caught.value.message.isascii()


def test_paths_below_the_inbox() -> None:
    assert check_inbox_path("films/v 2") == ("films", "v 2")
    assert check_inbox_path("films/v2/") == ("films", "v2")  # as a shell completes it
