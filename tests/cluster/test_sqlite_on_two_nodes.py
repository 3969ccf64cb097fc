"""SQLite serves one node: on a cluster that has two the start is refused, and so is a restart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service import ROOT, environment, free_port
from tests.small_store import SmallStore, make_small_store

pytestmark = pytest.mark.faults

SENTENCE = (
    "the Ray cluster has 2 nodes and the store is SQLite, which serves one: set "
    "WEFT_STORE__URL to a PostgreSQL database, as in postgresql://USER:PASSWORD@HOST/DATABASE"
)


@pytest.fixture
def small_store(tmp_path: Path) -> SmallStore:
    return make_small_store(tmp_path)


def test_a_second_node_is_refused_from_then_on(small_store: SmallStore) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.second_node"],
        cwd=ROOT,
        env=environment(small_store.data_dir, free_port()),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["build"] == found["start"] == f"store.url: {SENTENCE}"
    assert len(found["running"]) > 8, "what ran when the node came goes on"
    assert SENTENCE in found["restart"]
