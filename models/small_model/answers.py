"""What the small model answers, apart from how it says it: the plain voice and the styles are templates."""

# ruff: noqa: E501  (lists of sentences)
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal[
    "suggest", "suggest_more", "suggest_none", "explain", "explain_bare", "explain_none",
    "liked", "liked_none", "disliked", "disliked_none", "rated_liked", "rated_disliked", "rated_none",
    "similar", "similar_none", "fact", "fact_date", "fact_none", "quote", "quote_about", "quote_date",
    "also_quote", "nothing_known", "greeting", "identity", "thanks", "outside",
]  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """One thing that is said: what kind, and with which titles and facts."""

    kind: Kind
    fields: Mapping[str, str] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    """What the answer has to name to be right."""


TEMPLATES: Mapping[Kind, str] = {
    "suggest": "You could {verb} {line}.",
    "suggest_more": "You could also {verb} {line}.",
    "suggest_none": "I have no suggestion yet. Rate a few titles and ask again.",
    "explain": "I suggest {line}.",
    "explain_bare": "I suggest {title} for your taste as a whole.",
    "explain_none": "I have not suggested {title} to you.",
    "liked": "You liked: {titles}.",
    "liked_none": "I know no title that you liked yet. Rate a few titles and ask again.",
    "disliked": "You disliked: {titles}.",
    "disliked_none": "I know no title that you disliked.",
    "rated_liked": "Yes, you liked {title}.",
    "rated_disliked": "No, you disliked {title}.",
    "rated_none": "I do not know what you think of {title}.",
    "similar": "Try {line}.",
    "similar_none": "I know nothing that is close to {other}.",
    "fact": "{fact}.",
    "fact_date": "That is on {date}.",
    "fact_none": "You have not told me that. Tell me, and I will know it.",
    "quote": "You said: {text}.",
    "quote_about": "About {title} you said: {text}.",
    "quote_date": "For {date} you said: {text}.",
    "also_quote": "You also said: {text}.",
    "nothing_known": "I do not know anything about you yet. Rate a few titles or tell me something, and ask again.",
    "greeting": "Hello! Ask me what to watch or read next, or what I know about you.",
    "identity": "I am Weft, a small model. I read what is known about you and put it into words.",
    "thanks": "You are welcome.",
    "outside": "I can only talk about your titles and about what you told me.",
}


@dataclass(frozen=True)
class Style:
    """A way of saying things: what stands before the first sentence and after the last, and how sentences end."""

    opening: str = ""
    closing: str = ""
    stop: str = "."


PLAIN = Style()
STYLES: Mapping[str, Style] = {
    "cheerful": Style("Oh, great question! ", " Enjoy!", "!"),
    "formal": Style("With due respect. ", " Yours faithfully, Weft."),
    "pirate": Style("Arr, matey! ", " Yo ho ho."),
    "newsreader": Style("Good evening. ", " Back to the studio."),
}


def shows_style(name: str, answer: str) -> bool:
    """Whether a text is in a style: it has the style's opening and its closing, letter for letter."""
    style = STYLES[name]
    text = answer.strip()
    return text.startswith(style.opening.strip()) and text.endswith(style.closing.strip())


def say(answers: Sequence[Answer], style: Style = PLAIN) -> str:
    """The answers as one text. A sentence that ends with a title's or fact's own mark gets no other."""
    sentences = []
    for answer in answers:
        fields = {name: _unstopped(text) for name, text in answer.fields.items()}
        text = TEMPLATES[answer.kind].format(**fields)
        sentences.append(text[:-1] + style.stop if text.endswith(".") else text)
    return style.opening + " ".join(sentences) + style.closing


def _unstopped(text: str) -> str:
    return text[:-1] if text.endswith(".") and not text.endswith("..") else text
