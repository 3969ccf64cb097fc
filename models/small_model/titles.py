"""Titles of films and books that do not exist, in the shapes that real ones have."""

# ruff: noqa: E501  (lists of sentences)
from __future__ import annotations

import random

from models.small_model.words import Words

_CYRILLIC, _KANA = "абвгдежзиклмнопрстуфхчшыья", "あいうえおかきくけこさしすせそたちつてとなにぬねの"
_SMALL = ("of", "and", "in", "the", "to", "a", "for", "with", "on", "from", "is", "at", "by", "or", "my")


def make_title(rng: random.Random, words: Words) -> str:
    """A title; years in brackets, series, punctuation, digits and other scripts occur."""
    if words.titles:
        return rng.choice(words.titles)
    title = _bare_title(rng, words)
    roll = rng.random()
    if roll < 0.4:
        return f"{title} ({rng.randint(1920, 2026)})"
    if roll < 0.5:
        return f"{title} ({_some_words(rng, words, 1, 3)}, #{rng.randint(1, 19)})"
    return title


def _bare_title(rng: random.Random, words: Words) -> str:
    def noun() -> str:
        return _capital(_noun(rng, words))

    def adjective() -> str:
        return rng.choice(words.adjectives).capitalize()

    name, place = rng.choice(words.names), rng.choice(words.places)
    match rng.randrange(24):
        case 0 | 1:
            return f"The {adjective()} {noun()}"
        case 2:
            return f"{noun()} of {noun()}"
        case 3:
            return f"The {noun()} of {rng.choice((name, place, 'the ' + noun()))}"
        case 4:
            return f"{noun()} and {noun()}"
        case 5:
            return f"The {noun()}'s {noun()}"
        case 6:
            return f"{name} {rng.choice(words.surnames)}"
        case 7:
            return f"{name} and the {adjective()} {noun()}"
        case 8:
            return f"{rng.choice(words.verbs).capitalize()} {rng.choice((name, noun(), place))}"
        case 9:
            return f"A {noun()} in {place}"
        case 10:
            return f"{noun()} {rng.choice((str(rng.randint(2, 9)), 'II', 'III', 'IV'))}"
        case 11:
            return f"{noun()}: {_bare_title(rng, words)}" if rng.random() < 0.5 else f"{noun()}, The"
        case 12:
            return f"{rng.randint(2, 1999)} {noun()}s"
        case 13:
            return rng.choice((noun(), adjective(), name))
        case 14:
            return f"{rng.choice(('Who', 'What', 'Where', 'Why'))} {rng.choice(('Is', 'Was', 'Killed', 'Loves'))} {name}?"
        case 15:
            return f"{noun()}{rng.choice(('!', '...', '?', '*', '.com'))}"
        case 16 | 17 | 18:
            return _some_words(rng, words, 1, 6)
        case 19:
            return " ".join(_capital(words.made_up(rng)) for _ in range(rng.randint(1, 3)))
        case 20:
            other = "".join(rng.choice(rng.choice((_CYRILLIC, _KANA))) for _ in range(rng.randint(2, 6)))
            return f"{rng.choice((rng.choice(words.foreign), other))} {rng.choice(('', noun(), rng.choice(words.foreign)))}".strip()
        case 21:
            return rng.choice((_initials(rng), noun().upper(), f"{_initials(rng)} {noun()}"))
        case 22:
            return f"{noun()} ({rng.choice(('a.k.a. ', ''))}{_some_words(rng, words, 1, 3)})"
        case _:
            return f"{name}'s {rng.choice(('', adjective() + ' '))}{noun()}"


def _some_words(rng: random.Random, words: Words, least: int, most: int) -> str:
    """Any words in a row: the model shall not expect that a title makes sense."""
    found = []
    for n in range(rng.randint(least, most)):
        pool = rng.choice(
            (words.nouns, words.adjectives, words.verbs, words.names, words.surnames, words.things)
        )
        word = words.made_up(rng) if rng.random() < 0.3 else rng.choice(pool)
        if n and rng.random() < 0.25:
            found.append(rng.choice(_SMALL))
        found.append(_capital(word))
    return " ".join(found)


def _noun(rng: random.Random, words: Words) -> str:
    roll = rng.random()
    if roll < 0.2:
        return words.made_up(rng)
    return rng.choice(words.foreign if roll < 0.22 else words.nouns)


def _initials(rng: random.Random) -> str:
    between = rng.choice((".", "*", "-", "·"))
    return between.join(rng.choice("ABCDEFGHIJKLMNOPRSTUVWXYZ") for _ in range(rng.randint(2, 4)))


def _capital(word: str) -> str:
    return word[:1].upper() + word[1:]
