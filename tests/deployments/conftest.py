"""Fixtures of several modules here."""

from tests.deployments.scripted_cli import weft

__all__ = ["weft"]
