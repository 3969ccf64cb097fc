"""One service over a small store, shared by the tests of a module, which write under ids of their own."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.service import Service, pytest_runtest_makereport, running_service
from tests.small_store import SmallStore, make_small_store

__all__ = ["pytest_runtest_makereport"]


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    return make_small_store(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def service(small_store: SmallStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(small_store.data_dir, tmp_path_factory.mktemp("logs")) as service:
        yield service


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    """Plain HTTP: no retries, no remembered versions."""
    with httpx.Client(base_url=service.url, timeout=20.0, trust_env=False) as http:
        yield http
