"""Facts that a user may have told, each with the question that asks for it and the answer."""

# ruff: noqa: E501  (lists of sentences)
from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from models.small_model.words import Words


@dataclass(frozen=True)
class Fact:
    """One sentence of a user."""

    text: str
    """As the user said it."""
    question: str | None
    """What asks for it; None for a remark that one only asks about by its subject."""
    answer: str
    """The sentence in the second person, without its full stop."""
    value: str
    """What an answer has to name."""
    subject: str
    """What it is about, for "What did I say about ...?"."""
    key: str
    """Two facts of one key do not stand in one context: the question would have two answers."""


_SECOND = {
    "I": "you", "i": "you", "me": "you", "my": "your", "My": "Your", "mine": "yours", "am": "are",
    "myself": "yourself", "was": "were", "I'm": "you are", "I've": "you have",
}  # fmt: skip


def second_person(text: str) -> str:
    """A sentence in the first person as one tells it its speaker: "my dog and I" is "your dog and you"."""
    found: list[str] = []
    for word in text.split(" "):
        if word == "was" and (not found or found[-1].lower() != "you"):
            found.append(word)
        else:
            found.append(_SECOND.get(word, word))
    told = " ".join(found)
    return told[:1].upper() + told[1:]


def make_fact(rng: random.Random, words: Words) -> Fact:
    """A fact; some go on after what is asked for: "I live in Oslo with my sister"."""
    found = rng.choice(_MAKERS)(rng, words)
    if found.question is None or rng.random() > 0.2:
        return found
    tail = rng.choice(_TAILS).format(
        name=_person(rng, words), place=_place(rng, words), day=rng.choice(_DAYS), year=rng.randint(1950, 2026),
        adjective=rng.choice(words.adjectives), thing=rng.choice(words.things),
    )  # fmt: skip
    return replace(found, text=found.text + tail, answer=second_person(found.answer + tail))


