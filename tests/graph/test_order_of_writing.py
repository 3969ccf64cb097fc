"""What a user's context and graph show depends on what is stored, not on how a view came about."""

from __future__ import annotations

import numpy as np
import pytest

from graph.context import ContextQuery, select
from graph.neighbours import neighbours
from graph.schema import DeleteRating, Operation, PutItem, PutMemory, PutRating, PutRelation, PutUser
from graph.store import GraphStore
from graph.user_graph import user_graph
from graph.view import GraphView
from graph.writer import GraphWriter
from tests.graph.plain_model import read_view, write

USERS, ITEMS, NOW = 90, 24, 1_750_000_000


def random_writes(seed: int) -> list[list[Operation]]:
    """Ratings one by one and in bulk, of few and of many different seconds, some changed, some taken back."""
    rng = np.random.default_rng(seed)
    commits: list[list[Operation]] = [
        [PutUser(f"u{n}", {}) for n in range(USERS)],
        [PutItem(f"i{n}", f"Film {n}", ("noir",)) for n in range(ITEMS)],
    ]
    rated: list[tuple[str, str]] = []
    for _ in range(120):
        commit: list[Operation] = []
        for _ in range(int(rng.integers(1, 12))):
            pair = f"u{rng.integers(USERS)}", f"i{rng.integers(ITEMS)}"
            second = NOW + int(rng.integers(3 if seed % 2 else 10**6))
            commit.append(PutRating(*pair, float(rng.integers(6, 11)) / 2, second))
            rated.append(pair)
        commits.append(commit)
        if rng.random() < 0.3:
            gone = rated.pop(int(rng.integers(len(rated))))
            commits[-1] = [c for c in commit if (c.user_id, c.item_id) != gone]  # type: ignore[union-attr]
            rated = [pair for pair in rated if pair != gone]
            commits.append([PutRating(*gone, 1.0, NOW), DeleteRating(*gone)])
    texts = rng.permutation([f"On day {n} I saw a film with Ben" for n in range(30)]).tolist()
    commits += [[PutMemory(f"m{n}", "u1", text)] for n, text in enumerate(texts)]
    commits += [[PutRelation("u1", f"m{n}", "about", "item", f"i{n}")] for n in rng.permutation(9).tolist()]
    return commits


def shown(view: GraphView) -> list[object]:
    found: list[object] = []
    for user_id in ("u1", "u2", "u3"):
        for question in ("", "What did I see with Ben on day 7?", "Is Film 3 any good?"):
            lines = select(view, ContextQuery(user_id, question, NOW))
            found.append([(line.source_id, line.text, round(line.score, 9)) for line in lines])
        found.append(user_graph(view, user_id, 2, 12))
        liked = sorted(view.ratings_of(view.user(user_id).row).item_rows.tolist())[:5]
        beside = neighbours(view, view.user(user_id).row, liked, 9, max_raters=6, max_ratings=4)
        found.append([(near.item_row, near.reasons) for near in beside])
    return found


@pytest.mark.parametrize("seed", range(4))
def test_a_rebuilt_view_shows_the_same(seed: int, store_url: str) -> None:
    store = GraphStore(store_url)
    writer = GraphWriter(store)
    for commit in random_writes(seed):
        write(writer, *commit)
    assert shown(writer.view) == shown(read_view(store)) == shown(writer.view.copy())
    store.close()
