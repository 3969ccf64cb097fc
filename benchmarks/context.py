"""From a question to the context of a prompt: `select` and `fit`, without the question's embedding.

    python -m benchmarks.context

Users with 10, 1,000 and 10,000 memories and as many ratings among 20,000 others' million ratings, memories
and items with vectors of 384 components, five suggestions, tokens counted by a byte-level BPE tokenizer.
`cold_ms` is the first call for a user; every other call has another question and another time, and nothing is
kept between them. `cpu_ms` is the thread's own time: what another process took away does not count. `embedder
away` is the same with no vectors at all. `parts_ms`: medians of the parts alone, warm.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.report import percentiles, spread, write
from graph.context import ContextQuery, Suggestion, fit, select
from graph.memory_search import score_memories
from graph.neighbours import neighbours
from graph.node_text import text_digest
from graph.schema import RATING_DTYPE, ChangeSet, Item, Memory, Relation, TextKind, TextVector, User
from graph.view import GraphView
from graph.words import Wording
from models.language_model.prompt import count_tokens
from models.small_model.folder import small_model_folder

SIZES = (10, 1_000, 10_000)
OTHERS, ITEMS, RATINGS = 20_000, 20_000, 1_000_000
DIM, MODEL = 384, "random"
CALLS, MAX_TOKENS = 200, 384
NOW = 1_800_000_000

WORDS = """
anna berlin bicycle birthday book brother cake car cat chess coffee concert cooking daughter dog evening
family film football friend garden guitar holiday home horse house jazz job journey kitchen lake language
letter market morning mother mountain museum music night office opera painting park party peanut piano
question rain river road school sea sister snow song spring stamp station story street summer sunday table
teacher tea theatre train tree violin walk weather weekend window winter work allergic bought called cooked
dislike enjoy found keep learn like live lost love miss moved never often plan play prefer read remember
started stopped travel usually visited want watched wish with without yesterday
""".split()  # noqa: SIM905


def make_view(rng: np.random.Generator) -> GraphView:
    """Users `m10`, `m1000`, `m10000` with that many memories and ratings, and the others' ratings."""
    view = GraphView("context")
    users = [User(row, f"m{size}", {}, 1) for row, size in enumerate(SIZES)]
    users += [User(len(SIZES) + n, f"u{n}", {}, 1) for n in range(OTHERS)]
    items = [
        Item(
            n,
            f"i{n}",
            f"{_sentence(rng, 3).title()} ({1950 + n % 75})",
            ("crime", f"tag{n % 20}"),
            None,
            "",
            1,
        )
        for n in range(ITEMS)
    ]
    memories: list[Memory] = []
    relations: list[Relation] = []
    for owner, size in enumerate(SIZES):
        for n in range(size):
            row, valid_at = len(memories), NOW - int(rng.integers(10**8)) if n % 2 else None
            text = f"I {_sentence(rng, int(rng.integers(5, 15)))}."
            invalid_at = NOW - 1 if n % 20 == 19 else None
            memories.append(
                Memory(
                    row,
                    f"mem_{owner}_{n}",
                    owner,
                    text,
                    1,
                    False,
                    None if invalid_at else valid_at,
                    invalid_at,
                )
            )
            if n % 4 == 3:
                relations.append(Relation(row, "about", "item", int(rng.integers(ITEMS)), 1))
                relations.append(Relation(row, "follows", "memory", row - 1, 1))
    view.apply(
        ChangeSet(
            0, 1, users=users, items=items, memories=memories, ratings=_ratings(rng), relations=relations
        )
    )
    return view


