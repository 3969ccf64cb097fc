"""Postings against brute force over sets of trigrams."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.trigram_index import (
    MAX_QUERY_CHARACTERS,
    MAX_QUERY_WORDS,
    REST_WEIGHT,
    WORD_EXPONENT,
    TrigramIndex,
    trigrams,
    words,
)

TITLES = [
    "Matrix, The (1999)",
    "The Matrix Reloaded",
    "Animatrix, The (2003)",
    "Amélie (Fabuleux destin d'Amélie Poulain, Le) (2001)",
    "Godfather, The (1972)",
    "M*A*S*H (a.k.a. MASH) (1970)",
    "Matador, The (2005)",
    "9 (2009)",
    "...And Justice for All (1979)",
    "(500) Days of Summer",
    "(1984)",
    "東京物語 (1953)",
    "???",
    "",
]


def padded(word: str) -> set[str]:
    text = f"  {word} "
    return {text[i : i + 3] for i in range(len(text) - 2)}


def outside_parentheses(text: str) -> str:
    """Titles here never nest them."""
    kept, depth = "", 0
    for character in text:
        depth += character == "("
        kept += character if depth == 0 else " "
        depth -= character == ")"
    return kept if kept.strip() or not text else text


def brute_force(held: dict[int, str], query: str) -> dict[int, float]:
    """The formula of `TrigramIndex`, text by text."""
    sets = {row: set().union(*(padded(w) for w in words(text))) for row, text in held.items()}
    main = {
        row: set().union(*(padded(w) for w in words(outside_parentheses(text)))) for row, text in held.items()
    }
    by_word = {word: padded(word) for word in words(query)}
    grams = set().union(*by_word.values())
    df = {g: sum(g in s for s in sets.values()) for g in grams}
    idf = {g: math.log(1 + len(held) / df[g]) for g in grams if df[g]}
    if not idf:
        return {}
    mean = sum(idf.values()) / len(idf)
    mass = {word: sum(idf.get(g, mean) for g in own) for word, own in by_word.items()}
    scores = {}
    for row, have in sets.items():
        if have & grams:
            covered = sum(
                mass[word] * (sum(idf[g] for g in own & have) / mass[word]) ** WORD_EXPONENT
                for word, own in by_word.items()
            )
            rest = max(len(main[row]) - len(have & grams), 0)
            scores[row] = covered / sum(mass.values()) / (1 + REST_WEIGHT * rest / len(grams))
    return scores


def found(index: TrigramIndex, query: str) -> dict[int, float]:
    rows, scores = index.scores(query)
    assert rows.dtype == np.int64 and scores.dtype == np.float32
    assert len(set(rows.tolist())) == len(rows) == len(scores)
    assert ((scores > 0) & (scores <= 1)).all()
    return dict(zip(rows.tolist(), scores.tolist(), strict=True))


def filled(titles: list[str]) -> TrigramIndex:
    index = TrigramIndex()
    index.upsert(np.arange(len(titles)), titles)
    return index


_plain = st.text("abé ,'", max_size=12)
_texts = st.sampled_from(TITLES) | _plain | st.builds("{} ({}){}".format, _plain, _plain, _plain)
_writes = st.lists(
    st.tuples(st.just("upsert"), st.lists(st.tuples(st.integers(0, 30), _texts), max_size=8))
    | st.tuples(st.just("remove"), st.lists(st.integers(0, 35), max_size=8)),
    max_size=12,
)


@given(writes=_writes, queries=st.lists(_texts | st.sampled_from(["the matrx", "amelie p"]), min_size=1))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_scores_equal_brute_force_after_any_writes(
    writes: list[tuple[str, list]], queries: list[str]
) -> None:
    index = TrigramIndex()
    held: dict[int, str] = {}
    for kind, what in writes:
        if kind == "upsert":
            index.upsert(np.array([row for row, _ in what], np.int64), [text for _, text in what])
            held.update(what)
        else:
            gone = {row for row in what if held.pop(row, None) is not None}
            assert index.remove(np.array(what, np.int64)) == len(gone)
        assert len(index) == len(held)
        assert [row in index for row in range(36)] == [row in held for row in range(36)]
    for query in queries:
        assert found(index, query) == pytest.approx(brute_force(held, query), abs=1e-6)


def test_scores_do_not_depend_on_the_order_of_the_writes() -> None:
    straight = filled(TITLES)
    crooked = filled([*TITLES[::-1], "gone", "gone too"])
    crooked.remove(np.array([len(TITLES), len(TITLES) + 1]))
    crooked.upsert(np.arange(len(TITLES)), TITLES)
    for query in ("the matrix", "godfathr", "amelie"):
        assert found(straight, query) == found(crooked, query)


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("the matrx", 0),
        ("MATRIX", 0),
        ("amelie", 3),
        ("amélie poulain", 3),
        ("godfathr", 4),
        ("mash", 5),
        ("justice for all", 8),
        ("1984", 10),
        ("東京物語", 11),
        ("???", 12),
    ],
)
def test_best_title(query: str, title: int) -> None:
    scores = found(filled(TITLES), query)
    assert max(scores, key=lambda row: (scores[row], -row)) == title


@pytest.mark.parametrize("title", ["The Matrix", "Matrix, The", "matrix the", "Thé  MATRIX!"])
def test_same_words_score_one(title: str) -> None:
    assert found(filled([title, "Another"]), "the matrix")[0] == pytest.approx(1)


def test_parentheses_are_searched_and_cost_nothing() -> None:
    index = filled(["Seven (a.k.a. Se7en) (1995)", "Seven Samurai"])
    assert found(index, "seven")[0] == pytest.approx(1)
    assert found(index, "se7en 1995")[0] > 0.9


def test_nothing_shared_is_nothing_found() -> None:
    index = filled(["Alien"])
    assert found(index, "xyz") == {} == found(index, "") == found(TrigramIndex(), "alien")
    index.remove(np.array([0]))
    assert found(index, "alien") == {}


def test_what_a_query_has_too_much_is_not_read() -> None:
    index = filled(["alien", "heat"])
    assert found(index, "alien" + " " * MAX_QUERY_CHARACTERS + "heat") == found(index, "alien")
    assert found(index, "x " * MAX_QUERY_WORDS + "heat") == {}
    long = "".join(np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), 20_000))
    assert found(filled([long]), long) == found(filled([long]), long[:MAX_QUERY_CHARACTERS])


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 rows and 1 texts"):
        TrigramIndex().upsert(np.array([1, 2]), ["one"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don’t Look Now", ["dont", "look", "now"]),
        ("Pokémon: Æon & Łódź", ["pokemon", "aeon", "and", "lodz"]),
        ("Straße", ["strasse"]),
        ("नमस्ते", ["नमसते"]),
        ("$ (!)", ["$", "(!)"]),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_trigrams_mark_where_a_word_begins_and_ends() -> None:
    assert trigrams("Up up") == {"  u", " up", "up "}
