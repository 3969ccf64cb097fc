"""API keys: what they look like, what is stored of them, and when they end."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from graph.api_keys import NewKey, digest_of, is_key_id, new_key, opens, split_key
from graph.errors import Conflict, InvalidInput, UnknownApiKey
from graph.schema import (
    ApiKey,
    ChangeSet,
    DeleteApiKey,
    DeleteUser,
    PutApiKey,
    PutPointer,
    PutUser,
    WriteRequest,
)
from graph.view import GraphView
from graph.writer import GraphWriter
from tests.graph.plain_model import open_store, read_view, write

EXAMPLE = "weft_00112233aabbccdd." + "s" * 43


def put(key: NewKey, role: str = "read", user_id: str = "", expires_at: int | None = None) -> PutApiKey:
    return PutApiKey(key.key_id, role, key.digest, 100, user_id, "a label", expires_at)  # type: ignore[arg-type]


@pytest.fixture
def writer(tmp_path: Path) -> GraphWriter:
    return GraphWriter(open_store(tmp_path))


def test_a_new_key_is_an_id_and_a_secret_that_opens_it() -> None:
    key = new_key()
    parts = split_key(key.text)
    assert parts is not None
    key_id, secret = parts
    assert (key_id, digest_of(secret)) == (key.key_id, key.digest)
    assert re.fullmatch("[0-9a-f]{64}", key.digest)
    assert is_key_id(key_id)
    assert len({new_key().text for _ in range(1000)}) == 1000


def test_the_digest_is_sha256() -> None:
    # echo -n secret | sha256sum
    assert digest_of("secret") == "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        EXAMPLE[:-1],
        EXAMPLE + "s",
        EXAMPLE.replace(".", ""),
        EXAMPLE.replace("weft_", "WEFT_"),
        EXAMPLE.replace("aa", "AA"),
        EXAMPLE + "\n",
        "\n" + EXAMPLE,
        EXAMPLE[:-1] + "=",
        EXAMPLE[:-1] + "\u0661",
        "a" * 100_000,
    ],
)
def test_what_is_no_key(text: str) -> None:
    assert split_key(EXAMPLE) == ("weft_00112233aabbccdd", "s" * 43)
    assert split_key(text) is None


def test_a_key_opens_to_its_secret_alone_and_until_it_expires() -> None:
    key = ApiKey("weft_0000000000000000", "read", "", digest_of("right"), "", 0, None, 1)
    assert opens(key, "right", 1e9)
    assert not opens(key, "wrong", 1e9)
    assert not opens(None, "right", 1e9)
    assert not opens(replace(key, digest=""), "", 1e9)  # what a tombstone holds
    expiring = replace(key, expires_at=50)
    assert opens(expiring, "right", 49.9)
    assert not opens(expiring, "right", 50)


def test_what_is_stored_is_not_what_opens(writer: GraphWriter, tmp_path: Path) -> None:
    key = new_key()
    write(writer, put(key))
    _, secret = split_key(key.text) or ("", "")
    files = [p.read_bytes() for p in tmp_path.iterdir() if p.is_file()]
    assert any(key.digest.encode() in content for content in files)
    assert not any(secret.encode() in content for content in files)


def test_an_unknown_user_of_a_key_is_created(writer: GraphWriter) -> None:
    write(writer, put(new_key(), "user", "ada"))
    assert writer.view.user("ada").attributes == {}
    write(writer, PutUser("bo", {"n": 1}), put(new_key(), "user", "bo"))
    assert writer.view.user("bo").attributes == {"n": 1}


def test_a_revoked_key_leaves_a_tombstone_that_says_nothing(writer: GraphWriter) -> None:
    key = new_key()
    write(writer, put(key, "user", "ada"))
    (changes,) = writer.commit([WriteRequest((DeleteApiKey(key.key_id),))]).changes
    (gone,) = changes.api_keys
    assert (gone.key_id, gone.deleted, gone.version) == (key.key_id, True, 2)
    assert (gone.digest, gone.user_id, gone.label) == ("", "", "")
    assert writer.view.api_key(key.key_id) is None
    with pytest.raises(UnknownApiKey, match="revoked"):
        write(writer, DeleteApiKey(key.key_id))


def test_keys_go_with_their_user(writer: GraphWriter) -> None:
    mine, yours, reading, late = new_key(), new_key(), new_key(), new_key()
    write(writer, put(mine, "user", "ada"), put(yours, "user", "bo"), put(reading))
    # One made before, one in the same request, and a user of that id afterwards.
    write(writer, put(late, "user", "ada"), DeleteUser("ada"), PutUser("ada"))
    left = {key.key_id for key in writer.view.api_keys()}
    assert left == {yours.key_id, reading.key_id}
    assert writer.view.find_user("ada") is not None
    assert writer.view.api_keys_of("ada") == []


def test_adapters_go_with_their_user(writer: GraphWriter) -> None:
    """They were trained on that user's texts; whoever gets the id next must not speak with them."""
    mine = [("adapter.user", "ada"), ("adapter_version", "user/ada/v1"), ("adapter_version", "user/ada/v2")]
    others = [
        ("adapter.user", "adam"),
        ("adapter_version", "user/adam/v1"),
        ("adapter_version", "domain/ada/v1"),
        ("adapter.domain", "ada"),
        ("encoder", "ada"),
    ]
    write(writer, PutUser("ada"), *(PutPointer(scope, name, {"n": 1}) for scope, name in (*mine, *others)))
    late = PutPointer("adapter_version", "user/ada/v3", {"n": 1})
    committed = writer.commit([WriteRequest((late, DeleteUser("ada"), PutUser("ada")))])
    (changes,) = committed.changes
    gone = {(p.scope, p.name): p for p in changes.pointers}
    assert set(gone) == {*mine, ("adapter_version", "user/ada/v3")}
    assert all(pointer.deleted and pointer.value == {} for pointer in gone.values())
    assert {(p.scope, p.name) for p in writer.view.pointers()} == set(others)
    assert writer.view.pointers_of("ada") == []
    again = PutPointer("adapter_version", "user/ada/v1", {"n": 2}, if_version=0)
    write(writer, again)  # as if there had never been one
    assert [p.value for p in writer.view.pointers_of("ada")] == [{"n": 2}]


