"""What a user's context holds, and what comes first."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from graph.context import ContextQuery, Suggestion, asks_for_suggestion, fit, select
from graph.context_lines import ContextLine
from graph.errors import UnknownUser
from tests.graph.small_worlds import MODEL, NOW, Fact, World

SUGGESTIONS = (
    Suggestion("blade", "Blade Runner (1982)", ("Alien (1979)",)),
    Suggestion("aliens", "Aliens (1986)", ("Alien (1979)", "Heat (1995)")),
)
VECTORS = {"dog": (1.0, 0.1, 0.0), "food": (0.0, 1.0, 0.1), "rest": (0.1, 0.1, 1.0)}


def anna(vectors: bool) -> World:
    """A user with a few facts and ratings, among others."""
    told = [
        ("m_dog", "My dog is called Zorblax.", "dog"),
        ("m_food", "I am allergic to peanuts.", "food"),
        ("m_heat", "I saw it with my father in Berlin.", "rest"),
        *((f"m_{n}", f"On day {n} I went for a walk in park number {n}.", "rest") for n in range(12)),
    ]
    world = World(
        {
            "heat": ("Heat (1995)", ("Crime", "Thriller")),
            "alien": ("Alien (1979)", ("Horror", "Sci-Fi")),
            "aliens": ("Aliens (1986)", ("Action", "Sci-Fi")),
            "notting": ("Notting Hill (1999)", ("Romance", "Comedy")),
            "ronin": ("Ronin (1998)", ("Crime",)),
            "blade": ("Blade Runner (1982)", ("Sci-Fi",)),
        },
        [("anna", "heat", 5.0), ("anna", "alien", 4.0), ("anna", "notting", 1.0)],
        [
            Fact(
                key,
                "anna",
                text,
                vector=VECTORS[kind] if vectors else None,
                about=["heat"] * (key == "m_heat"),
            )
            for key, text, kind in told
        ],
    )
    for user in ("ben", "cleo", "dora"):
        world.ratings += [(user, "heat", 5.0), (user, "ronin", 4.5), (user, "alien", 4.0)]
        world.facts.append(Fact(f"m_{user}", user, f"My dog is called Secret-{user}."))
    return world


def ask(question: str, vectors: bool = False, kind: str = "rest", **given: object) -> list[ContextLine]:
    query = ContextQuery(
        "anna",
        question,
        NOW,
        np.array(VECTORS[kind], np.float32) if vectors else None,
        MODEL if vectors else None,
        SUGGESTIONS,
    )
    return select(anna(vectors).view(), dataclasses.replace(query, **given))  # type: ignore[arg-type]


def kinds(lines: list[ContextLine]) -> list[str]:
    return [line.kind for line in lines]


@pytest.mark.parametrize("vectors", [False, True])
def test_the_fact_that_answers_comes_first(vectors: bool) -> None:
    lines = ask("What is my dog called?", vectors, "dog")
    assert lines[0].source_id == "m_dog"
    assert lines[0].text == "My dog is called Zorblax."
    assert "liked" in kinds(lines[:2])
    lines = ask("Is there something I am allergic to?", vectors, "food")
    assert lines[0].source_id == "m_food"
    assert {"said", "suggested", "liked"} <= set(kinds(lines[:3]))  # "something" may ask for a suggestion


def test_a_question_for_a_suggestion() -> None:
    lines = ask("What should I watch next?")
    assert lines[0].kind == "suggested"
    assert lines[0].text == "Blade Runner (1982), because of Alien (1979)"
    assert {"suggested", "liked"} <= set(kinds(lines[:3]))
    lines = ask("Recommend a crime film")
    assert next(line for line in lines if line.kind == "liked").source_id == "heat"


def test_no_question() -> None:
    lines = ask("")
    assert {"said", "suggested", "liked"} <= set(kinds(lines[:5]))
    assert lines[0].source_id == "m_11"  # the newest
    assert {"disliked", "related"} <= set(kinds(lines))


def test_a_must_comes_first() -> None:
    lines = ask("Why?", must=("aliens",))
    assert (lines[0].kind, lines[0].source_id) == ("suggested", "aliens")
    assert lines[0].text == "Aliens (1986), because of Alien (1979) and Heat (1995)"
    assert ask("", must=("heat",), suggestions=(Suggestion("heat", "Heat (1995)"),))[0].source_id == "heat"
    assert ask("", must=("nothing",))[0].source_id != "nothing"


def test_memories_about_what_is_in_question() -> None:
    lines = ask("With whom did I see Heat?")
    assert lines[0].source_id == "m_heat"
    assert lines[0].text == "I saw it with my father in Berlin. (about Heat (1995))"
    assert lines[0].why == "about Heat (1995)"


def test_related_items_and_their_reasons() -> None:
    (related,) = [line for line in ask("") if line.kind == "related"]
    assert related.text == "Ronin (1998), because of Heat (1995) and Alien (1979)"


def test_rated_meanwhile_is_no_suggestion() -> None:
    world = anna(False)
    world.ratings.append(("anna", "blade", 3.0))
    lines = select(world.view(), ContextQuery("anna", "", NOW, suggestions=SUGGESTIONS))
    assert [line.source_id for line in lines if line.kind == "suggested"] == ["aliens"]


def test_a_memory_beside_the_match_comes_along() -> None:
    world = anna(False)
    world.facts = [dataclasses.replace(f, joined=["m_3"] * (f.memory_id == "m_dog")) for f in world.facts]
    lines = select(world.view(), ContextQuery("anna", "What is my dog called?", NOW))
    assert [line.source_id for line in lines if line.kind == "said"][:2] == ["m_dog", "m_3"]
    assert next(line for line in lines if line.source_id == "m_3").why == "related to a match"


def test_of_near_duplicates_the_newer_stays() -> None:
    facts = [Fact(f"m{n}", "anna", "I live in Oslo, near the old harbour.") for n in range(40)]
    facts.append(Fact("later", "anna", "I live in Oslo near the OLD harbour!"))
    facts.append(Fact("dog", "anna", "My dog is called Zorblax."))
    query = ContextQuery("anna", "Where do I live?", NOW)
    assert [line.source_id for line in select(World(facts=facts).view(), query)] == ["later", "dog"]
    facts.insert(0, facts.pop(40))
    assert [line.source_id for line in select(World(facts=facts).view(), query)] == ["m39", "dog"]


def test_the_same_words_about_other_things_are_other_facts() -> None:
    items = {"alpha": ("Alpha Station", ()), "beta": ("Beta Harbour", ())}
    loved = "I loved it with all my heart"
    facts = [
        Fact("m1", "anna", loved, about=["alpha"]),
        Fact("m2", "anna", loved, about=["beta"]),
        Fact("m3", "anna", "We moved house", valid_at=100_000_000),
        Fact("m4", "anna", "We moved house", valid_at=500_000_000),
        Fact("m5", "anna", "My sister Anna lives in a small flat near the old harbour of the city"),
        Fact("m6", "anna", "My sister Anne lives in a small flat near the old harbour of the city"),
        Fact("m7", "anna", "I am not allergic to hazelnuts, walnuts, almonds and peanuts at all"),
        Fact("m8", "anna", "I am now allergic to hazelnuts, walnuts, almonds and peanuts at all"),
    ]
    query = ContextQuery("anna", "What did I say about Alpha Station?", NOW)
    lines = select(World(items, facts=facts).view(), query)
    assert lines[0].source_id == "m1"
    assert {line.source_id for line in lines} == {fact.memory_id for fact in facts}


def test_a_repeated_fact_keeps_what_lifted_the_older_one() -> None:
    facts = [
        Fact("old", "anna", "She told me so"),
        Fact("match", "anna", "My dog is called Zorblax.", joined=["old"]),
        *(Fact(f"m{n}", "anna", f"On day {n} I went for a walk") for n in range(30)),
        Fact("new", "anna", "She told me so"),
    ]
    query = ContextQuery("anna", "What is my dog called?", NOW)
    by_id = {line.source_id: line for line in select(World(facts=facts).view(), query)}
    assert "old" not in by_id
    assert by_id["new"].score > by_id["m29"].score + 0.2


def test_paraphrases_by_vector_but_not_other_facts() -> None:
    near = [(1.0, 0.0), (0.999, 0.01)]
    same = ["I love old thrillers a lot", "A lot, I love old thrillers"]
    other = ["My son Tom was born in 2010", "My son Tim was born in 2012"]
    for texts, expected in [(same, ["m1"]), (other, ["m0", "m1"])]:
        facts = [Fact(f"m{n}", "anna", text, vector=near[n]) for n, text in enumerate(texts)]
        query = ContextQuery("anna", "x", NOW, np.array([0, 1], np.float32), MODEL)
        lines = select(World(facts=facts).view(), query)
        assert sorted(line.source_id for line in lines) == expected


def test_variety_beats_more_of_the_same() -> None:
    walks = [Fact(f"w{n}", "anna", f"I walked the dog in park {n} yesterday.") for n in range(30)]
    facts = [Fact("cat", "anna", "My dog dislikes cats."), *walks]
    lines = select(World(facts=facts).view(), ContextQuery("anna", "What about my dog?", NOW, max_lines=4))
    assert "cat" in [line.source_id for line in lines]


def test_lines_show_the_day_and_stay_short() -> None:
    facts = [
        Fact("a", "anna", "I moved\nto Oslo.", valid_at=1_700_000_000),
        Fact("b", "anna", "word " * 1_000),
    ]
    lines = {
        line.source_id: line.text for line in select(World(facts=facts).view(), ContextQuery("anna", "", NOW))
    }
    assert lines["a"] == "(2023-11-14) I moved to Oslo."
    assert len(lines["b"]) <= 400
    assert lines["b"].endswith("word\u2026")


def test_lines_are_limited_and_scores_comparable() -> None:
    lines = ask("dog", max_lines=5)
    assert len(lines) == 5
    assert all(0 <= line.score <= 1 for line in ask("dog"))
    assert len(ask("dog", max_lines=1)) == 1


def test_an_unknown_user_and_one_with_nothing() -> None:
    view = World(users=["anna"]).view()
    assert select(view, ContextQuery("anna", "dog", NOW)) == []
    assert fit([], 10, len).text == ""
    with pytest.raises(UnknownUser):
        select(view, ContextQuery("nobody", "dog", NOW))


def test_what_asks_for_a_suggestion() -> None:
    assert all(map(asks_for_suggestion, ["", "What should I watch?", "Any recommendation?", "READ next"]))
    assert not any(map(asks_for_suggestion, ["What is my dog called?", "When did I move?"]))
