"""Version tokens and change sets."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.errors import ForeignToken, InvalidInput
from graph.schema import (
    ALL_KINDS,
    RATING_DTYPE,
    ApiKey,
    ChangeSet,
    Item,
    Memory,
    Pointer,
    Relation,
    TextVector,
    Token,
    User,
    is_id,
    is_label,
    is_text,
)


@given(st.from_regex(r"[0-9a-f]{12}", fullmatch=True), st.integers(0, 10**18 - 1))
def test_a_token_survives_its_text(store_id: str, version: int) -> None:
    token = Token(store_id, version)
    assert Token.parse(str(token)) == token
    assert token.version_in(store_id) == version


@pytest.mark.parametrize(
    "text",
    ["", ".", "7", "abc", "abc.", ".7", "abc.-1", "abc.1.5x", "abc.+1", "abc. 7", "abc.٣", "abc." + "9" * 19],
)
def test_other_texts_are_no_tokens(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Token.parse(text)
    assert caught.value.param == "min_version"


@given(st.text(max_size=40))
def test_any_text_is_a_token_or_refused(text: str) -> None:
    try:
        token = Token.parse(text)
    except InvalidInput:
        return
    assert token.store_id
    assert 0 <= token.version < 10**18


def test_a_token_of_another_store_is_foreign() -> None:
    with pytest.raises(ForeignToken, match=r"mine\.3 .*'mine'.*'yours'") as caught:
        Token("mine", 3).version_in("yours")
    assert (caught.value.status, caught.value.retryable) == (409, False)


def changes(first: int, last: int, row: int) -> ChangeSet:
    return ChangeSet(
        first,
        last,
        [User(row, f"u{row}", {}, last)],
        [Item(row, f"i{row}", "", (), None, "", last)],
        [Memory(row, f"m{row}", row, "", last)],
        [Pointer("s", f"p{row}", {}, last)],
        np.array([(row, row, 3.0, 0, last, False)], RATING_DTYPE),
        [TextVector("item", row, "m", "0" * 32, b"\0\x3c", last)],
        [Relation(row, "about", "item", row, last)],
        [ApiKey(f"weft_{row:016x}", "read", "", "0" * 64, "", 0, None, last)],
    )


@pytest.mark.parametrize("kind", sorted(ALL_KINDS))
def test_a_filtered_change_set_keeps_its_span(kind: str) -> None:
    whole = changes(4, 6, 1)
    part = whole.only(frozenset((kind,)))  # type: ignore[arg-type]
    assert (part.from_version, part.to_version, len(part)) == (4, 6, 1)
    plural = {"memory": "memories"}.get(kind, kind + "s")
    assert list(getattr(part, plural)) == list(getattr(whole, plural))
    assert whole.only(ALL_KINDS) is whole
    assert len(whole.only(frozenset())) == 0


def test_pages_concatenate() -> None:
    joined = ChangeSet.concatenate([changes(0, 9, 1), ChangeSet(0, 9), changes(0, 9, 2)])
    assert (joined.from_version, joined.to_version, len(joined)) == (0, 9, 16)
    assert [u.row for u in joined.users] == [m.row for m in joined.memories] == [1, 2]
    assert [v.row for v in joined.text_vectors] == [r.memory_row for r in joined.relations] == [1, 2]
    assert [k.key_id[-1] for k in joined.api_keys] == ["1", "2"]
    assert joined.ratings["user_row"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "text", ["a", "x" * 128, "a b,c", "Zoë☃", "👩\u200d🚀", "a\u00a0b", "...", ".a", "a\u00ad", "\U000f0000"]
)
def test_what_may_be_an_id(text: str) -> None:
    assert is_id(text)
    assert is_label(text, 128)


@pytest.mark.parametrize(
    "text",
    ["", "x" * 129, " a", "a\u3000", "a/b", ".", "..", "a\0", "a\nb", "a\n", "a\x7fb", "a\x85b", "a\ud83d"],
)
def test_what_may_not(text: str) -> None:
    assert not is_id(text)


@given(st.text(st.characters(exclude_categories=()), max_size=4))
def test_labels_and_texts(text: str) -> None:
    categories = {unicodedata.category(character) for character in text}
    assert is_label(text, 3) is (0 < len(text) <= 3 and not text.isspace() and not categories & {"Cc", "Cs"})
    assert is_text(text, 3) is (len(text) <= 3 and "\0" not in text and "Cs" not in categories)
    trimmed = bool(text) and text == text.strip() and text not in (".", "..") and "/" not in text
    assert is_id(text) is (trimmed and not categories & {"Cc", "Cs"})
