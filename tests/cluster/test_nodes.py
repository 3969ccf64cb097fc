"""A cluster of several nodes that lose their machines: nothing acknowledged is lost or doubled."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter

import httpx
import pytest

from deployments.settings import Settings
from deployments.store_access import read_view
from models.graph_encoder.checkpoint import load_checkpoint
from tests.cluster.conftest import REPLICATED, WORKERS, Cluster
from tests.cluster.nodes import GRAPH_STATE, HEAD, Placed
from tests.faults.ledger import BackgroundWriters, BookkeepingWriter, assert_kept, head
from tests.plain_ranking import PlainRanking, assert_ranked
from tests.processes import wait_until
from tests.service import Service

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

RETURNED_S = 120.0


def test_the_parts_are_spread_over_the_workers(cluster: Cluster, service: Service) -> None:
    actors = cluster.nodes.actors()
    for deployment in REPLICATED:
        nodes = [actor.node for actor in cluster.nodes.replicas(deployment)]
        assert len(nodes) == len(set(nodes)) == 2, f"{deployment} on {nodes}"
    by_node = Counter(actor.node for actor in actors)
    assert set(by_node) == {HEAD, *(f"worker-{n}" for n in range(WORKERS))}, by_node
    (state,) = cluster.nodes.replicas(GRAPH_STATE)
    assert state.node in {f"worker-{n}" for n in range(1, WORKERS)}, "where its resource is"
    on_head = {actor.name for actor in actors if actor.node == HEAD}
    assert not on_head & {*REPLICATED, "GraphKeeper", "TextEmbedder", "TextIndexer"}, on_head


def test_the_node_of_the_graph_state_dies(cluster: Cluster, service: Service) -> None:
    """And the keeper lives, so that nobody but Ray starts the graph state again."""
    (state,) = cluster.nodes.replicas(GRAPH_STATE)
    for _ in range(8):
        (keeper,) = cluster.nodes.replicas("GraphKeeper")
        if keeper.node != state.node:
            break
        os.kill(service.replica("GraphKeeper").pid, signal.SIGKILL)
        wait_until(lambda old=keeper: _another(cluster, "GraphKeeper", old), 60, "another keeper")
    assert keeper.node != state.node, "they are on one node, whatever happens"
    lose(cluster, state.node)
    (after,) = cluster.nodes.replicas(GRAPH_STATE)
    assert after.node not in (HEAD, state.node)
    assert after.actor_id == state.actor_id


def _another(cluster: Cluster, part: str, old: Placed) -> bool:
    """Whether another replica of a part is there, and ready."""
    found = cluster.nodes.replicas(part)
    return [actor.actor_id != old.actor_id for actor in found] == [True] and _ready(cluster.service)


def _ready(service: Service) -> bool:
    try:
        return service.get("/readyz").status_code == 200 and "error" not in service.status()["graph_keeper"]
    except httpx.HTTPError:
        return False


def test_a_node_of_encoders_and_retrievers_dies(cluster: Cluster, service: Service) -> None:
    there = Counter(r.node for part in ("GraphEncoder", "Retriever") for r in cluster.nodes.replicas(part))
    (state,) = cluster.nodes.replicas(GRAPH_STATE)
    # One without the graph state where there is one: that is another test.
    victim = max(there, key=lambda node: (node != state.node, there[node]))
    lose(cluster, victim)


def lose(cluster: Cluster, node: str) -> None:
    """Kill a node under load; then everything is there again, elsewhere, and knows every write."""
    service, items = cluster.service, cluster.store.items["space"]
    first = head(service)
    with BackgroundWriters(service, items, seed=3) as writers:
        wait_until(lambda: writers.acknowledged > 40, 30, "writes before the loss")
        there = sorted(actor.name for actor in cluster.nodes.actors() if actor.node == node)
        cluster.nodes.kill(node)
        lost = time.monotonic()
        enough = writers.acknowledged + 40
        wait_until(lambda: writers.acknowledged >= enough, RETURNED_S, "writes after the loss")
        writing = time.monotonic() - lost
        wait_until(lambda: _complete(cluster, node), RETURNED_S, "return of everything that was lost")
        complete = time.monotonic() - lost
        enough = writers.acknowledged + 40
        wait_until(lambda: writers.acknowledged >= enough, 30, "writes after the return")
    writers.check()
    print(
        f"{node} lost with {', '.join(there)}: "
        f"40 writes after {writing:.1f} s, all replicas after {complete:.1f} s; "
        f"{len(writers.versions)} writes, {sum(w.repeats for w in writers.writers)} repeated"
    )
    assert_kept(service, writers.writers)
    # Every write took one version of its own; one done twice, or one nobody sent, would take another.
    assert writers.versions == list(range(first + 1, head(service) + 1))
    assert_ranked_as_computed_anew(service, cluster, writers.writers)


def _complete(cluster: Cluster, gone: str) -> bool:
    """Every part has its number of replicas on other nodes, and everything is ready."""
    replicas = {part: cluster.nodes.replicas(part) for part in (*REPLICATED, "TextEmbedder", "GraphKeeper")}
    numbers = {part: sum(r.node != gone for r in found) for part, found in replicas.items()}
    wanted = dict.fromkeys(REPLICATED, 2) | {"TextEmbedder": 1, "GraphKeeper": 1}
    if numbers != wanted:
        return False
    return _ready(cluster.service)


def assert_ranked_as_computed_anew(
    service: Service, cluster: Cluster, writers: list[BookkeepingWriter]
) -> None:
    """Recommendations of fans and of writers' users are those of the equations over what the store holds."""
    settings = {"data_dir": service.data_dir, "store": {"url": service.store_url}}
    view = read_view(Settings.model_validate(settings))
    plain = PlainRanking(load_checkpoint(service.data_dir / "encoders" / cluster.store.active), view)
    every = {item.item_id for item in view.items()}
    written = sorted({user for writer in writers for user, _ in writer.ratings})
    users = [*cluster.store.fans["space"], *cluster.store.fans["garden"], *written[:8]]
    with service.client() as client:
        client.observe(f"{view.store_id}.{view.version}")
        for user_id in users * 2:  # so that every replica has its turn
            rated = view.ratings_of(view.user(user_id).row).item_rows
            seen = {view.item_at(int(row)).item_id for row in rated}  # type: ignore[union-attr]
            answer = client.recommend(user_id, n=120, exact_items=True)
            assert_ranked(answer.recommendations, plain.scores(user_id), every - seen, 120)
