"""Short texts found by the character trigrams they share with a query, whatever the typos."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

WORD_EXPONENT = 0.5
"""Below 1, a little of every word of the query counts for more than all of a single word."""

REST_WEIGHT = 0.2
"""What a title's trigrams that the query lacks take off, for as many of them as the query has trigrams."""

MAX_QUERY_WORDS, MAX_QUERY_CHARACTERS = 32, 200
"""More of a query is not read: what is longer is no title, and every trigram costs time."""

_PARENTHESES = re.compile(r"\([^()]*\)")
_NOT_ASCII_WORD = re.compile(r"[^0-9a-z]+")
_APOSTROPHES = dict.fromkeys(map(ord, "'\u2019\u02bc`\u00b4"))
# Letters that casefolding and decomposition leave, though keyboards without them write them so.
_LETTERS = str.maketrans(
    {"æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i", "&": " and "}
)


class TrigramIndex:
    r"""Rows and their texts, one each, with the rows of every trigram at hand.

    A text counts as the set of trigrams of its words, each word padded, so that word order does not matter
    ("Matrix, The" is "The Matrix"). For a query q of the words v and a text t, sets of trigrams all of them,

        score(q, t) = sum over v of idf(v) * (idf(v & t) / idf(v)) ** WORD_EXPONENT / sum over v of idf(v)
                      / (1 + REST_WEIGHT * |rest| / |q|)

    idf(S) is the sum over S of log(1 + N / df), N texts being held now and df of them having the trigram; one
    that none has counts as the mean of the query's others, for a typo is no rare word. `rest` is what t has
    beyond its trigrams in q, parentheses aside: MovieLens and goodbooks put years, series and other titles
    there. The score is in [0, 1], 1 for a query of the same words, and depends on what is held alone,
    not on the order of the writes.

    Not locked: whoever shares an index among threads keeps writes and everything else apart.
    """

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}  # trigram -> place in the postings
        self._postings: list[_Posting] = []
        self._slots: dict[int, int] = {}  # row -> slot
        self._free: list[int] = []  # slots that removals left
        self._rows = np.empty(0, np.int64)  # [capacity]: slot -> row
        self._sizes = np.empty(0, np.int32)  # [capacity]: slot -> trigrams outside parentheses
        self._grams: list[Int32] = []  # slot -> places in the postings

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, row: int) -> bool:
        return row in self._slots

    def upsert(self, rows: Int64, texts: Sequence[str]) -> None:
        """Set the texts of rows [m]; the last wins where a row comes twice."""
        if len(rows) != len(texts):
            raise ValueError(f"{len(rows)} rows and {len(texts)} texts")
        latest = dict(zip(np.asarray(rows, np.int64).tolist(), texts, strict=True))
        self.remove(np.fromiter(latest, np.int64, len(latest)))
        taken: defaultdict[int, list[int]] = defaultdict(list)  # place in the postings -> slots
        for row, text in latest.items():
            slot = self._new_slot(row)
            grams = trigrams(text)
            places = [self._place(gram) for gram in grams]
            self._grams[slot] = np.array(places, np.int32)
            self._sizes[slot] = len(trigrams(_main_part(text))) if "(" in text else len(grams)
            for place in places:
                taken[place].append(slot)
        for place, slots in taken.items():
            self._postings[place].add(slots)

    def remove(self, rows: Int64) -> int:
        """Forget rows [m], unknown ones ignored; returns how many there were."""
        slots = [
            s for r in np.asarray(rows, np.int64).tolist() if (s := self._slots.pop(r, None)) is not None
        ]
        if not slots:
            return 0
        gone = np.zeros(len(self._rows), np.bool_)
        gone[slots] = True
        for place in np.unique(np.concatenate([self._grams[slot] for slot in slots])).tolist():
            self._postings[place].drop(gone)
        for slot in slots:
            self._grams[slot] = _NO_GRAMS
        self._free += slots
        return len(slots)

    def scores(self, text: str) -> tuple[Int64, Float32]:
        """Rows [m] that share a trigram with `text`, in no particular order, with scores [m] in (0, 1].

        Of `text`, the first MAX_QUERY_WORDS words within the first MAX_QUERY_CHARACTERS are read.
        O(texts held * words of the query), without Python per text.
        """
        query = [_word_trigrams(word) for word in dict.fromkeys(_query_words(text))]
        grams = sorted(set().union(*query))
        postings = {gram: posting for gram in grams if (posting := self._posting(gram)) is not None}
        if not postings:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        capacity = len(self._rows)
        shared = np.bincount(np.concatenate([p.slots for p in postings.values()]), minlength=capacity)
        found = np.flatnonzero(shared)
        idf = {gram: math.log1p(len(self) / posting.count) for gram, posting in postings.items()}
        mean = sum(idf.values()) / len(idf)
        whole, total = 0.0, np.zeros(len(found))
        for word in query:
            mass = sum(idf.get(gram, mean) for gram in word)
            whole += mass
            known = [gram for gram in word if gram in postings]
            if known:
                lists = [postings[gram].slots for gram in known]
                weights = np.repeat([idf[gram] / mass for gram in known], [len(slots) for slots in lists])
                covered = np.bincount(np.concatenate(lists), weights, capacity)[found]
                total += mass * covered**WORD_EXPONENT
        rest = np.maximum(self._sizes[found] - shared[found], 0)
        # Rounding may carry a perfect match beyond 1.
        scores = np.minimum(total / whole / (1 + REST_WEIGHT * rest / len(grams)), 1)
        return self._rows[found], scores.astype(np.float32)

    def _posting(self, gram: str) -> _Posting | None:
        place = self._ids.get(gram)
        return None if place is None or not self._postings[place].count else self._postings[place]

    def _new_slot(self, row: int) -> int:
        if self._free:
            slot = self._free.pop()
        else:
            slot = len(self._grams)
            self._grams.append(_NO_GRAMS)
            if slot == len(self._rows):
                room = max(64, slot * 3 // 2)
                self._rows = np.resize(self._rows, room)
                self._sizes = np.resize(self._sizes, room)
        self._slots[row] = slot
        self._rows[slot] = row
        return slot

    def _place(self, gram: str) -> int:
        place = self._ids.setdefault(gram, len(self._postings))
        if place == len(self._postings):
            self._postings.append(_Posting())
        return place


class _Posting:
    """Slots of the texts that have one trigram, in an array with room to grow."""

    __slots__ = ("_array", "count")

    def __init__(self) -> None:
        self._array = np.empty(2, np.int32)
        self.count = 0

    @property
    def slots(self) -> Int32:
        return self._array[: self.count]

    def add(self, slots: list[int]) -> None:
        count = self.count + len(slots)
        if count > len(self._array):
            grown = np.empty(max(count, len(self._array) * 3 // 2), np.int32)
            grown[: self.count] = self.slots
            self._array = grown
        self._array[self.count : count] = slots
        self.count = count

    def drop(self, gone: npt.NDArray[np.bool_]) -> None:
        kept = self.slots[~gone[self.slots]]
        self.count = len(kept)
        self._array[: self.count] = kept


_NO_GRAMS: Int32 = np.empty(0, np.int32)


def trigrams(text: str) -> set[str]:
    """The trigrams of the words of `text`, each word with two spaces before it and one after."""
    return set().union(*map(_word_trigrams, words(text)))


def _query_words(text: str) -> list[str]:
    return words(text[:MAX_QUERY_CHARACTERS])[:MAX_QUERY_WORDS]


def _word_trigrams(word: str) -> list[str]:
    """Trigrams of one word in order, without duplicates."""
    padded = f"  {word} "
    return list(dict.fromkeys(padded[i : i + 3] for i in range(len(padded) - 2)))


def _main_part(text: str) -> str:
    """The text without what stands in parentheses, unless nothing else does."""
    outside = _PARENTHESES.sub(" ", text)
    return text if outside.isspace() else outside


def words(text: str) -> list[str]:
    """Words without case, accents and punctuation; of a text with nothing else, its signs as they are."""
    folded = text.casefold().translate(_APOSTROPHES).translate(_LETTERS)
    if folded.isascii():
        found = _NOT_ASCII_WORD.sub(" ", folded).split()
    else:
        found = "".join(map(_folded, unicodedata.normalize("NFKD", folded))).split()
    return found or text.casefold().split()


def _folded(character: str) -> str:
    if character.isalnum():
        return character
    # Accents go; signs that carry a vowel, as in Devanagari, belong to their word.
    if unicodedata.category(character).startswith("M"):
        return "" if unicodedata.combining(character) else character
    return " "
