"""Conversations about a made-up user: the context's lines, questions, and answers that follow from the lines.

The system message is built with the service's own functions (`graph.context_lines`), so that what is trained is
what is asked later.
"""

# ruff: noqa: E501  (lists of sentences)
from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from graph.context_lines import (
    EXPLAIN_QUESTION,
    LINE_KINDS,
    ContextLine,
    LineKind,
    because_of,
    render,
    said,
    with_context,
)
from models.language_model.protocol import Message
from models.small_model.answers import PLAIN, Answer, Style, say
from models.small_model.facts import Fact, make_fact, make_remark
from models.small_model.titles import make_title
from models.small_model.words import Words


@dataclass(frozen=True)
class Suggested:
    title: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Said:
    """A memory's line: a fact or a remark, perhaps of a date, perhaps about titles."""

    fact: Fact
    text: str
    """As it stands in the line, before date and titles."""
    valid_on: str = ""
    about: tuple[str, ...] = ()


@dataclass
class Profile:
    """All that is known about a made-up user."""

    said: list[Said] = field(default_factory=list)
    liked: list[str] = field(default_factory=list)
    disliked: list[str] = field(default_factory=list)
    related: list[Suggested] = field(default_factory=list)
    suggested: list[Suggested] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.said or self.liked or self.disliked or self.related or self.suggested)

    def lines(self) -> list[ContextLine]:
        texts: dict[LineKind, list[str]] = {
            "said": [said(one.text, one.about, one.valid_on) for one in self.said],
            "liked": self.liked,
            "disliked": self.disliked,
            "related": [because_of(one.title, one.reasons) for one in self.related],
            "suggested": [because_of(one.title, one.reasons) for one in self.suggested],
        }
        return [
            ContextLine(kind, "memory" if kind == "said" else "item", "-", text)
            for kind in LINE_KINDS
            for text in texts[kind]
        ]


@dataclass(frozen=True)
class Turn:
    """A question and what has to be answered."""

    kind: str
    """Of the question, as reports count them."""
    question: str
    answers: tuple[Answer, ...]

    @property
    def named(self) -> tuple[str, ...]:
        return tuple(name for answer in self.answers for name in answer.named)


@dataclass(frozen=True)
class Conversation:
    system: str | None
    """None: there is no system message."""
    turns: tuple[Turn, ...]

    def messages(self, style: Style = PLAIN) -> tuple[Message, ...]:
        """All turns, answered."""
        found = [] if self.system is None else [Message("system", self.system)]
        for turn in self.turns:
            found += [Message("user", turn.question), Message("assistant", say(turn.answers, style))]
        return tuple(found)

    def prompt(self) -> tuple[Message, ...]:
        """Up to the last question, earlier ones answered."""
        return self.messages()[:-1]


# --- Profiles --------------------------------------------------------------------------------------------


def make_profile(rng: random.Random, words: Words, num_lines: int) -> Profile:
    """About so many lines, of kinds in any mixture; at least one if `num_lines` is."""
    profile, keys = Profile(), set[str]()
    shares = [rng.random() ** 2 + 0.02 for _ in LINE_KINDS]
    counts = dict.fromkeys(LINE_KINDS, 0)
    for kind in rng.choices(LINE_KINDS, shares, k=num_lines):
        counts[kind] += 1
    titles = _titles(rng, words, sum(counts.values()) + 4)
    for _ in range(counts["liked"]):
        profile.liked.append(titles.pop())
    for _ in range(counts["disliked"]):
        profile.disliked.append(titles.pop())
    for kind, into in (("related", profile.related), ("suggested", profile.suggested)):
        for _ in range(counts[kind]):
            into.append(Suggested(titles.pop(), _reasons(rng, profile.liked, titles)))
    for _ in range(counts["said"]):
        one = _make_said(rng, words, profile)
        if one.fact.key not in keys:
            keys.add(one.fact.key)
            profile.said.append(one)
    return profile


