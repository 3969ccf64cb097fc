"""Fixtures every part of the suite may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# As the command line does: threads that spin at barriers starve each other on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def missing(reason: str) -> None:
    """Skip visibly on a developer's machine; fail where CI=true, which has everything."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI lacks what this test needs: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real data sets (ml-latest-small, goodbooks-10k), beside the checkout."""
    folder = Path(os.environ.get("WEFT_TEST_DATA", SHARED_DATA))
    if not (folder / "ml-latest-small" / "ratings.csv").is_file():
        missing(f"no data sets in {folder}: set WEFT_TEST_DATA to a folder that holds ml-latest-small")
    return folder
