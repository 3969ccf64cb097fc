"""Fitting one encoder network to one set of edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from models.graph_encoder.network import EdgeList, FeatureRows, LinearEncoderNetwork
from models.graph_encoder.objective import full_softmax_loss, sampled_softmax_loss
from models.graph_encoder.parameters import EncoderKind
from models.graph_encoder.sage_network import SageEncoderNetwork

EncoderNetwork: TypeAlias = LinearEncoderNetwork | SageEncoderNetwork

MAX_LOGITS = 8_000_000
"""Floats in the largest buffer of a step, 32 MB: users beyond it take part in turn."""

MAX_SOFTMAX_ITEMS = 20_000
"""Items up to which the softmax is over all of them."""

NUM_NEGATIVES = 4_096

_DENSE_RATE = 0.1
"""Share of the learning rate for weights between layers: every edge pulls at them at once."""

RAREST_ATTRIBUTE = 0.02
"""Share of users that an attribute counts as having at least."""


@dataclass(frozen=True, slots=True)
class FitConfig:
    """One network and its optimisation."""

    dim: int = 64
    l2: float = 1.0
    """Of the ID tables, times each item's share of the (weighted) ratings."""
    steps: int = 200
    stop_after: int | None = None
    """Steps really taken; the learning rate follows `steps` all the same."""
    learning_rate: float = 0.02
    final_rate: float = 0.05
    """Share of the learning rate that is left at the end."""
    hidden: float = 0.3
    """Share of the edges that each step hides from the messages and asks for."""
    id_dropout: float = 0.1
    """Share of the items that each step treats as new, and of the users where these have attributes."""
    user_balance: float = 0.25
    """0: every rating counts alike; 1: every user does, however many ratings they have."""
    seed: int = 0

    @property
    def steps_taken(self) -> int:
        return self.steps if self.stop_after is None else min(self.stop_after, self.steps)


@dataclass(frozen=True, slots=True, eq=False)
class FitData:
    """Edges between users and the items of the id table, with the nodes' features."""

    edges: EdgeList
    item_features: FeatureRows  # [n, F]
    user_features: FeatureRows | None  # [U, G]

    @property
    def device(self) -> torch.device:
        return self.edges.weights.device


def fit_network(
    data: FitData,
    config: FitConfig,
    after_step: Callable[[int, EncoderNetwork], None] | None = None,
    kind: EncoderKind = "linear",
) -> EncoderNetwork:
    """Train by Adam on the whole graph, each step asking for the edges that it hid from the messages.

    Every rating is a target, whatever its weight: what a user picks, and then rates low, was still picked.
    `after_step(steps taken, network)` may evaluate the network under torch.no_grad(). Deterministic by
    `config.seed` on a CPU.
    """
    edges = data.edges
    network = _new_network(data, config, kind).to(data.device)
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.Adam(_parameter_groups(network), lr=config.learning_rate)
    user_weights = user_weights_of(edges, config.user_balance)
    share = torch.zeros(edges.num_items, device=data.device)
    share.index_add_(0, edges.item_rows, user_weights[edges.user_rows])
    share /= share.sum().clamp(min=1e-12)
    # What one user alone has is an ID in disguise: it pays as if more had it.
    attribute_share = torch.empty(0) if data.user_features is None else data.user_features.mean_squares()
    attribute_share = attribute_share.clamp(min=RAREST_ATTRIBUTE)
    batches = _user_batches(edges, generator)
    for step in range(config.steps_taken):
        decay = 1 - (1 - config.final_rate) * step / config.steps
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * decay * group["factor"]
        visible = (torch.rand(len(edges), generator=generator) >= config.hidden).to(data.device)
        if data.user_features is not None:
            # Some users are new in each step: attributes must learn to stand alone.
            known = torch.rand(edges.num_users, generator=generator) >= config.id_dropout
            visible &= known.to(data.device)[edges.user_rows]
        kept_ids = None
        if config.id_dropout > 0:
            drawn = torch.rand(edges.num_items, generator=generator)
            kept_ids = (drawn >= config.id_dropout).to(data.device)
        users, items, bias = network(
            edges.matrices(visible), data.item_features, data.user_features, kept_ids
        )
        loss = hidden_loss(edges, users, items, bias, visible, next(batches), user_weights, share, generator)
        if loss is not None:
            penalty = (network.id_source.square() + network.id_target.square()).sum(1) @ share
            if isinstance(network, LinearEncoderNetwork) and data.user_features is not None:
                penalty = penalty + network.user_attributes.square().sum(1) @ attribute_share
            optimizer.zero_grad()
            (loss + config.l2 * penalty).backward()
            optimizer.step()
        if after_step is not None:
            after_step(step + 1, network)
    return network


