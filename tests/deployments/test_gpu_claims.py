"""Claims of GPUs: what each part claims, and what a cluster can never give."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from deployments.gpu_claims import check_gpus, gpu_claims, num_gpus_of
from graph.errors import InvalidInput
from tests.deployments.local_state import make_settings

SHARED = {
    "graph_encoder": {"num_gpus": 0.1},
    "text_embedder": {"num_gpus": 0.2, "backend": "hashing", "model": "hashing"},
    "language_model": {"num_gpus": 0.7},
}


def nodes(*gpus: int, dead: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """As `ray.nodes()` lists them, with so many GPUs each."""
    return [
        {"Alive": alive, "Resources": {"CPU": 8.0} | ({"GPU": float(count)} if count else {})}
        for counts, alive in ((gpus, True), (dead, False))
        for count in counts
    ]


def test_a_machine_without_gpus_is_asked_for_none(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    assert gpu_claims(settings, nodes(0)) == ()
    check_gpus(settings, nodes(0))


def test_three_parts_share_one_card(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, **SHARED)
    claims = gpu_claims(settings, nodes(1))
    assert {claim.name: (claim.num_gpus, claim.replicas) for claim in claims} == {
        "graph_encoder": (0.1, 1),
        "text_embedder": (0.2, 1),
        "language_model": (0.7, 1),
    }
    assert num_gpus_of("text_embedder", claims) == 0.2
    assert num_gpus_of("retriever", claims) == 0.0
    check_gpus(settings, nodes(1))
    check_gpus(settings, nodes(0, 1))


@pytest.mark.parametrize(
    ("gpus", "others", "replicas", "expected"),
    [
        ((0,), 0.0, 1, 0.0),
        ((1,), 0.0, 1, 1.0),
        ((1,), 0.3, 1, 0.7),
        ((1,), 0.0, 3, 0.3333),
        ((1,), 0.3, 2, 0.35),
        ((2,), 0.0, 1, 1.0),
        ((2,), 0.3, 1, 1.0),
        ((2,), 0.0, 3, 0.5),
        ((1, 1), 0.0, 2, 1.0),
        ((2,), 1.0, 1, 1.0),
        ((1,), 1.0, 1, 0.0),
    ],
)
def test_a_language_model_without_a_claim_gets_the_largest_part_that_others_leave(
    tmp_path: Path, gpus: tuple[int, ...], others: float, replicas: int, expected: float
) -> None:
    settings = make_settings(
        tmp_path, graph_encoder={"num_gpus": others}, language_model={"num_replicas": replicas}
    )
    assert num_gpus_of("language_model", gpu_claims(settings, nodes(*gpus))) == expected
    check_gpus(settings, nodes(*gpus))  # what is given by default has a place


@pytest.mark.parametrize(
    "group",
    [
        {"enabled": False},
        {"device": "cpu"},
        {"backend": "openai", "url": "http://127.0.0.1:1/v1", "model": "m"},
    ],
)
def test_a_language_model_that_computes_elsewhere_claims_nothing(
    tmp_path: Path, group: dict[str, Any]
) -> None:
    assert gpu_claims(make_settings(tmp_path, language_model=group), nodes(4)) == ()


@pytest.mark.parametrize(
    ("groups", "there", "named"),
    [
        # None at all, and none left.
        ({"graph_encoder": {"num_gpus": 0.1}}, (0,), "graph_encoder"),
        ({"language_model": {"num_gpus": 1}}, (), "language_model"),
        (SHARED | {"language_model": {"num_gpus": 0.8}}, (1,), "graph_encoder"),
        # More in sum than there is; replicas that may be added count.
        ({"language_model": {"num_gpus": 0.7, "max_replicas": 3}}, (2,), "language_model"),
        # As much as there is, on cards too small for it.
        ({"language_model": {"num_gpus": 0.6, "num_replicas": 3}}, (2,), "language_model"),
        ({"language_model": {"num_gpus": 1, "num_replicas": 3}}, (1, 1), "language_model"),
        ({"language_model": {"num_gpus": 1}, "graph_encoder": {"num_gpus": 0.5}}, (1,), "graph_encoder"),
    ],
)
def test_what_no_node_can_give_is_refused_by_name(
    tmp_path: Path, groups: dict[str, Any], there: tuple[int, ...], named: str
) -> None:
    with pytest.raises(
        InvalidInput, match=rf"{named} has no place.*WEFT_{named.upper()}__NUM_GPUS"
    ) as caught:
        check_gpus(make_settings(tmp_path, **groups), nodes(*there))
    assert caught.value.param == f"{named}.num_gpus"


def test_a_node_that_is_dead_gives_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="has no GPU"):
        check_gpus(make_settings(tmp_path, graph_encoder={"num_gpus": 0.1}), nodes(0, dead=(1,)))


@pytest.mark.parametrize("others", [0.0, 1.0])
def test_cuda_is_refused_where_nothing_is_left_of_it(tmp_path: Path, others: float) -> None:
    settings = make_settings(tmp_path, language_model={"device": "cuda"}, graph_encoder={"num_gpus": others})
    there = nodes(1 if others else 0)
    with pytest.raises(InvalidInput, match=r"device is cuda.*nothing is left") as caught:
        check_gpus(settings, there)
    assert caught.value.param == "language_model.num_gpus"
    check_gpus(settings, nodes(2))


def test_only_certain_failures_are_refused(tmp_path: Path) -> None:
    """Two large and four small ones fit two cards in one way, which largest-first does not find."""
    settings = make_settings(
        tmp_path,
        language_model={"num_gpus": 0.4, "num_replicas": 2},
        graph_encoder={"num_gpus": 0.3, "num_replicas": 4},
    )
    check_gpus(settings, nodes(2))
    check_gpus(settings, nodes(1, 1))


def fits(parts: list[int], cards: int) -> bool:
    """By trying every arrangement."""
    for places in itertools.product(range(cards), repeat=len(parts)):
        loads = [0] * cards
        for part, place in zip(parts, places, strict=True):
            loads[place] += part
        if max(loads) <= 10:
            return True
    return False


def test_the_search_agrees_with_trying_everything(tmp_path: Path) -> None:
    for language, encoder, cards in itertools.product((3, 4, 6, 7), (1, 3, 5), (1, 2, 3)):
        for replicas, others in itertools.product((1, 3), (1, 2)):
            settings = make_settings(
                tmp_path,
                language_model={"num_gpus": language / 10, "num_replicas": replicas},
                graph_encoder={"num_gpus": encoder / 10, "num_replicas": others},
            )
            expected = fits([language] * replicas + [encoder] * others, cards)
            for there in ((cards,), (1,) * cards):
                try:
                    check_gpus(settings, nodes(*there))
                except InvalidInput:
                    assert not expected, (language, encoder, cards, replicas, others)
                else:
                    assert expected, (language, encoder, cards, replicas, others)


def test_many_claims_on_many_cards_are_answered(tmp_path: Path) -> None:
    settings = make_settings(
        tmp_path,
        language_model={"num_gpus": 0.7, "num_replicas": 64},
        graph_encoder={"num_gpus": 0.1, "num_replicas": 64},
        text_embedder={"num_gpus": 0.2, "num_replicas": 64, "backend": "hashing", "model": "hashing"},
    )
    check_gpus(settings, nodes(*[8] * 8))
    with pytest.raises(InvalidInput, match="has no place"):
        check_gpus(settings, nodes(*[8] * 7, 7))


# ------------------------------------------------------------------------------------- nodes that are to come


def test_nodes_to_come_count_when_the_settings_say_so(tmp_path: Path) -> None:
    grows = {"cluster": {"grows": True, "max_gpu_nodes": 2}}
    two = SHARED | {"language_model": {"num_gpus": 0.7, "num_replicas": 2}}
    check_gpus(make_settings(tmp_path, **SHARED, **grows), nodes(0))
    check_gpus(make_settings(tmp_path, **two, **grows), nodes(0))
    check_gpus(make_settings(tmp_path, **two, **grows), nodes(0, 1))
    three = SHARED | {"language_model": {"num_gpus": 0.7, "num_replicas": 3}}
    for there in (nodes(0), nodes(0, 1), nodes(1, 1)):
        with pytest.raises(InvalidInput, match="2 GPUs on 2 nodes"):
            check_gpus(make_settings(tmp_path, **three, **grows), there)


def test_a_claim_that_fits_no_node_to_come_is_refused(tmp_path: Path) -> None:
    """Two nodes of one GPU each: Ray would add them and still wait."""
    three = {"num_gpus": 0.6, "num_replicas": 3}
    settings = make_settings(tmp_path, language_model=three, cluster={"grows": True, "max_gpu_nodes": 2})
    with pytest.raises(InvalidInput, match="language_model has no place"):
        check_gpus(settings, nodes(0))
    wider = {"grows": True, "max_gpu_nodes": 1, "gpus_per_node": 3}
    check_gpus(make_settings(tmp_path, language_model=three, cluster=wider), nodes(0))


def test_gpu_nodes_of_a_cluster_that_does_not_grow_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="set grows to true"):
        make_settings(tmp_path, cluster={"max_gpu_nodes": 1})


# ----------------------------------------------------------------------------------------------- the settings

HASHING = {"backend": "hashing", "model": "hashing"}


@pytest.mark.parametrize("group", ["graph_encoder", "text_embedder", "language_model"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"device": "cuda", "num_gpus": 0}, "sees only the GPUs that it claims"),
        ({"device": "cpu", "num_gpus": 0.5}, "nobody else could use"),
        ({"device": "cuda:1", "num_gpus": 0.5}, "counts the GPUs that it claims from 0"),
        ({"device": "cuda:1", "num_gpus": 1}, "counts the GPUs that it claims from 0"),
        ({"num_gpus": 1.5}, "a replica computes on one"),
        ({"num_gpus": 2}, "a replica computes on one"),
        ({"num_gpus": -1}, "greater than or equal to 0"),
    ],
)
def test_devices_and_claims_belong_together(
    tmp_path: Path, group: str, values: dict[str, Any], message: str
) -> None:
    base = HASHING if group == "text_embedder" else {}
    with pytest.raises(ValidationError, match=message):
        make_settings(tmp_path, **{group: base | values})


@pytest.mark.parametrize("group", ["graph_encoder", "text_embedder", "language_model"])
@pytest.mark.parametrize(
    "values", [{"device": "cuda", "num_gpus": 0.2}, {"device": "cuda:0", "num_gpus": 1}, {"device": "auto"}]
)
def test_devices_that_are_claimed_are_fine(tmp_path: Path, group: str, values: dict[str, Any]) -> None:
    base = HASHING if group == "text_embedder" else {}
    assert make_settings(tmp_path, **{group: base | values})
