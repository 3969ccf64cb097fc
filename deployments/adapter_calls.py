"""Calls that list and change adapters, as the language model deployment answers them: errors are returned."""

from __future__ import annotations

from collections.abc import Callable

from deployments.adapter_manager import AdapterManager
from deployments.generation_messages import (
    ActivateAdapter,
    AdapterListing,
    AdapterState,
    AdapterWritten,
    PutAdapter,
)
from graph.errors import WeftError
from models.adapter_pointers import AdapterScope


class AdapterCalls:
    """Hands them to the manager of now."""

    def __init__(self, manager: Callable[[int], AdapterManager]) -> None:
        """`manager` takes the version to be at; raises NotYet, and ModelUnavailable where there is none."""
        self._adapters = manager

    async def list_adapters(
        self, limit: int, after: str | None, scope: AdapterScope | None, name: str | None, min_version: int
    ) -> AdapterListing | WeftError:
        try:
            return await self._adapters(min_version).list(limit, after, scope, name)
        except WeftError as error:
            return error

    async def put_adapter(self, what: PutAdapter, min_version: int) -> AdapterWritten | WeftError:
        try:
            return await self._adapters(min_version).put(what)
        except WeftError as error:
            return error

    async def activate_adapter(self, what: ActivateAdapter, min_version: int) -> AdapterWritten | WeftError:
        try:
            return await self._adapters(min_version).activate(what)
        except WeftError as error:
            return error

    async def roll_back_adapter(
        self, scope: AdapterScope, name: str, min_version: int
    ) -> AdapterWritten | WeftError:
        try:
            return await self._adapters(min_version).roll_back(scope, name)
        except WeftError as error:
            return error

    async def delete_adapter(
        self, scope: AdapterScope, name: str, version: str, min_version: int
    ) -> AdapterWritten | WeftError:
        try:
            return await self._adapters(min_version).delete(scope, name, version)
        except WeftError as error:
            return error

    async def adapter_history(
        self, scope: AdapterScope, name: str, min_version: int
    ) -> tuple[AdapterState, ...] | WeftError:
        try:
            return await self._adapters(min_version).history(scope, name)
        except WeftError as error:
            return error
