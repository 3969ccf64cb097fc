"""Does search find what people mean, and what they misspell?

    python -m benchmarks.search [--items 300] [--seed 0]

Over ml-latest-small, with the vectors of all-MiniLM-L6-v2: by vector alone, by title alone and by both.

Known items: titles as people type them (lower case, article in front, nothing in parentheses), clean and with
one or two random edits, without their article, or cut off in the last word; only titles that one item has. A
query has one right answer. Phrases: words for genres; the share of the first ten that carry all of them. The
genres are part of the texts that were embedded, so this says what the title adds or spoils, not how well the
model reads plots.

Latency: one thread, random vectors and titles of 10,000 and of 100,000 items, the titles put together from
words of MovieLens, the queries some of them with a typo; the text model is not part of it.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
import faiss
import numpy as np

from benchmarks.report import percentiles, shared_data, write
from graph.datasets import MovieLensDataset
from graph.datasets.rejects import Rejects
from graph.node_text import item_text
from graph.schema import Item
from models.text_encoder.opening import TextModelSpec, open_encoder
from models.text_search import TextSearch

WAYS = ("by_vector", "by_title", "both")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PHRASES: dict[str, set[str]] = {
    "animated adventure for children": {"animation", "adventure", "children"},
    "cartoon musical for the whole family": {"animation", "musical"},
    "romantic comedy": {"romance", "comedy"},
    "romantic comedy set in paris": {"romance", "comedy"},
    "a funny love story": {"romance", "comedy"},
    "zombie comedy": {"horror", "comedy"},
    "scary horror thriller": {"horror", "thriller"},
    "science fiction horror in space": {"sci-fi", "horror"},
    "futuristic sci-fi action": {"sci-fi", "action"},
    "science fiction adventure": {"sci-fi", "adventure"},
    "war drama": {"war", "drama"},
    "epic war movie with battles": {"war"},
    "cowboy western": {"western"},
    "western comedy": {"western", "comedy"},
    "documentary about music": {"documentary"},
    "nature documentary": {"documentary"},
    "film noir detective mystery": {"film-noir", "mystery"},
    "classic black and white film-noir": {"film-noir"},
    "crime thriller": {"crime", "thriller"},
    "crime comedy about a heist": {"crime", "comedy"},
    "murder mystery": {"mystery"},
    "fantasy adventure with dragons": {"fantasy", "adventure"},
    "fairy tale fantasy for kids": {"fantasy", "children"},
    "musical romance": {"musical", "romance"},
    "dark crime drama": {"crime", "drama"},
    "action packed thriller": {"action", "thriller"},
    "imax action adventure": {"imax", "action"},
    "children's comedy": {"children", "comedy"},
    "psychological mystery thriller": {"mystery", "thriller"},
    "superhero action fantasy": {"action"},
}


def catalogue() -> tuple[list[str], list[str], list[set[str]]]:
    """Titles, texts and tags of the items."""
    operations = MovieLensDataset(shared_data("ml-latest-small")).load(Rejects()).items
    items = [Item(k, p.item_id, p.title, p.tags, p.year, p.text, 0) for k, p in enumerate(operations)]
    return [i.title for i in items], [item_text(i) for i in items], [set(i.tags) for i in items]


def as_typed(title: str) -> str:
    bare = re.sub(r"\([^)]*\)", " ", title).strip().lower()
    return " ".join(re.sub(r"^(.*), (the|a|an)$", r"\2 \1", bare).split())


def edited(text: str, rng: np.random.Generator) -> str:
    """One letter dropped, added, replaced, or swapped with the next."""
    at, letter = int(rng.integers(len(text) - 1)), LETTERS[rng.integers(len(LETTERS))]
    head, here, rest = text[:at], text[at], text[at + 1 :]
    return head + (rest, letter + here + rest, letter + rest, rest[0] + here + rest[1:])[rng.integers(4)]


def known_items(titles: list[str], count: int, rng: np.random.Generator) -> dict[str, list[tuple[str, int]]]:
    """Queries and the row each should find, by kind."""
    typed = [as_typed(title) for title in titles]
    often = Counter(typed)
    unique = [row for row, text in enumerate(typed) if often[text] == 1 and len(text) >= 4]
    queries: dict[str, list[tuple[str, int]]] = {
        kind: [] for kind in ("clean", "one_edit", "two_edits", "no_article", "prefix")
    }
    for row in rng.choice(unique, count, replace=False).tolist():
        text = typed[row]
        queries["clean"].append((text, row))
        queries["one_edit"].append((edited(text, rng), row))
        queries["two_edits"].append((edited(edited(text, rng), rng), row))
        if (bare := re.sub(r"^(the|an?) ", "", text)) != text:
            queries["no_article"].append((bare, row))
        start, _, last = text.rpartition(" ")
        if start.count(" ") and len(last) > 2:
            queries["prefix"].append((f"{start} {last[:2]}", row))
    return queries


def first_ten(search: TextSearch, way: str, text: str, vector: np.ndarray) -> list[int]:
    if way == "by_title":
        return search.search(text, None, 10).rows.tolist()
    return search.search(text if way == "both" else "", vector, 10).rows.tolist()


def known_item_figures(
    search: TextSearch, queries: list[tuple[str, int]], vectors: np.ndarray
) -> dict[str, Any]:
    figures: dict[str, Any] = {"queries": len(queries)}
    for way in WAYS:
        places = []
        for (text, row), vector in zip(queries, vectors, strict=True):
            found = first_ten(search, way, text, vector)
            places.append(found.index(row) + 1 if row in found else np.inf)
        rank = np.array(places)
        figures[way] = {
            "mrr_at_10": round(float((1 / rank).mean()), 4),
            "hit_at_1": round(float((rank <= 1).mean()), 4),
            "hit_at_5": round(float((rank <= 5).mean()), 4),
        }
    return figures


def phrase_figures(search: TextSearch, tags: list[set[str]], vectors: np.ndarray) -> dict[str, Any]:
    figures: dict[str, Any] = {"queries": len(PHRASES)}
    for way in WAYS:
        shares = [
            sum(genres <= tags[row] for row in first_ten(search, way, phrase, vector)) / 10
            for (phrase, genres), vector in zip(PHRASES.items(), vectors, strict=True)
        ]
        figures[way] = {"share_of_first_ten": round(float(np.mean(shares)), 4)}
    return figures


def latency(titles: list[str], items: int, queries: int, rng: np.random.Generator) -> dict[str, Any]:
    words = np.array(sorted({word for title in titles for word in as_typed(title).split()}))
    lengths = rng.choice([len(title.split()) for title in titles], items)
    made = [" ".join(rng.choice(words, length)) for length in lengths]
    search = TextSearch(384)
    start = time.perf_counter()
    search.upsert_texts(np.arange(items), made)
    filling = time.perf_counter() - start
    search.upsert_vectors(np.arange(items), rng.standard_normal((items, 384), dtype=np.float32))
    times: dict[str, list[float]] = {way: [] for way in (*WAYS, "one_upsert")}
    for row in rng.integers(items, size=queries).tolist():
        text = edited(made[row] + "  ", rng)
        vector = rng.standard_normal(384, dtype=np.float32)
        for way in WAYS:
            start = time.perf_counter()
            first_ten(search, way, text, vector)
            times[way].append((time.perf_counter() - start) * 1e3)
        start = time.perf_counter()
        search.upsert_texts(np.array([row]), [text])
        search.upsert_vectors(np.array([row]), vector[None])
        times["one_upsert"].append((time.perf_counter() - start) * 1e3)
    return {
        "items": items,
        "titles_filled_in_s": round(filling, 2),
        **{way: percentiles(spent) for way, spent in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--items", type=int, default=300, help="known items asked for")
    parser.add_argument("--latency-queries", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(options.seed)
    titles, texts, tags = catalogue()
    known = known_items(titles, options.items, rng)
    speed = [latency(titles, items, options.latency_queries, rng) for items in (10_000, 100_000)]

    encoder = open_encoder(TextModelSpec(num_threads=os.cpu_count()))
    search = TextSearch(encoder.fingerprint.dimensions)
    search.upsert_texts(np.arange(len(titles)), titles)
    search.upsert_vectors(np.arange(len(titles)), encoder.encode(texts))
    write(
        "search",
        {
            "seed": options.seed,
            "model": encoder.fingerprint.name,
            "catalogue": len(titles),
            "known_items": {
                kind: known_item_figures(search, queries, encoder.encode([text for text, _ in queries]))
                for kind, queries in known.items()
            },
            "genre_phrases": phrase_figures(search, tags, encoder.encode(list(PHRASES))),
            "latency": {"unit": "ms per query, one thread", "results": speed},
        },
    )


if __name__ == "__main__":
    main()