_PEOPLE = (
    "sister", "brother", "mother", "father", "boss", "neighbour", "best friend", "dentist", "doctor", "teacher",
    "partner", "wife", "husband", "daughter", "son", "cousin", "aunt", "uncle", "roommate", "landlord", "coach",
    "grandmother", "grandfather", "niece", "nephew", "hairdresser", "colleague", "trainer", "tutor",
)  # fmt: skip
_PETS = ("dog", "cat", "horse", "parrot", "rabbit", "hamster", "goldfish", "turtle", "boat", "car", "bike")
_FAVOURITES = (
    "colour", "dish", "season", "author", "actor", "director", "genre", "city", "drink", "song", "band", "flower",
    "game", "sport", "language", "painter", "composer", "dessert", "animal", "cinema", "bookshop", "hobby",
)  # fmt: skip
_THINGS_OF = (
    "job", "shoe size", "street", "phone", "password", "bus", "school", "team", "nickname", "surname", "dream",
    "room", "seat", "breakfast", "plan for the weekend", "middle name", "lucky number", "star sign", "budget",
)  # fmt: skip
_EVENTS = (
    "birthday", "anniversary", "wedding", "exam", "holiday", "concert", "appointment", "flight", "interview",
    "party", "book club", "film night", "move", "race", "lesson", "deadline", "dinner", "train", "visit",
)  # fmt: skip
_DOING = (
    "collect", "play", "study", "teach", "cook", "grow", "drink", "write about", "dream of", "hate", "love", "miss",
    "paint", "sell", "repair", "need", "want", "listen to", "look for", "believe in", "avoid", "save for", "fear",
    "bake", "photograph", "prefer", "enjoy", "want to learn", "read about", "never eat", "never watch",
)  # fmt: skip
_BEING = (
    "allergic to", "afraid of", "learning", "saving for", "working on", "waiting for", "tired of", "proud of",
    "good at", "bad at", "fond of", "interested in", "looking for", "training for", "writing about", "used to",
    "reading about", "dreaming of", "famous for", "curious about", "bored by",
)  # fmt: skip
_TAILS = (
    " with {name}", " on {day}s", " since {year}", ", the longer the better", " and I love it", " in {place}",
    ", but not on {day}s", " because of {name}", ", like my {name}", " for my {thing}", " and {thing}",
    " when it is {adjective}", " until {year}", ", even when I am {adjective}", " near {place}",
)  # fmt: skip
_BARE = (
    ("love", "loves"), ("prefer", "prefers"), ("hate", "hates"), ("collect", "collects"), ("enjoy", "enjoys"),
    ("avoid", "avoids"), ("read", "reads"), ("watch", "watches"), ("want", "wants"), ("play", "plays"),
    ("like", "likes"), ("miss", "misses"), ("need", "needs"), ("study", "studies"), ("never watch", "never watches"),
)  # fmt: skip
_PLACES_OF = (
    ("live", "do"), ("work", "do"), ("study", "do"), ("shop", "do"), ("swim", "do"), ("spend my summers", "do"),
    ("keep my books", "do"), ("park my bike", "do"), ("meet my friends", "do"), ("go on holiday", "do"),
    ("watch films", "do"), ("play tennis", "do"), ("grew up", "did"), ("met my wife", "did"),
    ("went to school", "did"), ("bought my bike", "did"), ("lost my keys", "did"), ("saw the sea first", "did"),
)  # fmt: skip
_PRESENT = {
    "grew up": "grow up", "met my wife": "meet my wife", "went to school": "go to school",
    "bought my bike": "buy my bike", "lost my keys": "lose my keys", "saw the sea first": "see the sea first",
}  # fmt: skip
_TOGETHER = (
    "watch films", "watch", "read", "live", "go to the cinema", "share my account", "travel", "play chess", "cook",
    "work", "sing", "go running", "discuss books", "study", "have lunch", "watch series", "go to concerts",
)  # fmt: skip
_REGULAR = (
    "watch films", "read", "go running", "work", "call my mother", "go to bed", "get up", "have time", "practise",
    "meet my friends", "go to the cinema", "drink coffee", "take the train", "have lunch", "swim", "sing",
)  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_REMARKS = (
    "the ending was too {adjective}", "loved every minute of the {noun}", "fell asleep before the {noun} came",
    "the {noun} reminded me of {place}", "{name} told me about it", "watched it with {name} in {place}",
    "the best {noun} in years", "too much {noun}, not enough {noun}", "I want to see it again with {name}",
    "my {noun} would have liked it", "a {adjective} {noun}, like {place} in the rain", "not for {name}",
    "the {noun} was {adjective} and {adjective}", "I cried when the {noun} left", "gave it to {name} for {day}",
)  # fmt: skip
_NOTES = (
    "the {noun} in {place} was {adjective}", "{name} comes to {place} in {month}", "dinner with {name} on {day}",
    "the {adjective} {noun} belongs to {name}", "{name} and {name} moved to {place}", "no {thing} on {day}",
    "{place} is too {adjective} for me", "{name} lent me a {noun}", "the {noun} needs a {adjective} {noun}",
    "the train to {place} leaves on {day} at {time}", "{name} never liked my {noun}", "buy {thing} and {thing}",
    "ask {name} about the {noun}", "{thing} make me think of {place}", "the {noun} costs {number} euros",
)  # fmt: skip


def _object(rng: random.Random, words: Words) -> str:
    """What a fact names: a thing, made up or not, perhaps with a describing word."""
    roll = rng.random()
    if roll < 0.45:
        thing = rng.choice(words.things)
    elif roll < 0.7:
        thing = f"{rng.choice(words.adjectives)} {rng.choice((rng.choice(words.nouns), words.made_up(rng)))}s"
    else:
        thing = words.made_up(rng)
    return f"{thing} and {rng.choice(words.things)}" if rng.random() < 0.12 else thing


def _person(rng: random.Random, words: Words) -> str:
    roll = rng.random()
    if roll < 0.25:
        return words.made_up(rng).capitalize()
    name = rng.choice(words.names)
    return f"{name} {rng.choice(words.surnames)}" if roll < 0.45 else name


def _place(rng: random.Random, words: Words) -> str:
    roll = rng.random()
    if roll < 0.3:
        return words.made_up(rng).capitalize()
    if roll < 0.4:
        return f"{rng.choice(words.adjectives).capitalize()} {rng.choice(words.nouns).capitalize()}"
    return rng.choice(words.places)


