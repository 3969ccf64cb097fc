"""Server-sent events, however they are cut into chunks."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.errors import Unavailable
from models.language_model.server_sent_events import EventStreamReader

LINES = st.sampled_from(
    ["", "", "data: é☃", "data:𝄞", "data", "data: ", "data:  two", ": a comment", "event: x", "id", "dat: no"]
)


def _events(text: str) -> list[str]:
    """The standard's algorithm on a whole text whose lines end with LF."""
    found, data = [], list[str]()
    for line in text.split("\n")[:-1]:
        if not line and data:
            found.append("\n".join(data))
            data = []
        elif line == "data" or line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
    return found


@given(
    st.lists(st.tuples(LINES, st.sampled_from(["\n", "\r\n", "\r"]))),
    st.lists(st.integers(0, 200)),
    st.booleans(),
)
def test_cuts_and_line_ends_change_nothing(
    lines: list[tuple[str, str]], cuts: list[int], has_mark: bool
) -> None:
    # An empty line after CR that ends with LF would be the rest of a CRLF.
    ends = ["\n" if end == "\r" else end for _, end in lines] if _has_both(lines) else [e for _, e in lines]
    raw = "".join(line + end for (line, _), end in zip(lines, ends, strict=True)).encode()
    raw = b"\xef\xbb\xbf" * has_mark + raw
    reader, found, places = EventStreamReader(), list[str](), sorted({0, *cuts, len(raw)})
    for start, end in pairwise(places):
        found += reader.feed(raw[start:end])
    assert found == _events("".join(line + "\n" for line, _ in lines))


def _has_both(lines: list[tuple[str, str]]) -> bool:
    ends = {end for _, end in lines}
    return "\r" in ends and "\n" in ends


@pytest.mark.parametrize("line", [b"data: x\n", b"data\n", b"x" * 100, b": " + b"x" * 100])
def test_what_never_ends_is_refused(line: bytes) -> None:
    reader = EventStreamReader(max_event_bytes=1000)
    with pytest.raises(Unavailable, match="more than 1,000 bytes"):
        for _ in range(1001):
            assert reader.feed(line) == []


def test_many_small_events_are_not_one() -> None:
    reader = EventStreamReader(max_event_bytes=1000)
    assert sum(len(reader.feed(b"data: x\n\n: y\n")) for _ in range(1000)) == 1000
