"""A line in the log for each call that takes long, at every part it passes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_limit_s = 1.0


def configure(limit_s: float) -> None:
    """What takes at least so long counts as slow, in this process from now on; 0: everything does."""
    global _limit_s
    _limit_s = limit_s


def note(log: logging.Logger, what: str, took_s: float) -> None:
    """The line, where it is due."""
    if took_s >= _limit_s:
        log.info("%s took %.1f ms", what, 1e3 * took_s)


def noted(call: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """For asynchronous methods that others call: notes the slow ones, those that fail too."""
    log = logging.getLogger(call.__module__)

    @wraps(call)
    async def timed(*args: P.args, **kwargs: P.kwargs) -> T:
        started = time.perf_counter()
        try:
            return await call(*args, **kwargs)
        finally:
            note(log, call.__name__, time.perf_counter() - started)

    return timed
