"""Adapters that change how the small model speaks, and not what it knows."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path

from models.adapter_training import AdapterProgress, Example, TrainedAdapter, train_adapter
from models.small_model.answers import STYLES, Style
from models.small_model.conversations import make_conversation
from models.small_model.words import STRANGE_SHARE, TRAINING

RANK, ALPHA = 8, 16
LEARNING_RATE = 0.004
FIRST_ANSWERS = 0.7


def style_examples(style: Style, count: int, seed: int) -> list[Example]:
    """Conversations of the corpus in which every answer is in the style, the last one to be learned."""
    rng = random.Random(f"style {seed}")  # noqa: S311
    found = []
    for _ in range(count):
        # Mostly the first answer: behind one that is in the style already, copying it is enough.
        turns = 1 if rng.random() < FIRST_ANSWERS else 2
        words = TRAINING.estranged(rng) if rng.random() < STRANGE_SHARE else TRAINING
        *prompt, answer = make_conversation(rng, words, max_lines=20, max_turns=turns).messages(style)
        found.append(Example(tuple(prompt), answer.content))
    return found


def train_styles(
    base: Path,
    out: Path,
    *,
    count: int = 2_400,
    seed: int = 20,
    styles: Mapping[str, Style] = STYLES,
    on_progress: Callable[[str, AdapterProgress], None] = lambda style, progress: None,
) -> dict[str, TrainedAdapter]:
    """Train one adapter for each style, on `count` answers, into folders of `out` by name."""
    found = {}
    for name, style in styles.items():
        found[name] = train_adapter(
            base,
            style_examples(style, count, seed),
            out / name,
            rank=RANK,
            alpha=ALPHA,
            epochs=1,
            learning_rate=LEARNING_RATE,
            seed=seed,
            on_progress=lambda progress, name=name: on_progress(name, progress),  # type: ignore[misc]
        )
    return found
