"""Conversations that ask for every line by something in it, one after the other.

To quote a line by a word in its middle, attention has to find the word, then the line's beginning. Few tokens
of an ordinary conversation depend on that, and a small model does not find out how; here every answer does.
"""

from __future__ import annotations

import random

from graph.context_lines import render
from models.small_model.conversations import Conversation, Profile, Said, Suggested, quote, similar
from models.small_model.facts import Fact
from models.small_model.titles import make_title
from models.small_model.words import Words

_MOST_LINES = 9
_OPENINGS = ("I", "I am", "My", "The", "I was in", "A", "I live", "My new")
"""Lines that begin alike cannot be told apart by how they begin."""


def make_lookups(rng: random.Random, words: Words) -> Conversation:
    """Up to nine lines, of memories or of titles with reasons, each asked for once, in any order."""
    profile, material = Profile(), _Material(rng, words)
    wanted = rng.randint(2, _MOST_LINES)
    share = rng.choice((0.0, 0.5, 1.0, 1.0))
    memories = sum(rng.random() < share for _ in range(wanted))
    profile.said += [material.said() for _ in range(memories)]
    for into in [rng.choice((profile.related, profile.suggested)) for _ in range(wanted - memories)]:
        into.append(Suggested(material.title(), tuple(material.title() for _ in range(rng.randint(1, 2)))))
    profile.liked += [material.title() for _ in range(rng.choice((0, 0, 1, 3)))]
    turns = [quote(rng, Profile(said=[one])) for one in profile.said]
    for one in (*profile.related, *profile.suggested):
        turns.append(similar(rng, words, Profile(related=[one]), known=True))
    rng.shuffle(turns)
    return Conversation(render(profile.lines()), tuple(turns))


class _Material:
    """Sentences that share no word but those they begin with, and titles, each made once."""

    def __init__(self, rng: random.Random, words: Words) -> None:
        self._rng, self._words = rng, words
        self._taken: set[str] = set()
        self._pool = [w for group in (words.nouns, words.names, words.places, words.things) for w in group]

    def said(self) -> Said:
        """Three to nine words; the subject is one or two of those behind the first."""
        rng = self._rng
        own = [self._word() for _ in range(rng.randint(2, 7))]
        first = rng.randrange(len(own))
        subject = " ".join(own[first : first + rng.choice((1, 1, 2))])
        opening = rng.choice(_OPENINGS) if rng.random() < 0.7 else self._word()
        text = " ".join([opening, *own])
        return Said(Fact(text, None, text, text, subject, text), text)

    def title(self) -> str:
        while True:
            title = make_title(self._rng, self._words)
            if title not in self._taken and len(title) < 50:
                self._taken.add(title)
                return title

    def _word(self) -> str:
        while True:
            word = (
                self._words.made_up(self._rng) if self._rng.random() < 0.3 else self._rng.choice(self._pool)
            )
            if word not in self._taken:
                self._taken.add(word)
                return word