def _new_network(data: FitData, config: FitConfig, kind: EncoderKind) -> EncoderNetwork:
    size = data.edges.num_items, data.item_features.shape[1]
    if kind == "sage":
        return SageEncoderNetwork(*size, config.dim, seed=config.seed)
    attributes = 0 if data.user_features is None else data.user_features.shape[1]
    return LinearEncoderNetwork(*size, attributes, config.dim, seed=config.seed)


def _parameter_groups(network: EncoderNetwork) -> list[dict[str, Any]]:
    """Parameters with the share of the learning rate that they learn at."""
    if isinstance(network, LinearEncoderNetwork):
        return [{"params": list(network.parameters()), "factor": 1.0}]
    tables = [tensor for name, tensor in network.named_parameters() if name.startswith(("id_", "feature_"))]
    return [
        {"params": tables, "factor": 1.0},
        {"params": network.dense_parameters(), "factor": _DENSE_RATE},
    ]


def hidden_loss(
    edges: EdgeList,
    users: Tensor,
    items: Tensor,
    bias: Tensor,
    visible: Tensor,
    batch: Tensor | None,
    user_weights: Tensor,
    share: Tensor,
    generator: torch.Generator,
) -> Tensor | None:
    """Of the hidden edges of the batch's users; None where there are none."""
    user_rows, item_rows = edges.user_rows, edges.item_rows
    if batch is not None:
        place = torch.full((edges.num_users,), -1, dtype=torch.int64, device=users.device)
        place[batch] = torch.arange(len(batch), device=users.device)
        inside = place[user_rows] >= 0
        user_rows, item_rows, visible = place[user_rows[inside]], item_rows[inside], visible[inside]
        users, user_weights = users[batch], user_weights[batch]
    hidden = ~visible
    targets = (user_rows[hidden], item_rows[hidden])
    if len(targets[0]) == 0:
        return None
    if edges.num_items <= MAX_SOFTMAX_ITEMS:
        return full_softmax_loss(
            users, items, bias, (user_rows[visible], item_rows[visible]), targets, user_weights
        )
    # Square roots draw frequent items less than their share: the tail needs negatives too.
    odds = share.sqrt().cpu()
    drawn = torch.multinomial(odds, NUM_NEGATIVES, replacement=True, generator=generator)
    drawn = torch.from_numpy(np.unique(drawn.numpy()))
    # Each distinct item counts once, so what is expected of it is the chance of being drawn at all.
    chance = -torch.expm1(-NUM_NEGATIVES * odds[drawn] / odds.sum())
    negatives = drawn.to(users.device)
    places = torch.full((edges.num_items,), -1, dtype=torch.int64, device=users.device)
    places[negatives] = torch.arange(len(negatives), device=users.device)
    drawn_edges = places[item_rows] >= 0
    known = (user_rows[drawn_edges], places[item_rows[drawn_edges]])
    return sampled_softmax_loss(
        users, items, bias, known, targets, user_weights, negatives, chance.log().to(users.device)
    )


def user_weights_of(edges: EdgeList, balance: float) -> Tensor:
    """What one rating of each user counts, float32 [U]."""
    counts = torch.bincount(edges.user_rows, minlength=edges.num_users).float()
    return counts.clamp(min=1) ** -balance


def _user_batches(edges: EdgeList, generator: torch.Generator) -> Iterator[Tensor | None]:
    """Users of each step's targets, in a new random order every round; None stands for all."""
    columns = edges.num_items if edges.num_items <= MAX_SOFTMAX_ITEMS else NUM_NEGATIVES
    size = max(1, MAX_LOGITS // columns)
    if size >= edges.num_users:
        while True:
            yield None
    active = torch.bincount(edges.user_rows, minlength=edges.num_users).nonzero().squeeze(1)
    # Of equal length, so that no step works on a few left over.
    count = math.ceil(len(active) / size)
    while True:
        order = torch.randperm(len(active), generator=generator).to(active.device)
        yield from active[order].tensor_split(count)
