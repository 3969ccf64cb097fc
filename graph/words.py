r"""Texts compared by the words they share: no index, no dictionary, whatever the endings and typing errors.

A word counts as its character trigrams, a space before and after it: "dog" is " do", "dog", "og ". All texts
are looked through at once, as one array of characters: nothing is kept, so nothing can be out of date.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
UInt32 = npt.NDArray[np.uint32]
UInt64 = npt.NDArray[np.uint64]

MAX_READ_CHARS = 2_000
"""More of a text is not read."""
MAX_QUERY_WORDS, MAX_QUERY_CHARS = 48, 600

LEAST_SHARE = 0.3
"""Up to this share of its trigrams a word counts as absent: short words share some by chance."""
STOP_WORD_WEIGHT = 0.1
SURE_TRIGRAMS = 5
"""A title of so many trigrams, five letters in one word, is sure to be meant where it is named."""

_STOP_WORDS = frozenset(
    """
    a about am an and any are as at be been but by can could did do does for from had has have he her him
    his how i id if im in into is it its ive like me my of on one or our out please she should so some tell
    than that the their them then there these they this to up us was we were what whats when where which who
    whom why will with would you your
    """.split()  # noqa: SIM905
)
_IN_PARENTHESES = re.compile(r"\([^()\0]*\)")
_APOSTROPHES = "'\u2019\u02bc`\u00b4"
_BREAK = " \0 "
"""Between texts; no stored text holds U+0000."""
_ASCII = bytes(c if chr(c).isalnum() or c == 0 else 32 for c in range(128)) + bytes([32] * 128)
_GONE = np.uint32(0xFFFF_FFFF)
_HASH_BITS = 16
_SHINGLE_BITS = 10


class Wording:
    """A query as words and trigrams, for looking through texts."""

    def __init__(self, query: str) -> None:
        words = _characters([query[:MAX_QUERY_CHARS]])
        self.words = list(dict.fromkeys(_text(words).split()))[:MAX_QUERY_WORDS]
        self._weights = np.array([STOP_WORD_WEIGHT if word in _STOP_WORDS else 1 for word in self.words])
        spaced = np.array([32, *map(ord, " ".join(self.words)), 32], np.uint32)
        inside = np.flatnonzero(spaced[1:-1] > 32)  # a trigram belongs to the word of its middle
        self._trigrams, column = np.unique(_codes(spaced, inside), return_inverse=True)
        self._share = np.zeros((len(self._trigrams), len(self.words)), np.float32)
        self._share[column, np.cumsum(spaced == 32)[inside + 1] - 1] = 1
        self._share /= np.maximum(self._share.sum(axis=0), 1)

    def scores(self, texts: Sequence[str]) -> Float32:
        """How much of the query's words each text has, float32 [n] in [0, 1]; 1: all of them.

        A word counts by the share of its trigrams that the text has, and weighs by how few of the texts have
        it; the commonest English words weigh little. O(characters).
        """
        if not self.words or not texts:
            return np.zeros(len(texts), np.float32)
        places, found = _hits(_characters(texts), self._trigrams)
        return self._covered(len(texts), places, found)

    def of_titles(self, titles: Sequence[str], details: Sequence[str]) -> tuple[Float32, Float32]:
        """How surely the query names each title, and `scores` of title and details together, [n] each.

        A title is named by the share of its trigrams that the query has. What it has in parentheses, a year
        or another title, counts for neither, and a short title ("It") is never sure to be meant.
        """
        count = len(titles)
        if not self.words or not titles:
            return np.zeros(count, np.float32), np.zeros(count, np.float32)
        plain = _IN_PARENTHESES.sub(" ", "\0".join(titles)).split("\0")
        characters = _characters([*plain, *details])
        places, found = _hits(characters, self._trigrams)
        shared = np.bincount(places, minlength=2 * count)[:count]
        letters = np.cumsum(characters > 32, dtype=np.int32)[characters == 0]
        sizes = np.diff(letters)[:count]
        named = shared / np.maximum(sizes, 1) * np.minimum(sizes / SURE_TRIGRAMS, 1)
        return named.astype(np.float32), self._covered(count, places % count, found)

    def _covered(self, count: int, places: Int64, found: Int64) -> Float32:
        """Scores of texts from the trigrams found in them."""
        has = np.zeros((count, len(self._trigrams)), np.float32)
        has[places, found] = 1
        covered = np.clip((has @ self._share - LEAST_SHARE) / (1 - LEAST_SHARE), 0, 1)
        having = (covered >= 0.5).sum(axis=0)
        rarity = np.log1p(count / np.maximum(having, 1))
        # A word that no text has says nothing about how rare it is.
        rarity[having == 0] = rarity[having > 0].mean() if having.any() else 1
        weights = rarity * self._weights
        scores: Float32 = np.minimum(covered @ (weights / weights.sum()), 1).astype(np.float32)
        return scores


def content_words(text: str) -> frozenset[str]:
    """The words of a text, folded, without the commonest English ones; "not" and numbers are among them."""
    return frozenset(_text(_characters([text])).split()) - _STOP_WORDS


def similarities(texts: Sequence[str]) -> Float32:
    """Jaccard similarity of the trigrams of every two texts, float32 [n, n] in [0, 1], up to hash collisions.

    O(n^2), for hundreds of texts.
    """
    characters = _characters(texts)
    inside = np.flatnonzero(characters[1:-1] > 32)
    columns = _hashes(*(characters[inside + n] for n in range(3))) >> np.uint32(_HASH_BITS - _SHINGLE_BITS)
    shingles = np.zeros((len(texts), 1 << _SHINGLE_BITS), np.float32)
    shingles[_texts_at(characters, inside), columns] = 1
    shared = shingles @ shingles.T
    sizes = np.diagonal(shared)
    jaccard: Float32 = shared / np.maximum(sizes[:, None] + sizes[None, :] - shared, 1)
    return jaccard


def _characters(texts: Sequence[str]) -> UInt32:
    """Texts as one array of code points: of each letters and digits, folded, and spaces; a 0 around each."""
    joined = _BREAK.join(texts)
    if len(joined) > MAX_READ_CHARS:
        joined = _BREAK.join([text[:MAX_READ_CHARS] for text in texts])
    joined = f"\0 {joined} \0".casefold()
    if joined.isascii():
        ascii_bytes = joined.encode("ascii").translate(_ASCII, delete=b"'`")
        return np.frombuffer(ascii_bytes, np.uint8).astype(np.uint32)
    joined = unicodedata.normalize("NFKD", joined)
    present = set(joined)
    table = np.full(max(map(ord, present)) + 1, 32, np.uint32)
    for character in present:
        table[ord(character)] = _folded_character(character)
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4")
    folded: UInt32 = table[points]
    kept: UInt32 = folded[folded != _GONE]
    return kept


def _folded_character(character: str) -> int:
    if character.isalnum() or character == "\0":
        return ord(character)
    # Signs that carry a vowel, as in Devanagari, belong to their word; accents and apostrophes go.
    mark = unicodedata.category(character).startswith("M")
    if character in _APOSTROPHES or (mark and unicodedata.combining(character)):
        return int(_GONE)
    return ord(character) if mark else 32


def _text(characters: UInt32) -> str:
    return characters.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass").replace("\0", " ")


def _hits(characters: UInt32, wanted: UInt64) -> tuple[Int64, Int64]:
    """(text, place in `wanted`) of every occurrence of the trigrams `wanted`, distinct and ascending."""
    # A small table on hashes rules nearly all places out; the exact look-up is for the rest.
    table = np.zeros(1 << _HASH_BITS, np.bool_)
    mask = np.uint64((1 << 21) - 1)
    table[_hashes(*(((wanted >> np.uint64(21 * n)) & mask).astype(np.uint32) for n in range(3)))] = True
    places = np.flatnonzero(table[_hashes(characters[:-2], characters[1:-1], characters[2:])])
    codes = _codes(characters, places)
    nearest = np.minimum(np.searchsorted(wanted, codes), len(wanted) - 1)
    exact = wanted[nearest] == codes
    return _texts_at(characters, places[exact]), nearest[exact]


def _texts_at(characters: UInt32, places: Int64) -> Int64:
    """Which text each place belongs to."""
    found: Int64 = np.searchsorted(np.flatnonzero(characters == 0), places) - 1
    return found


def _codes(characters: UInt32, places: Int64) -> UInt64:
    """The trigrams at some places, 21 bits for each character."""
    codes = characters[places].astype(np.uint64)
    for n in (1, 2):
        codes |= characters[places + n].astype(np.uint64) << np.uint64(21 * n)
    return codes


def _hashes(a: UInt32, b: UInt32, c: UInt32) -> UInt32:
    mixed = a * np.uint32(0x9E3779B1)
    mixed += b * np.uint32(0x85EBCA6B)
    mixed += c * np.uint32(0xC2B2AE35)
    mixed >>= np.uint32(32 - _HASH_BITS)
    return mixed
