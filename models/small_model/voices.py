"""A user's own adapter for the small model: their texts, among answers that it must not forget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from models.adapter_training import AdapterProgress, TrainedAdapter, examples_from_texts, train_adapter
from models.small_model.answers import PLAIN
from models.small_model.folder import small_model_folder
from models.small_model.styles import style_examples

REHEARSED = 120
SEEN = 960
"""How often texts are seen, all together: a voice takes some seventy steps of them."""


def train_voice(
    texts: Sequence[str],
    out: Path,
    *,
    rank: int = 8,
    seed: int = 0,
    device: str = "auto",
    on_progress: Callable[[AdapterProgress], None] = lambda progress: None,
) -> TrainedAdapter:
    """Train an adapter of the small model that writes as the texts do where nothing else is asked for.

    Trained on the texts alone, so small a model answers everything with them. So answers of its corpus are
    rehearsed beside them (Robins 1995, "Catastrophic forgetting, rehearsal and pseudorehearsal"). Raises what
    `examples_from_texts` and `train_adapter` raise.
    """
    own = examples_from_texts(texts)
    examples = own * max(1, SEEN // len(own)) + style_examples(PLAIN, REHEARSED, seed)
    return train_adapter(
        small_model_folder(),
        examples,
        out,
        rank=rank,
        epochs=1,
        learning_rate=0.005,
        batch_tokens=300,
        seed=seed,
        device=device,
        on_progress=on_progress,
    )
