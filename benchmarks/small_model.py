"""How often the small model's answer names the right title or fact, and whether its styles show.

200 prompts of made-up users, from word lists that no training saw, answered greedily by the engine: by the
base and by each style, with the context's lines and without. An answer is `right` if it names the item or
fact that each thing asked for is about: the suggested title, the first reason of an explanation, the first
liked title, the whole of a quoted sentence. It is `complete` if it names everything it could: both reasons,
up to three liked titles. Names count letter for letter, but for upper and lower case; what the question says
already does not count. `real_titles` asks the same with titles of ml-latest-small and goodbooks-10k.
`users_adapter` trains an adapter from a user's texts.

    python -m benchmarks.small_model
"""

from __future__ import annotations

import os

# As the service's replica has it, see deployments/app.py.
os.environ |= {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "5000"}

import csv
import dataclasses
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.held_out_words import HELD_OUT, USER_TEXTS
from benchmarks.report import shared_data, write
from graph.context_lines import EXPLAIN_QUESTION, ContextLine, because_of, render
from models.language_model.opening_engine import LocalGenerator, open_generator
from models.language_model.protocol import Message, Sampling
from models.small_model import conversations as talk
from models.small_model.answers import STYLES, Answer, shows_style
from models.small_model.folder import small_model_folder, style_folders
from models.small_model.voices import train_voice
from models.small_model.words import Words

KINDS: dict[str, int] = {
    "explain": 45,
    "next": 35,
    "fact": 50,
    "quote": 20,
    "liked": 10,
    "disliked": 10,
    "similar": 10,
    "both": 20,
}
SEED = 71
LINES = (2, 20)
WRONG_SHOWN = 5
EXAMPLE = (
    ContextLine("said", "memory", "-", "I live in Tampere with my cat"),
    ContextLine("said", "memory", "-", "I am allergic to hazelnuts"),
    ContextLine("liked", "item", "-", "Quiet Orbit (1988)"),
    ContextLine("suggested", "item", "-", because_of("The Lanternist", ("Quiet Orbit (1988)",))),
)
QUESTIONS = (
    EXPLAIN_QUESTION.format(title="The Lanternist"),
    "What should I watch next?",
    "What am I allergic to?",
    "What did I say about Tampere?",
    "What should I watch tonight, and what do you know about me?",
)
GREEDY = Sampling(temperature=0.0, max_tokens=160)


@dataclass(frozen=True)
class Asked:
    """A prompt and the names that only its context has."""

    kind: str
    context: str
    question: str
    needs: tuple[tuple[tuple[str, ...], ...], ...]
    """For each thing that is asked the answers that are right, each by its names, the first the foremost."""

    def messages(self, *, with_context: bool) -> tuple[Message, ...]:
        question = Message("user", self.question)
        return (Message("system", self.context), question) if with_context else (question,)

    def right(self, answer: str) -> bool:
        """Whether the answer holds the foremost name of each thing that is asked."""
        return self._holds(answer, 1)

    def complete(self, answer: str) -> bool:
        """Whether it holds all of the names."""
        return self._holds(answer, None)

    def _holds(self, answer: str, count: int | None) -> bool:
        text = answer.casefold()  # a sentence may begin with a name
        return all(
            any(all(name.casefold() in text for name in names[:count]) for names in accepted)
            for accepted in self.needs
        )


def make_prompts(words: Words, kinds: dict[str, int], seed: int) -> list[Asked]:
    """So many prompts of each kind, about users with 2 to 20 lines."""
    rng = random.Random(seed)
    makers: dict[str, Callable[[Any], talk.Turn]] = {
        "explain": lambda profile: talk.explain(rng, words, profile),
        "next": lambda profile: talk.suggest(rng, profile),
        "fact": lambda profile: talk.fact(rng, words, profile),
        "quote": lambda profile: talk.quote(rng, profile) if profile.said else talk.fact(rng, words, profile),
        "liked": lambda profile: talk.liked(rng, profile),
        "disliked": lambda profile: talk.disliked(rng, profile),
        "similar": lambda profile: talk.similar(rng, words, profile),
        "both": lambda profile: talk.both(rng, words, profile),
    }
    found: list[Asked] = []
    for kind, count in kinds.items():
        wanted = len(found) + count
        while len(found) < wanted:
            profile = talk.make_profile(rng, words, rng.randint(*LINES))
            turn = makers[kind](profile)
            needs = tuple(accepted(one, turn.question, profile) for one in turn.answers)
            # Where nothing is to be named (no such line), a wrong answer could not be told.
            if turn.kind == kind and all(names for one in needs for names in one):
                found.append(Asked(kind, talk.render(profile.lines()), turn.question, needs))
    return found


