"""Weights to start from in which attention already copies.

A small model that is trained on little text spends most of it on finding out that what followed a token once
will follow it again: two layers have to agree on that before either is of use (Olsson et al. 2022,
"In-context Learning and Induction Heads"). Here they agree from the start; training finds out when to copy,
and what.

In the first layer three heads look one, two and three tokens back, by their rotary angles alone, and write a
sketch of what they see into dimensions that no embedding uses at first. In the second layer a head looks for
the place whose previous token is the current one, another for the place whose two previous tokens are the
last two, a third one takes three, and all add the embedding found there to what is predicted. All other
weights are random.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

SKETCH = 24
"""Dimensions of a token's sketch; three times as many are kept free of embeddings."""

_DIMS = 64  # of a head
_FAST, _SLOW = 8, 18  # pairs of a head's dimensions, from either end, that position turns much and hardly
_EMBEDDING, _CONSTANT = 0.08, 1.0
_CLOSE = 0.9  # cosine of synonyms
_BACK, _MATCH, _WRITE, _FOUND = 4.0, 3.0, 0.08, 0.8


@torch.no_grad()
def prepare_copying(model: Any, generator: torch.Generator, synonyms: Sequence[tuple[int, int]] = ()) -> None:
    """Change a Llama's weights in place; needs two layers, three heads of 64 dimensions and a tied output.

    The first token of each of the `synonyms` starts out close to the second: what follows the one is looked
    up behind the other, as in "You live" behind "I live".
    """
    width = model.config.hidden_size
    used = width - 3 * SKETCH
    embedding = model.get_input_embeddings().weight
    embedding[:] = torch.randn(embedding.shape, generator=generator) * _EMBEDDING
    for one, other in synonyms:
        embedding[one] = _CLOSE * embedding[other] + (1 - _CLOSE**2) ** 0.5 * embedding[one]
    embedding[:, used:] = 0.0
    # The same for all tokens: what a head attends to by position alone.
    embedding[:, 0] = _CONSTANT
    now = torch.zeros(SKETCH, width)
    now[:, 1:used] = _orthonormal(SKETCH, used - 1, generator)
    back = [torch.zeros(SKETCH, width) for _ in range(3)]
    for n, sketch in enumerate(back):
        sketch[:, used + n * SKETCH : used + (n + 1) * SKETCH] = torch.eye(SKETCH)

    first, second = (model.model.layers[n].self_attn for n in (0, 1))
    for head in range(3):
        _look_back(first, head, head + 1, model.model.rotary_emb.inv_freq)
        _set(first.v_proj, head, now)
        _set_output(first.o_proj, head, back[head].T * _WRITE)
    for head, parts in enumerate((1, 2, 3)):
        size = min(SKETCH, 2 * _SLOW // parts)
        query = torch.cat([one[:size] for one in (now, back[0], back[1])[:parts]])
        key = torch.cat([one[:size] for one in back[:parts]])
        _set_slow(second.q_proj, head, query * _MATCH)
        _set_slow(second.k_proj, head, key * _MATCH)
        value = torch.zeros(_DIMS, width)
        value[:, 1:used] = _orthonormal(_DIMS, used - 1, generator)
        _set(second.v_proj, head, value)
        _set_output(second.o_proj, head, value.T * _FOUND)


def _look_back(attention: Any, head: int, back: int, angles: torch.Tensor) -> None:
    """Queries and keys that depend on no token, and agree best at a distance of `back`."""
    query, key = torch.zeros(_DIMS), torch.zeros(_DIMS)
    query[:_FAST] = 1.0
    # A key that stands `back` tokens before is turned by so much less than the query.
    key[:_FAST] = torch.cos(back * angles[:_FAST])
    key[_DIMS // 2 : _DIMS // 2 + _FAST] = torch.sin(back * angles[:_FAST])
    for projection, vector in ((attention.q_proj, query), (attention.k_proj, key)):
        weight = torch.zeros(_DIMS, projection.in_features)
        weight[:, 0] = vector * _BACK
        _set(projection, head, weight)


def _set(projection: Any, head: int, weight: torch.Tensor) -> None:
    rows = projection.weight[head * _DIMS : (head + 1) * _DIMS]
    rows[:] = 0.0
    rows[: len(weight)] = weight


def _set_slow(projection: Any, head: int, weight: torch.Tensor) -> None:
    """Rows into the dimensions that position hardly turns: the end of both halves of a head."""
    slow = [*range(_DIMS // 2 - _SLOW, _DIMS // 2), *range(_DIMS - _SLOW, _DIMS)]
    full = torch.zeros(_DIMS, weight.shape[1])
    full[slow[: len(weight)]] = weight
    _set(projection, head, full)


def _set_output(projection: Any, head: int, weight: torch.Tensor) -> None:
    columns = projection.weight[:, head * _DIMS : (head + 1) * _DIMS]
    columns[:] = 0.0
    columns[:, : weight.shape[1]] = weight


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    basis: torch.Tensor = torch.linalg.qr(torch.randn(columns, rows, generator=generator))[0]
    return basis.T
