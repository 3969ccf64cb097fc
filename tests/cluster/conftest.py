"""The service on a cluster of several nodes, with its store in PostgreSQL; one for the module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.cluster.nodes import GRAPH_STATE, NodesClient
from tests.postgres_server import postgres_schema
from tests.processes import wait_until
from tests.service import Service, launch, pytest_runtest_makereport, wait_until_ready
from tests.small_store import SmallStore, make_small_store

__all__ = ["pytest_runtest_makereport"]

WORKERS = 3
START_TIMEOUT_S = 180.0
REPLICATED = ("GraphEncoder", "Retriever", "Ingress")


@dataclass(frozen=True, slots=True)
class Cluster:
    service: Service
    nodes: NodesClient
    store: SmallStore


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("nodes")
    socket = folder / "socket"
    command = (sys.executable, "-m", "tests.cluster.nodes", str(socket), str(WORKERS))
    with postgres_schema() as store_url:
        store = make_small_store(tmp_path_factory.mktemp("data"), store_url)
        extra = {
            "WEFT_STORE__URL": store_url,
            "WEFT_GRAPH_STATE__RESOURCES": f'{{"{GRAPH_STATE}": 1}}',
            "WEFT_GRAPH_ENCODER__NUM_REPLICAS": "2",
            "WEFT_RETRIEVER__NUM_REPLICAS": "2",
            "WEFT_INGRESS__NUM_REPLICAS": "2",
        }
        service = launch(store.data_dir, folder, command, extra=extra)
        try:
            wait_until_ready(service, START_TIMEOUT_S)
            # What the text indexer still writes would take versions that tests count.
            wait_until(lambda: service.status()["text_indexer"].get("waiting") == 0, 30, "text vectors")
            yield Cluster(service, NodesClient(socket), store)
            service.interrupt()
            assert service.wait_for_exit() == 0
        except BaseException as error:
            error.add_note(service.logs())
            raise
        finally:
            service.sweep()


@pytest.fixture(scope="module")
def service(cluster: Cluster) -> Service:
    return cluster.service
