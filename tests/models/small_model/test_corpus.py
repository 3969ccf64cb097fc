"""The corpus: what is asked follows from the lines, in the service's own form, without held-out words."""

from __future__ import annotations

import dataclasses
import random
import re

import pytest

from benchmarks.held_out_words import HELD_OUT
from graph.context_lines import HEADER, LINE_KINDS
from models.small_model.answers import STYLES, say, shows_style
from models.small_model.conversations import ABOUT_SUBJECT, SIMILAR, Conversation, make_conversation
from models.small_model.facts import second_person
from models.small_model.lookups import make_lookups
from models.small_model.titles import make_title
from models.small_model.tokenizer import train_tokenizer
from models.small_model.words import TRAINING


def conversations(count: int, seed: int = 0) -> list[Conversation]:
    rng = random.Random(seed)
    return [make_conversation(rng, TRAINING) for _ in range(count)]


def test_the_same_seed_makes_the_same_corpus() -> None:
    assert conversations(50) == conversations(50)
    assert conversations(5) != conversations(5, seed=1)


def test_answers_name_what_they_have_to_and_have_it_from_the_lines() -> None:
    checked = 0
    for conversation in conversations(400):
        for turn in conversation.turns:
            text = say(turn.answers)
            for name in turn.named:
                assert name in text
                known = f"{conversation.system}\n{turn.question}".casefold()
                assert name.casefold() in known, (name, conversation.system, turn)
                checked += 1
    assert checked > 500


def test_the_system_message_is_the_services() -> None:
    labels = set()
    for conversation in conversations(200):
        if conversation.system is None or HEADER not in conversation.system:
            assert {turn.kind for turn in conversation.turns} <= {"nothing known", "small talk"}
            continue
        own, lines = conversation.system.split(HEADER + "\n")
        assert own == "" or own.endswith("\n\n")
        labels |= {line.partition(":")[0].removeprefix("- ") for line in lines.split("\n")}
    assert labels == set(LINE_KINDS)


def test_every_kind_of_question_occurs() -> None:
    kinds = {turn.kind for conversation in conversations(800) for turn in conversation.turns}
    assert kinds >= {
        "explain", "next", "more", "fact", "quote", "liked", "disliked", "rated", "similar", "both",
        "about me", "unknown", "nothing known", "small talk",
    }  # fmt: skip


def _subjectless() -> list[str]:
    return [re.sub(r"{\w+}", "{}", pattern) for pattern in (*ABOUT_SUBJECT, *SIMILAR)]


def test_lookups_ask_for_every_line_by_something_that_no_other_line_has() -> None:
    rng, kinds = random.Random(11), set()
    for _ in range(200):
        conversation = make_lookups(rng, TRAINING.estranged(rng) if rng.random() < 0.5 else TRAINING)
        assert conversation.system is not None
        lines = [line for line in conversation.system.split("\n")[1:] if not line.startswith("- liked:")]
        found = set()
        for turn in conversation.turns:
            (name,) = turn.named
            (line,) = (one for one in lines if re.match(rf"- \w+: {re.escape(name)}(, because of|$)", one))
            (asked,) = {
                turn.question[len(before) : -len(after)]
                for before, after in (pattern.split("{}") for pattern in _subjectless())
                if turn.question.startswith(before) and turn.question.endswith(after)
            }
            assert asked in line and name in say(turn.answers)
            if turn.kind == "quote":
                words = rf"(?<!\S){re.escape(asked)}(?!\S)"
                assert [other for other in lines if re.search(words, other)] == [line]
            found.add(line)
            kinds.add(turn.kind)
        assert found == set(lines)
    assert kinds == {"quote", "similar"}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("I live in Oslo", "You live in Oslo"),
        ("my dog and I like my garden", "Your dog and you like your garden"),
        ("I was born in Rome", "You were born in Rome"),
        ("The harbour was foggy for me", "The harbour was foggy for you"),
        ("I am afraid of bees", "You are afraid of bees"),
    ],
)
def test_second_person(said: str, told: str) -> None:
    assert second_person(said) == told


def test_estranged_words_are_in_no_list_and_serve_as_well() -> None:
    rng, fields = random.Random(3), ("adjectives", "nouns", "names", "places", "things")
    known = {word.casefold() for name in fields for word in getattr(TRAINING, name)}
    found = [word for _ in range(20) for name in fields for word in getattr(TRAINING.estranged(rng), name)]
    assert sum(word.casefold() in known for word in found) < 0.1 * len(found)
    assert len(set(found)) > 0.9 * len(found)
    for _ in range(100):
        conversation = make_conversation(rng, TRAINING.estranged(rng))
        for turn in conversation.turns:
            known_text = f"{conversation.system}\n{turn.question}".casefold()
            assert all(name.casefold() in known_text for name in turn.named)


def test_held_out_words_are_held_out() -> None:
    fields = ("adjectives", "nouns", "verbs", "names", "surnames", "places", "things", "foreign")
    known, kept = (
        {word.casefold() for name in fields for word in getattr(words, name)}
        for words in (TRAINING, HELD_OUT)
    )
    assert known & kept == set()
    titles = dataclasses.replace(HELD_OUT, titles=("One (1999)",))
    assert make_title(random.Random(0), titles) == "One (1999)"


@pytest.mark.parametrize("name", STYLES)
def test_every_answer_of_a_style_shows_it_and_no_plain_one_does(name: str) -> None:
    turns = [turn for one in conversations(300) for turn in one.turns]
    assert all(shows_style(name, say(turn.answers, STYLES[name])) for turn in turns)
    assert not any(shows_style(name, say(turn.answers)) for turn in turns)


def test_a_title_has_the_same_tokens_wherever_it_stands() -> None:
    texts = [message.content for one in conversations(200) for message in one.messages()]
    tokenizer = train_tokenizer(texts, 600, 512)
    rng = random.Random(5)
    places = (
        "\n- liked: {}",
        "\n- suggested: {}, because of A",
        "because of A and {}\n- ",
        "liked {}.",
        "to {}?",
    )
    for _ in range(200):
        title = make_title(rng, HELD_OUT)
        alone = tokenizer.backend_tokenizer.encode(f" {title}").ids
        for place in places:
            ids = tokenizer.backend_tokenizer.encode(place.format(title)).ids
            starts = range(len(ids) - len(alone) + 1)
            assert any(ids[n : n + len(alone)] == alone for n in starts), (place, title)