def test_a_purge_forgets_revoked_keys_alone(writer: GraphWriter, tmp_path: Path) -> None:
    stays, goes = new_key(), new_key()
    write(writer, put(stays), put(goes))
    write(writer, DeleteApiKey(goes.key_id))
    assert writer.purge(2) == 1
    store = open_store(tmp_path)
    view = read_view(store)
    assert [key.key_id for key in view.api_keys()] == [stays.key_id]
    pages = list(store.changes_since(0, frozenset({"api_key"})))
    assert [k.key_id for k in ChangeSet.concatenate(pages).api_keys] == [stays.key_id]
    store.close()


def test_keys_are_told_apart_by_kind_in_the_feed(writer: GraphWriter) -> None:
    committed = writer.commit([WriteRequest((put(new_key()),))])
    (changes,) = committed.changes
    assert len(changes.only(frozenset({"api_key"}))) == len(changes) == 1
    follower = GraphView(writer.view.store_id)
    follower.apply(changes.only(frozenset({"user", "pointer"})))
    assert list(follower.api_keys()) == []


@pytest.mark.parametrize(
    ("operation", "param"),
    [
        (PutApiKey("weft_1", "read", "0" * 64, 0), "key_id"),
        (PutApiKey("weft_0000000000000000", "root", "0" * 64, 0), "role"),  # type: ignore[arg-type]
        (PutApiKey("weft_0000000000000000", "read", "0" * 63, 0), "digest"),
        (PutApiKey("weft_0000000000000000", "read", "", 0), "digest"),
        (PutApiKey("weft_0000000000000000", "user", "0" * 64, 0), "user_id"),
        (PutApiKey("weft_0000000000000000", "read", "0" * 64, 0, "ada"), "user_id"),
        (PutApiKey("weft_0000000000000000", "user", "0" * 64, 0, "a/b"), "user_id"),
        (PutApiKey("weft_0000000000000000", "read", "0" * 64, 0, label="a\nb"), "label"),
        (PutApiKey("weft_0000000000000000", "read", "0" * 64, 0, label="x" * 201), "label"),
        (PutApiKey("weft_0000000000000000", "read", "0" * 64, 0, expires_at=-1), "expires_at"),
        (PutApiKey("weft_0000000000000000", "read", "0" * 64, 10**12), "created_at"),
    ],
)
def test_what_cannot_be_a_key_is_refused(writer: GraphWriter, operation: PutApiKey, param: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        write(writer, operation)
    assert caught.value.param == param
    assert writer.view.version == 0


def test_an_id_is_given_once_at_a_time(writer: GraphWriter) -> None:
    key = new_key()
    write(writer, put(key))
    with pytest.raises(Conflict, match="already"):
        write(writer, put(key))
    write(writer, DeleteApiKey(key.key_id), put(key))
    assert writer.view.api_key(key.key_id) is not None
