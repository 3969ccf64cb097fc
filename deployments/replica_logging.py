"""Log lines of replicas: through Serve's own handlers, at INFO."""

from __future__ import annotations

import logging


def configure_logging() -> None:
    """Send Weft's loggers to where Serve writes a replica's log."""
    serve_logger = logging.getLogger("ray.serve")
    for name in ("deployments", "graph", "models", "weft"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = list(serve_logger.handlers)
        logger.propagate = not serve_logger.handlers