def _time(rng: random.Random) -> str:
    return rng.choice(
        (
            f"{rng.randint(1, 12)}:{rng.choice(('00', '15', '30', '45'))}",
            str(rng.randint(1, 24)),
            f"{rng.randint(1, 12)} o'clock",
        )
    )


def _when(rng: random.Random) -> str:
    return rng.choice(
        (
            f"on {rng.randint(1, 31)} {rng.choice(_MONTHS)}",
            f"on {rng.choice(_DAYS)}",
            f"in {rng.choice(_MONTHS)}",
            f"on {rng.choice(_DAYS)} at {_time(rng)}",
            f"at {_time(rng)}",
        )
    )


def _fact(text: str, question: str, value: str, subject: str, key: str) -> Fact:
    return Fact(text, question, second_person(text), value, subject, key)


def _relation(rng: random.Random, words: Words) -> Fact:
    who, name = rng.choice(_PEOPLE), _person(rng, words)
    verb = rng.choice(("is", "is called", "is"))
    return _fact(f"My {who} {verb} {name}", f"Who is my {who}?", name, f"my {who}", who)


def _pet(rng: random.Random, words: Words) -> Fact:
    pet, name = rng.choice(_PETS), _person(rng, words)
    text = rng.choice((f"I have a {pet} called {name}", f"My {pet} is called {name}"))
    return _fact(text, f"What is my {pet} called?", name, f"my {pet}", pet)


def _favourite(rng: random.Random, words: Words) -> Fact:
    what = rng.choice(_FAVOURITES)
    value = rng.choice((_object, _person, _place))(rng, words)
    return _fact(
        f"My favourite {what} is {value}",
        f"What is my favourite {what}?",
        value,
        f"my favourite {what}",
        what,
    )


def _thing_of(rng: random.Random, words: Words) -> Fact:
    """Also things that nobody has ever had, so that the question is matched with the line by its letters."""
    what = words.made_up(rng) if rng.random() < 0.4 else rng.choice((*_THINGS_OF, rng.choice(words.nouns)))
    value = rng.choice((_object(rng, words), str(rng.randint(1, 999)), _person(rng, words)))
    return _fact(f"My {what} is {value}", f"What is my {what}?", value, f"my {what}", what)


def _event(rng: random.Random, words: Words) -> Fact:
    what, when = rng.choice(_EVENTS), _when(rng)
    return _fact(f"My {what} is {when}", f"When is my {what}?", when.partition(" ")[2], f"my {what}", what)


def _habit(rng: random.Random, words: Words) -> Fact:
    verb, value = rng.choice(_DOING), _object(rng, words)
    return _fact(f"I {verb} {value}", f"What do I {verb}?", value, value, verb)


def _bare(rng: random.Random, words: Words) -> Fact:
    """Written without a subject, as notes are: "watches with two kids on Sundays"."""
    roll = rng.random()
    if roll < 0.6:
        (verb, third), value = rng.choice(_BARE), _object(rng, words)
        return Fact(f"{third} {value}", f"What do I {verb}?", f"You {verb} {value}", value, value, verb)
    verb, third = rng.choice((("watch", "watches"), ("read", "reads"), ("live", "lives"), ("work", "works")))
    if roll < 0.8:
        name = _person(rng, words)
        if rng.random() < 0.3:
            name = f"{rng.choice(('two', 'three', 'the'))} {words.made_up(rng)}s"
        return Fact(
            f"{third} with {name}",
            f"Who do I {verb} with?",
            f"You {verb} with {name}",
            name,
            name,
            f"with {verb}",
        )
    verb, third = rng.choice((("live", "lives"), ("work", "works"), ("study", "studies")))
    place = _place(rng, words)
    return Fact(
        f"{third} in {place}", f"Where do I {verb}?", f"You {verb} in {place}", place, place, f"where {verb}"
    )


def _state(rng: random.Random, words: Words) -> Fact:
    state, value = rng.choice(_BEING), _object(rng, words)
    return _fact(f"I am {state} {value}", f"What am I {state}?", value, value, state)


