"""The cluster of cluster.yaml in network namespaces, asked from outside; see namespaces.py."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cluster import namespaces
from tests.service import ROOT

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def test_the_files_of_the_cluster_make_one_that_survives_a_host() -> None:
    # Not `missing`: whoever has everything else may still not be root, or not allowed to make namespaces.
    if reason := namespaces.why_not():
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.namespaces"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=540,
    )
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-20_000:]}"
    assert "written again" in done.stdout
