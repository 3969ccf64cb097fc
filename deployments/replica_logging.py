"""Log lines of replicas: where Serve writes its own, at INFO, and at once."""

from __future__ import annotations

import logging
from logging.handlers import MemoryHandler


def configure_logging() -> None:
    """Send Weft's loggers to where Serve writes a replica's log."""
    serve_logger = logging.getLogger("ray.serve")
    handlers = [_at_once(handler) for handler in serve_logger.handlers]
    for name in ("deployments", "graph", "models", "weft"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = list(handlers)
        logger.propagate = not handlers


def _at_once(handler: logging.Handler) -> logging.Handler:
    # Serve tuned for throughput keeps a thousand lines in memory before it writes them: a warning of ours
    # would not be seen for days, and is lost with the process.
    if not isinstance(handler, MemoryHandler) or handler.target is None:
        return handler
    own = MemoryHandler(1, target=handler.target)
    for each in handler.filters:
        own.addFilter(each)
    return own
