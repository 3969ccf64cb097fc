"""What the deployments claim of the cluster's GPUs, and whether they can all have it.

Ray gives a replica a part of one GPU, or several whole ones, and waits without a word for a node where they
are free. A claim that no node will ever meet is therefore refused here, before anything starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deployments.settings import Settings
from graph.errors import InvalidInput

_WHOLE = 10_000
"""Ray counts GPUs in ten-thousandths."""
_MAX_STATES = 20_000
"""Arrangements that are looked at before claims count as possible: only what is certain is refused."""

_Node = tuple[int, ...]
"""What is free of each GPU of a node, ascending."""


@dataclass(frozen=True)
class GpuClaim:
    """GPUs that each replica of a deployment claims, with as many replicas as there may be."""

    name: str
    """Of the deployment's group of settings."""
    num_gpus: float
    replicas: int

    def __str__(self) -> str:
        return f"{self.name} {self.num_gpus:g}" + (f" for each of {self.replicas}" * (self.replicas > 1))


def gpu_claims(settings: Settings, nodes: Sequence[Mapping[str, Any]]) -> tuple[GpuClaim, ...]:
    """Claims of all deployments that claim any; `nodes` as `ray.nodes()` lists them.

    A language model whose claim is not set gets what the others leave.
    """
    claims = [
        GpuClaim(name, group.num_gpus, group.num_replicas)
        for name, group in (
            ("graph_encoder", settings.graph_encoder),
            ("text_embedder", settings.text_embedder),
        )
        if group.num_gpus
    ]
    limits = settings.language_model
    if not limits.enabled:
        return tuple(claims)
    replicas = limits.max_replicas or limits.num_replicas
    num_gpus = limits.num_gpus
    if num_gpus is None:
        wants = limits.backend == "local" and limits.device != "cpu"
        num_gpus = _left_to_each(replicas, claims, _free(settings, nodes)) if wants else 0.0
    if num_gpus:
        claims.append(GpuClaim("language_model", num_gpus, replicas))
    return tuple(claims)


def check_gpus(settings: Settings, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Raise InvalidInput, naming the setting, for GPUs that the cluster's nodes will never have.

    Counted are the nodes that are there and, where settings say that the cluster grows, those to come. What
    others claim of the same cluster is not known here.
    """
    free = _free(settings, nodes)
    claims = gpu_claims(settings, nodes)
    refused = _first_without_place(claims, free)
    if refused is not None:
        total = sum(claim.num_gpus * claim.replicas for claim in claims)
        raise InvalidInput(
            f"the cluster has {_describe(free)}, and GPUs are claimed by {', '.join(map(str, claims))}, "
            f"together {total:g}: {refused.name} has no place. {_ADVICE.format(name=refused.name.upper())}",
            param=f"{refused.name}.num_gpus",
        )
    limits = settings.language_model
    asks = limits.enabled and limits.backend == "local" and limits.device.startswith("cuda")
    if asks and not any(claim.name == "language_model" for claim in claims):
        raise InvalidInput(
            f"language_model.device is {limits.device}, and the cluster has {_describe(free)}, of which "
            f"nothing is left. {_ADVICE.format(name='LANGUAGE_MODEL')}",
            param="language_model.num_gpus",
        )


def num_gpus_of(name: str, claims: Sequence[GpuClaim]) -> float:
    """GPUs that each replica of one deployment claims."""
    return next((claim.num_gpus for claim in claims if claim.name == name), 0.0)


_ADVICE = (
    "Lower WEFT_{name}__NUM_GPUS, to 0 with WEFT_{name}__DEVICE=auto for the CPU, or its number of "
    "replicas, or start where there are GPUs; if their nodes are still to come, say so with "
    "WEFT_CLUSTER__GROWS=true and WEFT_CLUSTER__MAX_GPU_NODES"
)


def _left_to_each(replicas: int, others: Sequence[GpuClaim], free: Sequence[_Node]) -> float:
    """The largest part of a GPU that so many replicas can have beside the claims of others."""
    taken = _parts(others)
    left = max(0, sum(map(sum, free)) - sum(taken))
    for part in sorted(
        {left // replicas, *(_WHOLE // sharing for sharing in range(1, replicas + 1))}, reverse=True
    ):
        if part <= _WHOLE and _fit(sorted([*taken, *[part] * replicas], reverse=True), free):
            return part / _WHOLE
    return 0.0


def _free(settings: Settings, nodes: Sequence[Mapping[str, Any]]) -> list[_Node]:
    """Nodes with GPUs that there are, and those to come; all of their GPUs free."""
    counts = (int(node.get("Resources", {}).get("GPU", 0)) for node in nodes if node["Alive"])
    there = [(_WHOLE,) * count for count in counts if count]
    cluster = settings.cluster
    return there + [(_WHOLE,) * cluster.gpus_per_node] * max(0, cluster.max_gpu_nodes - len(there))


def _describe(free: Sequence[_Node]) -> str:
    if not free:
        return "no GPU"
    number = sum(map(len, free))
    return f"{number} GPU{'s' * (number > 1)} on {len(free)} node{'s' * (len(free) > 1)}"


def _parts(claims: Sequence[GpuClaim]) -> list[int]:
    """What each replica claims, in ten-thousandths of a GPU."""
    return [round(claim.num_gpus * _WHOLE) for claim in claims for _ in range(claim.replicas)]


def _first_without_place(claims: Sequence[GpuClaim], free: Sequence[_Node]) -> GpuClaim | None:
    """The largest claim that finds no place beside those that are larger still."""
    ordered = sorted(claims, key=lambda claim: -claim.num_gpus)
    for number, claim in enumerate(ordered, start=1):
        if not _fit(_parts(ordered[:number]), free):
            return claim
    return None


def _fit(wanted: Sequence[int], free: Sequence[_Node]) -> bool:
    """Whether all have a place at once; `wanted` is descending. Also True where that takes long to tell."""
    if sum(wanted) > sum(map(sum, free)):
        return False
    seen: set[tuple[int, tuple[_Node, ...]]] = set()

    def place(position: int, nodes: tuple[_Node, ...]) -> bool:
        if position == len(wanted) or len(seen) >= _MAX_STATES:
            return True
        if (position, nodes) in seen:
            return False
        seen.add((position, nodes))
        return any(place(position + 1, after) for after in _placements(wanted[position], nodes))

    return place(0, tuple(sorted(free)))


def _placements(wanted: int, nodes: tuple[_Node, ...]) -> Iterator[tuple[_Node, ...]]:
    """What may be left when one more is placed, the tightest place first."""
    for number, node in enumerate(nodes):
        if number and node == nodes[number - 1]:
            continue
        for left in _left(wanted, node):
            yield tuple(sorted((*nodes[:number], left, *nodes[number + 1 :])))


def _left(wanted: int, node: _Node) -> Iterator[_Node]:
    if wanted >= _WHOLE:
        count = wanted // _WHOLE
        if node.count(_WHOLE) >= count:
            yield (0,) * count + node[: len(node) - count]
        return
    for number, free in enumerate(node):
        if free >= wanted and (not number or free != node[number - 1]):
            yield tuple(sorted((*node[:number], free - wanted, *node[number + 1 :])))
