"""What of a node a text model reads, and when two texts count as the same."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.node_text import item_text, memory_text, text_digest
from graph.schema import Item, Memory


@pytest.mark.parametrize(
    ("title", "tags", "year", "text", "expected"),
    [
        (
            "Toy Story",
            ("Adventure", "Animation", "Children"),
            1995,
            "A cowboy doll is threatened.",
            "Toy Story (1995). Adventure, Animation, Children. A cowboy doll is threatened.",
        ),
        ("Toy Story (1995)", (), 1995, "", "Toy Story (1995)."),
        ("Toy Story (1994)", (), 1995, "", "Toy Story (1994) (1995)."),
        ("1984", (), 1984, "", "1984 (1984)."),
        ("Ran", (), None, "", "Ran."),
        ("Who's There?", ("Drama",), None, "  \n", "Who's There? Drama."),
        (" Jaws ", (" Fear",), None, " Sharks!\n", "Jaws. Fear. Sharks!"),
        ("Jaws", ("x",), None, "no stop", "Jaws. x. no stop."),
    ],
)
def test_an_item_as_sentences(
    title: str, tags: tuple[str, ...], year: int | None, text: str, expected: str
) -> None:
    assert item_text(Item(3, "i", title, tags, year, text, 7)) == expected


def test_a_memory_is_its_text() -> None:
    assert memory_text(Memory(0, "m", 1, "likes\ntea ", 2)) == "likes\ntea "


def test_neither_row_id_nor_version_is_part_of_the_text() -> None:
    assert item_text(Item(0, "a", "T", ("x",), 1, "y", 1)) == item_text(Item(9, "b", "T", ("x",), 1, "y", 2))


@given(st.text(max_size=30))
def test_a_digest_is_half_of_sha256(text: str) -> None:
    assert text_digest(text) == hashlib.sha256(text.encode("utf-8")).digest()[:16].hex()