def _where(rng: random.Random, words: Words) -> Fact:
    (verb, do), value = rng.choice(_PLACES_OF), _place(rng, words)
    question = f"Where {do} I {_PRESENT.get(verb, verb)}?"
    if rng.random() < 0.1:
        verb, question = "was born", "Where was I born?"
    return _fact(f"I {verb} in {value}", question, value, value, f"where {verb}")


def _together(rng: random.Random, words: Words) -> Fact:
    verb, value = rng.choice(_TOGETHER), _person(rng, words)
    if rng.random() < 0.3:
        value = f"my {rng.choice(_PEOPLE)} {value}"
    often = rng.choice(("", "", "usually ", "often ", "always "))
    named = value.removeprefix("my ")
    return _fact(f"I {often}{verb} with {value}", f"Who do I {verb} with?", named, named, f"with {verb}")


def _regular(rng: random.Random, words: Words) -> Fact:
    verb, when = rng.choice(_REGULAR), _when(rng)
    if rng.random() < 0.4:
        when = rng.choice(
            (f"on {rng.choice(_DAYS)} evenings", f"after {rng.choice(_EVENTS)}", "before breakfast")
        )
    often = rng.choice(("", "", "usually ", "always "))
    value = when.partition(" ")[2]
    return _fact(f"I {often}{verb} {when}", f"When do I {verb}?", value, verb, f"when {verb}")


def _count(rng: random.Random, words: Words) -> Fact:
    what = rng.choice((words.made_up(rng) + "s", rng.choice(words.nouns) + "s", rng.choice(words.things)))
    number = str(rng.randint(2, 40))
    return _fact(f"I have {number} {what}", f"How many {what} do I have?", number, what, what)


def _preference(rng: random.Random, words: Words) -> Fact:
    what, other = _object(rng, words), rng.choice(words.things)
    return rng.choice(
        (
            _fact(f"I prefer {what} to {other}", "What do I prefer?", what, what, "prefer"),
            _fact(f"I cannot stand {what}", "What can I not stand?", what, what, "stand"),
            _fact(f"I do not eat {what}", "What do I not eat?", what, what, "not eat"),
            _fact(f"I am a {what.removesuffix('s')}", "What am I?", what.removesuffix("s"), "me", "a"),
        )
    )


def _note(rng: random.Random, words: Words) -> Fact:
    return _remark(rng, words, _NOTES)


def _remark(rng: random.Random, words: Words, patterns: tuple[str, ...]) -> Fact:
    """A sentence without a question of its own; one asks by one of the words it is made of."""
    filled: list[str] = []
    makers: dict[str, Callable[[], str]] = {
        "adjective": lambda: rng.choice(words.adjectives),
        "noun": lambda: words.made_up(rng) if rng.random() < 0.3 else rng.choice(words.nouns),
        "place": lambda: _place(rng, words),
        "name": lambda: _person(rng, words),
        "thing": lambda: rng.choice(words.things),
        "day": lambda: rng.choice(_DAYS),
        "month": lambda: rng.choice(_MONTHS),
        "time": lambda: _time(rng),
        "number": lambda: str(rng.randint(2, 900)),
    }
    asked: list[str] = []

    def fill(match: re.Match[str]) -> str:
        filled.append(makers[match[1]]())
        if match[1] in ("noun", "place", "name", "thing"):
            asked.append(f"the {filled[-1]}" if match[1] == "noun" else filled[-1])
        return filled[-1]

    text = re.sub(r"\{(\w+)\}", fill, rng.choice(patterns))
    if rng.random() < 0.6:
        text = text[:1].upper() + text[1:]
    return Fact(text, None, text, filled[-1], rng.choice(asked or filled), filled[0])


def make_remark(rng: random.Random, words: Words) -> Fact:
    """What one says of a title."""
    return _remark(rng, words, _REMARKS)


_MAKERS = (
    _relation, _relation, _pet, _favourite, _favourite, _thing_of, _thing_of, _thing_of, _event, _event,
    _habit, _habit, _habit, _state, _state, _where, _where, _where, _together, _together, _regular, _regular,
    _count, _preference, _bare, _bare, _note, _note, _note,
)  # fmt: skip