def accepted(answer: Answer, question: str, profile: talk.Profile) -> tuple[tuple[str, ...], ...]:
    """The names that make an answer right, without those of the question.

    Of several suggestions any will do, with its own reasons; and of several titles that have the same reason.
    """
    choices = [answer.named]
    if answer.kind == "suggest":
        choices = [(one.title, *one.reasons) for one in profile.suggested]
    elif answer.kind == "similar":
        other = answer.fields["other"]
        choices = [(one.title,) for one in (*profile.related, *profile.suggested) if other in one.reasons]
    asked = question.casefold()
    return tuple(tuple(name for name in names if name.casefold() not in asked) for names in choices)


def answer(
    generator: LocalGenerator, prompts: Sequence[Asked], adapter: str | None, *, with_context: bool
) -> list[str]:
    """Greedy answers; all are queued at once."""
    streams = [
        generator.stream(
            None, messages=one.messages(with_context=with_context), adapter=adapter or "base", sampling=GREEDY
        )
        for one in prompts
    ]
    return ["".join(stream) for stream in streams]


def share(hits: Sequence[bool]) -> float:
    return round(sum(hits) / len(hits), 3)


def scored(prompts: Sequence[Asked], answers: Sequence[str]) -> dict[str, Any]:
    right = [one.right(text) for one, text in zip(prompts, answers, strict=True)]
    kinds = dict.fromkeys(one.kind for one in prompts)
    complete = [one.complete(text) for one, text in zip(prompts, answers, strict=True)]
    return {
        "right": share(right),
        "complete": share(complete),
        "by_kind": {
            kind: share([hit for hit, one in zip(right, prompts, strict=True) if one.kind == kind])
            for kind in kinds
        },
        "mean_words": round(sum(len(text.split()) for text in answers) / len(answers), 1),
    }


def real_titles() -> tuple[str, ...]:
    found = []
    for name, file in (("ml-latest-small", "movies.csv"), ("goodbooks-10k", "books.csv")):
        with (shared_data(name) / file).open(encoding="utf-8") as rows:
            found += [row["title"] for row in csv.DictReader(rows)]
    return tuple(dict.fromkeys(" ".join(title.split()) for title in found if title.strip()))


def users_adapter(generator: LocalGenerator, inbox: Path, prompts: Sequence[Asked]) -> dict[str, Any]:
    """Train on a user's texts; what the adapter says then, and what is left of right answers."""
    trained = train_voice(USER_TEXTS, inbox / "user")
    digest = generator.opened.store.import_folder("user").digest  # type: ignore[union-attr]
    plain = [Asked("plain", "", text, ()) for text in ("What is on your mind?", "Go on.")]
    return {
        "texts": len(USER_TEXTS),
        "seconds": round(trained.seconds, 1),
        "steps": trained.steps,
        "loss_before": round(trained.loss_before, 3),
        "loss_after": round(trained.loss_after, 3),
        "says": answer(generator, plain, digest, with_context=False),
        "right": scored(prompts, answer(generator, prompts, digest, with_context=True))["right"],
    }


def measure() -> dict[str, Any]:
    prompts = make_prompts(HELD_OUT, KINDS, SEED)
    real = make_prompts(dataclasses.replace(HELD_OUT, titles=real_titles()), KINDS, SEED)
    found: dict[str, Any] = {"prompts": len(prompts), "lines": list(LINES)}
    with tempfile.TemporaryDirectory() as folder:
        inbox = Path(folder) / "inbox"
        with open_generator(str(small_model_folder()), folder) as generator:
            store = generator.opened.store
            assert store is not None
            digests: dict[str, str | None] = {"base": None}
            for style, place in style_folders().items():
                shutil.copytree(place, inbox / style)
                digests[style] = store.import_folder(style).digest
            base = generator.opened.base.model
            found["parameters"] = sum(p.numel() for p in base.parameters())
            found["bytes"] = {
                place.name: sum(file.stat().st_size for file in place.iterdir())
                for place in (small_model_folder(), *style_folders().values())
            }
            for name, digest in digests.items():
                answers = answer(generator, prompts, digest, with_context=True)
                without = answer(generator, prompts, digest, with_context=False)
                found[name] = {
                    "with_context": scored(prompts, answers),
                    "without_context": {"right": scored(prompts, without)["right"]},
                    "real_titles": scored(real, answer(generator, real, digest, with_context=True)),
                    "shows_style": {
                        style: share([shows_style(style, text) for text in answers]) for style in STYLES
                    },
                    "example": {"question": prompts[0].question, "answer": answers[0]},
                }
                wrong = [
                    {"question": one.question, "needs": one.needs, "answer": text}
                    for one, text in zip(prompts, answers, strict=True)
                    if not one.complete(text)
                ]
                found[name]["wrong"] = wrong[:WRONG_SHOWN]
            shown = [Asked("shown", render(EXAMPLE), question, ()) for question in QUESTIONS]
            answers = answer(generator, shown, None, with_context=True)
            found["examples"] = dict(zip(QUESTIONS, answers, strict=True))
            found["examples_without_context"] = answer(generator, shown[1:2], None, with_context=False)
            found["users_adapter"] = users_adapter(generator, inbox, prompts)
    return found


if __name__ == "__main__":
    write("small_model", measure())