def embed_all(view: GraphView, rng: np.random.Generator) -> None:
    """A vector for every item and memory."""
    texts: list[tuple[TextKind, int, str]] = [("item", i.row, "") for i in view.items()]
    texts += [("memory", m.row, text_digest(m.text)) for m in view.memories()]
    vectors = rng.standard_normal((len(texts), DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    view.apply(
        ChangeSet(
            view.version,
            view.version + 1,
            text_vectors=[
                TextVector(
                    kind, row, MODEL, digest or "00" * 16, vector.astype("<f2").tobytes(), view.version + 1
                )
                for (kind, row, digest), vector in zip(texts, vectors, strict=True)
            ],
        )
    )


def question(view: GraphView, user_id: str, n: int, embedded: bool, rng: np.random.Generator) -> ContextQuery:
    vector = rng.standard_normal(DIM).astype(np.float32)
    suggested = [view.item_at(int(row)) for row in rng.integers(ITEMS, size=5)]
    return ContextQuery(
        user_id,
        f"What did I {_sentence(rng, 5)}, and what should I watch next?",
        NOW + n,
        vector / np.linalg.norm(vector) if embedded else None,
        MODEL if embedded else None,
        tuple(Suggestion(i.item_id, i.title, (i.title,)) for i in suggested if i is not None),
    )


def measure(view: GraphView, user_id: str, embedded: bool, count: Callable[[str], int]) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    total, cpu, selecting, fitting, lines, tokens = [], [], [], [], [], []
    for n in range(CALLS + 1):
        query = question(view, user_id, n, embedded, rng)
        own, start = time.thread_time(), time.perf_counter()
        selected = select(view, query)
        between = time.perf_counter()
        fitted = fit(selected, MAX_TOKENS, count)
        end = time.perf_counter()
        cpu.append((time.thread_time() - own) * 1e3)
        total.append((end - start) * 1e3)
        selecting.append((between - start) * 1e3)
        fitting.append((end - between) * 1e3)
        lines.append(len(fitted.lines))
        tokens.append(fitted.tokens)
    return {
        "cold_ms": float(f"{total[0]:.4g}"),
        "ms": percentiles(total[1:]),
        "cpu_ms": percentiles(cpu[1:]),
        "select_ms": percentiles(selecting[1:]),
        "fit_ms": percentiles(fitting[1:]),
        "lines": spread(lines),
        "tokens": spread(tokens),
    }


def measure_parts(view: GraphView, user_id: str) -> dict[str, Any]:
    """Medians, in milliseconds, of what else reads the same."""
    rng, row = np.random.default_rng(6), view.user(user_id).row
    liked = view.ratings_of(row).item_rows[-12:].tolist()
    searching, by_words, beside = [], [], []
    for n in range(50):
        query = question(view, user_id, n, True, rng)
        start = time.perf_counter()
        score_memories(view, row, Wording(query.query), query.vector, MODEL, NOW).best(10)
        searching.append((time.perf_counter() - start) * 1e3)
        start = time.perf_counter()
        score_memories(view, row, Wording(query.query), None, None, NOW).best(10)
        by_words.append((time.perf_counter() - start) * 1e3)
        start = time.perf_counter()
        neighbours(view, row, liked, 16)
        beside.append((time.perf_counter() - start) * 1e3)
    return {
        "search_memories": float(np.median(searching)),
        "search_memories_by_words": float(np.median(by_words)),
        "neighbours_of_12": float(np.median(beside)),
    }


def tokenizer() -> Callable[[str], int]:
    """Counts tokens as the engine does with the small model."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(small_model_folder())
    return lambda text: count_tokens(loaded, text)


def _sentence(rng: np.random.Generator, words: int) -> str:
    return " ".join(WORDS[place] for place in rng.integers(len(WORDS), size=words))


def _ratings(rng: np.random.Generator) -> np.ndarray:
    popularity = 1 / np.arange(1, ITEMS + 1) ** 0.6
    users = rng.choice(OTHERS, RATINGS, p=_shares(rng.lognormal(0, 1.1, OTHERS))) + len(SIZES)
    items = rng.choice(ITEMS, RATINGS, p=_shares(popularity))
    own = [rng.choice(ITEMS, size, replace=False, p=_shares(popularity)) for size in SIZES]
    users = np.concatenate([users, *[np.full(size, row) for row, size in enumerate(SIZES)]])
    pairs = np.unique(users * ITEMS + np.concatenate([items, *own]))
    ratings = np.zeros(len(pairs), RATING_DTYPE)
    ratings["user_row"], ratings["item_row"] = pairs // ITEMS, pairs % ITEMS
    ratings["value"], ratings["version"] = rng.integers(1, 11, len(pairs)) / 2, 1
    ratings["timestamp"] = NOW - rng.integers(1, 10**8, len(pairs))
    return ratings


def _shares(weights: np.ndarray) -> np.ndarray:
    shares: np.ndarray = weights / weights.sum()
    return shares


if __name__ == "__main__":
    generator = np.random.default_rng(4)
    graph = make_view(generator)
    counter = tokenizer()
    away = {f"m{size}": measure(graph, f"m{size}", False, counter) for size in SIZES}
    embed_all(graph, generator)
    write(
        "context",
        {
            "with vectors": {f"m{size}": measure(graph, f"m{size}", True, counter) for size in SIZES},
            "embedder away": away,
            "parts_ms": {f"m{size}": measure_parts(graph, f"m{size}") for size in SIZES},
        },
    )