def _titles(rng: random.Random, words: Words, count: int) -> list[str]:
    """Different ones; some share their first words, so that a beginning does not tell which it is."""
    found: list[str] = []
    while len(found) < count:
        title = make_title(rng, words)
        if found and rng.random() < 0.15:
            parts = rng.choice(found).split(" ")
            title = " ".join([*parts[: rng.randint(1, len(parts))], title])
        if title not in found and len(title) < 90:
            found.append(title)
    rng.shuffle(found)
    return found


def _reasons(rng: random.Random, liked: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    count = rng.choices((0, 1, 2), (2, 4, 4))[0]
    pool = liked if len(liked) >= count and rng.random() < 0.85 else others
    return tuple(rng.sample(list(pool), min(count, len(pool))))


def _make_said(rng: random.Random, words: Words, profile: Profile) -> Said:
    titles = [*profile.liked, *profile.disliked]
    about: tuple[str, ...] = ()
    if rng.random() < 0.18:
        fact = make_remark(rng, words)
        title = rng.choice(titles) if titles and rng.random() < 0.7 else make_title(rng, words)
        about = (title,)
        if rng.random() < 0.15:
            about = (title, make_title(rng, words))
    else:
        fact = make_fact(rng, words)
    text = fact.text
    if not text.startswith("I ") and rng.random() < 0.1:
        text = text[:1].lower() + text[1:]
    if rng.random() < 0.2:
        text += "."
    valid_on = ""
    if rng.random() < 0.15:
        valid_on = f"{rng.randint(1990, 2030)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    return Said(fact, text, valid_on, about)


# --- Questions -------------------------------------------------------------------------------------------

NEXT = (
    ("What should I watch next?", "watch"), ("What should I read next?", "read"), ("What should I watch?", "watch"),
    ("What should I read?", "read"), ("What can I watch tonight?", "watch"), ("What can I read tonight?", "read"),
    ("What should I watch tonight?", "watch"), ("What do you recommend?", "try"), ("What do you suggest?", "try"),
    ("Recommend me something.", "try"), ("Suggest something to watch.", "watch"), ("Any ideas for tonight?", "try"),
    ("Suggest something to read.", "read"), ("Recommend a film.", "watch"), ("Recommend a book.", "read"),
    ("Which film should I watch next?", "watch"), ("Which book should I read next?", "read"),
    ("What is a good film for me?", "watch"), ("What is a good book for me?", "read"), ("What now?", "try"),
    ("I am bored. What should I watch?", "watch"), ("Can you recommend something?", "try"),
    ("Tell me what to watch.", "watch"), ("Tell me what to read.", "read"), ("What could I try?", "try"),
    ("Give me a recommendation.", "try"), ("What would I like?", "try"), ("What shall we watch tonight?", "watch"),
)  # fmt: skip
MORE = ("What else?", "Something else?", "And another one?", "Any other idea?", "Not that one. What else?")
WHY = (
    "Why do you suggest {title}?", "Why should I watch {title}?", "Why should I read {title}?",
    "Why is {title} recommended?", "Why do you recommend {title}?", "Why would I like {title}?", "Why is {title} suggested to me?",
)  # fmt: skip
LIKED = (
    "What do I like?", "What did I like?", "Which titles did I like?", "What have I liked so far?",
    "What are my favourites?", "Which films do I like?", "Which books do I like?", "What did I enjoy?",
    "What do you know about my taste?",
)  # fmt: skip
DISLIKED = (
    "What do I dislike?", "What did I dislike?", "Which titles did I dislike?", "What did I not like?",
    "What do I not like?", "Which films do I dislike?", "Which books do I dislike?", "What did I not enjoy?",
)  # fmt: skip
RATED = ("Did I like {title}?", "Do I like {title}?", "Did I enjoy {title}?", "What do I think of {title}?")
SIMILAR = (
    "What is like {title}?",
    "What is similar to {title}?",
    "Something like {title}?",
    "What is close to {title}?",
)
ABOUT_SUBJECT = (
    "What did I say about {subject}?", "What did I tell you about {subject}?", "What do you know about {subject}?",
    "Do you remember what I said about {subject}?", "Tell me about {subject}.", "What about {subject}?",
)  # fmt: skip
ABOUT_ME = (
    "What do you know about me?", "What did I tell you?", "Who am I?", "Tell me about me.",
    "What do you remember about me?", "What have I told you?",
)  # fmt: skip
GREETINGS = (
    "Hello",
    "Hello!",
    "Hi",
    "Hi!",
    "Hi there",
    "Hey",
    "Good morning",
    "Good evening!",
    "Hello, how are you?",
)
IDENTITY = ("Who are you?", "What are you?", "What is your name?", "What can you do?", "Are you a robot?")
THANKS = ("Thanks", "Thank you", "Thank you!", "Thanks a lot!", "Great, thanks.")
OUTSIDE = (
    "What is the capital of {place}?", "Who wrote {title}?", "How is the weather in {place}?", "What is {number} times {number}?",
    "Translate {thing} into French.", "Write a poem about {thing}.", "Who is the president of {place}?",
    "How do I cook {thing}?", "What time is it?", "Tell me a joke.", "How far is {place}?",
)  # fmt: skip
_ASK_FACT = (
    "{question}",
    "{question}",
    "{question}",
    "Tell me: {lower}",
    "Do you know? {question}",
    "Remind me: {lower}",
)


def _lower(question: str) -> str:
    return question if question.startswith("I ") else question[:1].lower() + question[1:]


def suggest(rng: random.Random, profile: Profile) -> Turn:
    question, verb = rng.choice(NEXT)
    return Turn("next", question, (_suggest(profile, verb),))


def _suggest(profile: Profile, verb: str, place: int = 0) -> Answer:
    if len(profile.suggested) <= place:
        return Answer("suggest_none")
    one = profile.suggested[place]
    fields = {"verb": verb, "line": because_of(one.title, one.reasons)}
    return Answer("suggest" if place == 0 else "suggest_more", fields, (one.title, *one.reasons))


def explain(rng: random.Random, words: Words, profile: Profile) -> Turn:
    question = EXPLAIN_QUESTION if rng.random() < 0.5 else rng.choice(WHY)
    if not profile.suggested or rng.random() < 0.02:
        title = make_title(rng, words)
        return Turn(
            "explain", question.format(title=title), (Answer("explain_none", {"title": title}, (title,)),)
        )
    one = rng.choice(profile.suggested)
    fields = {"title": one.title, "line": because_of(one.title, one.reasons)}
    answer = Answer("explain" if one.reasons else "explain_bare", fields, (one.title, *one.reasons))
    return Turn("explain", question.format(title=one.title), (answer,))


def _listed(titles: Sequence[str]) -> str:
    """With semicolons, as titles have commas."""
    return "; ".join(titles)


def liked(rng: random.Random, profile: Profile) -> Turn:
    titles = profile.liked[:3]
    answer = Answer("liked", {"titles": _listed(titles)}, tuple(titles)) if titles else Answer("liked_none")
    return Turn("liked", rng.choice(LIKED), (answer,))


def disliked(rng: random.Random, profile: Profile) -> Turn:
    titles = profile.disliked[:3]
    answer = (
        Answer("disliked", {"titles": _listed(titles)}, tuple(titles)) if titles else Answer("disliked_none")
    )
    return Turn("disliked", rng.choice(DISLIKED), (answer,))


def rated(rng: random.Random, words: Words, profile: Profile) -> Turn:
    known = [(title, "rated_liked") for title in profile.liked] + [
        (t, "rated_disliked") for t in profile.disliked
    ]
    title, kind = (
        rng.choice(known) if known and rng.random() < 0.8 else (make_title(rng, words), "rated_none")
    )
    answer = Answer(kind, {"title": title}, (title,))  # type: ignore[arg-type]
    return Turn("rated", rng.choice(RATED).format(title=title), (answer,))


def similar(rng: random.Random, words: Words, profile: Profile, *, known: bool = False) -> Turn:
    """What is like a title; `known`: never one that no line has as a reason."""
    near = [one for one in (*profile.related, *profile.suggested) if one.reasons]
    question = rng.choice(SIMILAR)
    if not near or (not known and rng.random() < 0.08):
        other = make_title(rng, words)
        return Turn(
            "similar", question.format(title=other), (Answer("similar_none", {"other": other}, (other,)),)
        )
    other = rng.choice(rng.choice(near).reasons)
    one = next(one for one in near if other in one.reasons)
    fields = {"line": because_of(one.title, one.reasons), "other": other}
    answer = Answer("similar", fields, (one.title,))
    return Turn("similar", question.format(title=other), (answer,))


def fact(rng: random.Random, words: Words, profile: Profile) -> Turn:
    """A question that one of the lines answers; seldom one that none does."""
    asked = [one for one in profile.said if one.fact.question is not None]
    if not asked or rng.random() < 0.08:
        return _unknown_fact(rng, words, profile)
    one = rng.choice(asked)
    found = one.fact
    question = found.question or ""
    if (
        one.valid_on
        and found.text.startswith("I ")
        and question.startswith("What do I")
        and rng.random() < 0.3
    ):
        when = question.replace("What do I", "When do I").removesuffix("?") + f" {found.value}?"
        return Turn("date", when, (Answer("fact_date", {"date": one.valid_on}, (one.valid_on,)),))
    pattern = rng.choice(_ASK_FACT)
    question = pattern.format(question=question, lower=_lower(question))
    fields = {"fact": _as_told(one), "value": found.value}
    return Turn("fact", question, (Answer("fact", fields, (found.value,)),))


def _as_told(one: Said) -> str:
    return one.fact.answer


def _unknown_fact(rng: random.Random, words: Words, profile: Profile) -> Turn:
    keys = {one.fact.key for one in profile.said}
    while True:
        other = make_fact(rng, words)
        if other.question is not None and other.key not in keys:
            return Turn("unknown", other.question, (Answer("fact_none"),))


def quote(rng: random.Random, profile: Profile) -> Turn:
    """What was said about somebody, something or a title, in the user's own words."""
    one = rng.choice(profile.said)
    named = (one.text.removesuffix("."),)
    pattern = rng.choice(ABOUT_SUBJECT[:4])
    if one.about:
        title = rng.choice(one.about)
        answer = Answer("quote_about", {"title": title, "text": one.text}, (title, *named))
        return Turn("quote", pattern.format(subject=title), (answer,))
    question = rng.choice(ABOUT_SUBJECT).format(subject=one.fact.subject)
    return Turn("quote", question, (_quoted(one, "quote"),))


def _quoted(one: Said, kind: str) -> Answer:
    named = (one.text.removesuffix("."),)
    if one.valid_on and kind == "quote":
        return Answer("quote_date", {"date": one.valid_on, "text": one.text}, named)
    return Answer(kind, {"text": one.text}, named)  # type: ignore[arg-type]


def about_me(rng: random.Random, profile: Profile) -> Turn:
    return Turn("about me", rng.choice(ABOUT_ME), _all_known(profile))


def _all_known(profile: Profile) -> tuple[Answer, ...]:
    """The first two memories and the first liked titles."""
    found = [_quoted(one, kind) for one, kind in zip(profile.said, ("quote", "also_quote"), strict=False)]
    if profile.liked:
        titles = profile.liked[:2]
        found.append(Answer("liked", {"titles": _listed(titles)}, tuple(titles)))
    return tuple(found) or (Answer("fact_none"),)


def small_talk(rng: random.Random, words: Words) -> Turn:
    kind = rng.choice(("greeting", "greeting", "identity", "thanks", "outside", "outside", "outside"))
    pool = {"greeting": GREETINGS, "identity": IDENTITY, "thanks": THANKS, "outside": OUTSIDE}[kind]
    question = rng.choice(pool).format(
        place=rng.choice(words.places), title=make_title(rng, words), thing=rng.choice(words.things),
        number=rng.randint(2, 99),
    )  # fmt: skip
    return Turn("small talk", question, (Answer(kind),))  # type: ignore[arg-type]


def both(rng: random.Random, words: Words, profile: Profile) -> Turn:
    """Two questions in one, each answered."""
    first = suggest(rng, profile) if rng.random() < 0.7 else make_turn(rng, words, profile, joined=True)
    second = about_me(rng, profile) if rng.random() < 0.4 else make_turn(rng, words, profile, joined=True)
    if first.kind == second.kind or not first.question.endswith("?"):
        return first
    question = f"{first.question[:-1]}{rng.choice((', and ', ' and '))}{_lower(second.question)}"
    return Turn("both", question, (*first.answers, *second.answers))


def make_turn(rng: random.Random, words: Words, profile: Profile, *, joined: bool = False) -> Turn:
    """A question that suits the profile; `joined`: one that goes into another."""
    choices: list[tuple[float, Callable[[], Turn]]] = [
        (2.5 if profile.suggested else 0.3, lambda: suggest(rng, profile)),
        (4.0 if profile.suggested else 0.1, lambda: explain(rng, words, profile)),
        (1.0 if profile.liked else 0.2, lambda: liked(rng, profile)),
        (1.0 if profile.disliked else 0.2, lambda: disliked(rng, profile)),
        (0.4, lambda: rated(rng, words, profile)),
        (1.2 if profile.related or profile.suggested else 0.1, lambda: similar(rng, words, profile)),
        (4.5 if profile.said else 0.4, lambda: fact(rng, words, profile)),
    ]
    if profile.said:
        choices.append((3.0, lambda: quote(rng, profile)))
    if not joined:
        choices += [
            (0.8, lambda: about_me(rng, profile)),
            (0.35, lambda: small_talk(rng, words)),
            (2.5, lambda: both(rng, words, profile)),
        ]
    return rng.choices([make for _, make in choices], [weight for weight, _ in choices])[0]()


# --- Conversations ---------------------------------------------------------------------------------------

_ONCE = ("next", "liked", "disliked", "about me", "small talk", "unknown")
SYSTEM_PROMPTS = (
    "You are a helpful assistant.", "Be brief.", "Answer in one sentence.", "You recommend films and books.",
    "You are Weft.", "Be kind.", "You are a librarian.", "Help the user.",
)  # fmt: skip


def make_conversation(
    rng: random.Random, words: Words, *, max_lines: int = 25, max_turns: int = 5
) -> Conversation:
    """A profile of up to `max_lines` lines, most have far fewer, and questions about it."""
    if rng.random() < 0.06:
        return _unknown_user(rng, words)
    roll = rng.random()
    most = 7 if roll < 0.6 else 13 if roll < 0.88 else max_lines
    profile = make_profile(rng, words, rng.randint(1, min(most, max_lines)))
    own = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.12 else ""
    system = with_context(own, render(profile.lines()))
    turns: list[Turn] = []
    for _ in range(rng.choices((1, 2, 3, 4, 5, 6), (3, 2, 3, 3, 3, 3))[0] if max_turns > 1 else 1):
        turn = make_turn(rng, words, profile)
        if any(turn.question == other.question or turn.kind == other.kind in _ONCE for other in turns):
            continue
        turns.append(turn)
        if turn.kind == "next" and len(profile.suggested) > 1 and rng.random() < 0.25:
            more = Turn("more", rng.choice(MORE), (_suggest(profile, "try", 1),))
            turns.append(more)
    return Conversation(system, tuple(turns[:max_turns]))


def _unknown_user(rng: random.Random, words: Words) -> Conversation:
    """Nobody the service knows: no lines, and questions as ever."""
    stranger = make_profile(rng, words, rng.randint(1, 6))
    system = rng.choice((None, None, "", rng.choice(SYSTEM_PROMPTS)))
    turns = []
    for _ in range(rng.randint(1, 3)):
        turn = small_talk(rng, words) if rng.random() < 0.25 else make_turn(rng, words, stranger)
        if turn.kind != "small talk":
            turn = Turn("nothing known", turn.question, (Answer("nothing_known"),))
        turns.append(turn)
    return Conversation(system, tuple(turns))
