"""Fixtures of several modules here."""

from tests.postgres_server import store_url

__all__ = ["store_url"]
