"""`fit` holds its budget whatever the counts, and the same lines are always the same text."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from graph.context import fit
from graph.context_lines import HEADER, LINE_KINDS, ContextLine, render, render_line, shortened

texts = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=40)
lines = st.lists(
    st.builds(
        ContextLine,
        st.sampled_from(LINE_KINDS),
        st.sampled_from(["memory", "item"]),
        st.sampled_from(["a", "b", "c", "d"]),
        texts,
        st.floats(0, 1),
    ),
    max_size=12,
)


def words(text: str) -> int:
    return len(text.split())


def unruly(text: str) -> int:
    """Counts that are neither additive nor monotonic."""
    return zlib.crc32(text.encode()) % 30 + 5 * text.count("\n")


@settings(max_examples=150, deadline=None)
@given(lines=lines, budget=st.integers(0, 90), count=st.sampled_from([words, unruly, len]))
def test_the_budget_holds(lines: list[ContextLine], budget: int, count: Callable[[str], int]) -> None:
    fitted = fit(lines, budget, count)
    assert fitted.text == render(fitted.lines)
    assert fitted.tokens == (count(fitted.text) if fitted.lines else 0) <= budget
    assert all(line in lines for line in fitted.lines)
    places = [LINE_KINDS.index(line.kind) for line in fitted.lines]
    assert places == sorted(places)


@settings(max_examples=50, deadline=None)
@given(lines=lines, data=st.data())
def test_the_same_lines_are_the_same_text(lines: list[ContextLine], data: st.DataObject) -> None:
    everything = fit(lines, 10_000, words)
    assert len(everything.lines) == len(lines)
    assert fit(data.draw(st.permutations(lines)), 10_000, words).text == everything.text


def test_shorter_lines_follow_one_that_is_too_long() -> None:
    long = ContextLine("said", "memory", "m1", "word " * 30)
    short = [ContextLine("liked", "item", f"i{n}", f"Film {n}") for n in range(3)]
    budget = words(render(short))
    assert fit([short[0], long, *short[1:]], budget, words).lines == tuple(short)
    assert fit([long, *short], budget - 1, words).lines == tuple(short[:2])


def test_counts_of_parts_that_say_too_little_cost_the_last_lines() -> None:
    chosen = [ContextLine("said", "memory", f"m{n}", f"fact {n}") for n in range(5)]

    def count(text: str) -> int:
        return len(text) if text.startswith(HEADER) and text != HEADER else 1

    budget = len(render(chosen[:3]))
    assert fit(chosen, budget, count).lines == tuple(chosen[:3])


def test_no_room_at_all() -> None:
    line = ContextLine("said", "memory", "m1", "I have a dog.")
    for budget in (0, 1, words(render([line])) - 1):
        fitted = fit([line], budget, words)
        assert (fitted.text, fitted.lines, fitted.tokens) == ("", (), 0)
    assert fit([], 100, words).text == ""


def test_a_line_stays_a_line() -> None:
    line = ContextLine("said", "memory", "m1", "one\n\ntwo\u2028three")
    assert render_line(line) == "- said: one two three"


@given(text=st.text(max_size=600), limit=st.integers(2, 50))
def test_shortened_texts(text: str, limit: int) -> None:
    short, whole = shortened(text, limit), " ".join(text.split())
    assert len(short) <= limit
    if len(whole) <= limit:
        assert short == whole
    else:
        assert short.endswith("\u2026")
        assert whole.startswith(short[:-1])


def test_long_texts_are_cut_after_a_word() -> None:
    assert shortened("one two three", 9) == "one two\u2026"
    assert shortened("one two three", 8) == "one two\u2026"
    assert shortened("one two three", 7) == "one\u2026"
    assert shortened("abcdefgh", 5) == "abcd\u2026"
