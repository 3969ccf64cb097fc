"""Log lines at INFO with the ids of their requests: of replicas where Serve writes its own, and at once."""

from __future__ import annotations

import logging
from logging.handlers import MemoryHandler

from deployments import slow_calls
from deployments.request_ids import RequestIds
from deployments.setting_groups import LogSettings


def configure_logging(settings: LogSettings | None = None) -> None:
    """Send Weft's loggers to where Serve writes a replica's log."""
    slow_calls.configure((settings or LogSettings()).slow_call_s)
    serve_logger = logging.getLogger("ray.serve")
    handlers = [_at_once(handler) for handler in serve_logger.handlers]
    for handler in handlers:
        # Serve's own filter is there with its access log alone, and knows nothing of calls that are shared.
        handler.addFilter(RequestIds())
    for name in ("deployments", "graph", "models", "weft"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = list(handlers)
        logger.propagate = not handlers


def log_to_stderr(settings: LogSettings) -> None:
    """For a process that is no replica of Serve's; Ray keeps its stderr in a file."""
    slow_calls.configure(settings.slow_call_s)
    handler = logging.StreamHandler()
    form = "%(asctime)s %(levelname)s %(name)s %(request_id)s -- %(message)s"
    handler.setFormatter(logging.Formatter(form, defaults={"request_id": "-"}))
    handler.addFilter(RequestIds())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _at_once(handler: logging.Handler) -> logging.Handler:
    # Serve tuned for throughput keeps a thousand lines in memory before it writes them: a warning of ours
    # would not be seen for days, and is lost with the process.
    if not isinstance(handler, MemoryHandler) or handler.target is None:
        return handler
    own = MemoryHandler(1, target=handler.target)
    for each in handler.filters:
        own.addFilter(each)
    return own
