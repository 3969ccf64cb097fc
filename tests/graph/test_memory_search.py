"""Memories are found by their vectors, and by their words while there are none."""

from __future__ import annotations

import numpy as np
import pytest

from graph.memory_search import ScoredMemories, score_memories
from graph.view import GraphView
from graph.words import Wording, similarities
from tests.graph.small_worlds import MODEL, NOW, Fact, World

ALLERGY, DOG, NORWAY, WORK = (
    "I am allergic to peanuts.",
    "My dog is called Zorblax.",
    "I want to travel to Norway one day.",
    "I work as a nurse, on night shifts.",
)


def scored(
    view: GraphView,
    user_id: str,
    text: str,
    vector: np.ndarray | None = None,
    model: str | None = None,
    now: int | None = None,
) -> ScoredMemories:
    return score_memories(view, view.user(user_id).row, Wording(text), vector, model, now)


def search(view: GraphView, text: str, **given: object) -> list[tuple[str, float]]:
    found = scored(view, "anna", text, **given).best(10)  # type: ignore[arg-type]
    return [(memory.memory_id, score) for memory, score in found]


def test_cosines_equal_brute_force() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((1_100, 8)).astype(np.float16)
    facts = [
        Fact(f"m{n}", "anna" if n % 3 else "ben", f"fact {n}", vector=vector.tolist())
        for n, vector in enumerate(vectors)
    ]
    query = rng.standard_normal(8).astype(np.float32)
    exact = vectors.astype(np.float32) @ query / np.linalg.norm(vectors.astype(np.float32), axis=1)
    own = [n for n in range(len(facts)) if n % 3]
    best = sorted(own, key=lambda n: -exact[n])[:10]
    found = search(World(facts=facts).view(), "x", vector=query, model=MODEL)
    assert [memory_id for memory_id, _ in found] == [f"m{n}" for n in best]
    assert [score for _, score in found] == pytest.approx(exact[best] / np.linalg.norm(query), abs=1e-5)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What am I alergic to?", "m0"),
        ("Which allergies do I have?", "m0"),
        ("what's the name of my dogs", "m1"),
        ("Where would I like to travel?", "m2"),
        ("what is my work", "m3"),
        ("NORWEGIAN? No: norway!", "m2"),
    ],
)
def test_words_find_a_fact(question: str, answer: str) -> None:
    facts = [Fact(f"m{n}", "anna", text) for n, text in enumerate([ALLERGY, DOG, NORWAY, WORK])]
    found = search(World(facts=facts).view(), question)
    assert found[0][0] == answer
    assert found[0][1] > 0.15
    assert all(0 <= score <= 1 for _, score in found)


def test_a_fact_of_a_moment_ago_is_among_those_with_vectors() -> None:
    # Vectors of a model that gives everything a cosine of about 0.5 at least.
    others = [Fact(f"m{n}", "anna", f"I like tea {n}", vector=(1, 1 + 0.01 * n, 0)) for n in range(20)]
    view = World(facts=[*others, Fact("new", "anna", DOG)]).view()
    given = {"vector": np.array([1, 0, 0], np.float32), "model": MODEL}
    found = search(view, "What is my dog called?", **given)
    assert found[0][0] == "new"
    # What shares nothing gets what unrelated memories get, not the top and not the bottom.
    scores = dict(search(view, "Is there rain tomorrow?", **given))
    assert len(scores) == 10
    assert "new" not in scores


def test_what_does_not_hold_is_left_out() -> None:
    facts = [
        Fact("past", "anna", "tea a", invalid_at=NOW),
        Fact("now", "anna", "tea b", NOW, NOW + 1),
        Fact("future", "anna", "tea c", valid_at=NOW + 1),
    ]
    view = World(facts=facts).view()
    assert [memory_id for memory_id, _ in search(view, "tea", now=NOW)] == ["now"]
    assert [memory_id for memory_id, _ in search(view, "tea")] == ["future", "now", "past"]


def test_another_dimension_another_model_and_no_memories() -> None:
    view = World(facts=[Fact("m0", "anna", DOG, vector=(1, 0))], users=["ben"]).view()
    for vector, model in [((1, 0, 0), MODEL), ((1, 0), "other"), ((0, 0), MODEL)]:
        assert search(view, "dog", vector=np.array(vector, np.float32), model=model)[0][0] == "m0"
    assert scored(view, "ben", "dog").best(5) == []
    assert scored(view, "anna", "dog").best(0) == []


def test_words_in_any_script() -> None:
    texts = [
        "J'adore les \u00e9t\u00e9s \u00e0 Montr\u00e9al",
        "\u0440\u044b\u0431\u0430",
        "l\u0131ke STRASSE",
        "",
    ]
    assert Wording("ete montreal").scores(texts).argmax() == 0
    assert Wording("\u0420\u042b\u0411\u0410").scores(texts)[1] == 1
    assert Wording("stra\u00dfe").scores(texts)[2] == 1
    assert not Wording("").scores(texts).any()
    assert not Wording("?!").scores(texts).any()
    assert len(Wording("dog").scores([])) == 0


def test_titles_named_in_a_question() -> None:
    titles = ["Alien (1979)", "Aliens (1986)", "Matrix, The (1999)", "It (1990)", "Wheat", "(500)"]
    named, _ = Wording("Is Alien any good, or the matrix, or heat?").of_titles(titles, [""] * len(titles))
    assert named[[0, 2]].tolist() == [1, 1]
    assert (named[[1, 3, 4, 5]] < 0.75).all()
    _, scores = Wording("a good crime film").of_titles(["Heat", "Alien"], ["Crime Thriller", "Horror 1979"])
    assert scores[0] > 0.2 > scores[1]


def test_similar_texts() -> None:
    found = similarities([ALLERGY, "i'm ALLERGIC to peanuts!", DOG, ""])
    assert np.allclose(found, found.T)
    assert found[0, 0] == 1
    assert found[0, 1] > 0.7
    assert found[0, 2] < 0.2
    assert found[3].max() == 0
