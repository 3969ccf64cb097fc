"""The client with which commands talk to the service of these settings, with the key they were given."""

from __future__ import annotations

from typing import Any

from deployments.client import WeftClient
from deployments.settings import Settings


def service_client(settings: Settings, url: str | None = None, **limits: Any) -> WeftClient:
    """`limits`: what WeftClient takes. `url` where the service is elsewhere than the settings say."""
    key = settings.api_key
    return WeftClient(
        settings.url if url is None else url,
        api_key=None if key is None else key.get_secret_value(),
        **limits,
    )
