"""Twenty queries on ml-latest-small with their first five answers, as docs/search.md shows them.

    python -m benchmarks.search_examples

Not a measurement: nothing is chosen or scored. It replaces the table in docs/search.md.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from benchmarks.search import catalogue
from models.text_encoder.opening import TextModelSpec, open_encoder
from models.text_search import TextSearch

QUERIES = (
    # Titles, as people type them.
    "toy story",
    "star wars",
    "lord of the rings",
    "the matrx",
    "godfathr",
    "terminater 2",
    "shawshank redempton",
    "amelie",
    # What it is about.
    "dinosaurs",
    "romantic comedy set in paris",
    "zombie comedy",
    "space robots",
    "heist gone wrong",
    "christmas movie for kids",
    # Genres.
    "japanese animation",
    "film noir detective",
    "western with clint eastwood",
    "world war 2 drama",
    # Both at once, and something that is not there.
    "animatd fairy tale",
    "how to bake sourdough bread",
)
PAGE = Path(__file__).resolve().parents[1] / "docs" / "search.md"
_TABLE = re.compile(r"(<!-- examples -->\n).*?(<!-- end -->)", re.DOTALL)


def table() -> str:
    """The queries and what they find, as Markdown."""
    titles, texts, _ = catalogue()
    encoder = open_encoder(TextModelSpec())
    vectors = encoder.encode(texts).astype(np.float16).astype(np.float32)  # as the store keeps them
    rows = np.arange(len(texts))
    search = TextSearch(vectors.shape[1])
    search.upsert_texts(rows, titles)
    search.upsert_vectors(rows, vectors)
    lines = ["| query | found |", "|---|---|"]
    for query, vector in zip(QUERIES, encoder.encode(QUERIES), strict=True):
        found = search.search(query, vector, 5)
        names = "; ".join(
            f"{titles[row]} ({score:.2f})"
            for row, score in zip(found.rows.tolist(), found.scores.tolist(), strict=True)
        )
        lines.append(f"| {query} | {names} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    made = table()
    print(made)
    PAGE.write_text(_TABLE.sub(lambda m: m[1] + made + m[2], text), encoding="utf-8")
