"""One service for the tests that kill parts of it: that it lives on is what they are about."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.service import Service, pytest_runtest_makereport, running_service
from tests.small_store import SmallStore, make_small_store

__all__ = ["pytest_runtest_makereport"]


@pytest.fixture(scope="package")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    return make_small_store(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="package")
def service(small_store: SmallStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    extra = {"WEFT_LANGUAGE_MODEL__ENABLED": "true"}
    with running_service(small_store.data_dir, tmp_path_factory.mktemp("logs"), extra=extra) as service:
        yield service
