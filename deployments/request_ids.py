"""Which requests the code that runs now works for, so that every line of the log can say so.

The edge gives each request its id; a call that several requests share carries all of theirs, as one text with
commas between. `deployments.handles` takes that text along to replicas, `deployments.graph_client` to the
graph state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

MAX_IDS = 64
"""Of one call, as many as the ingress puts into one by default; of more the rest are a number."""

_current: ContextVar[str] = ContextVar("weft_request_ids", default="")
_elsewhere: Callable[[], str] = str


def also_from(ask: Callable[[], str]) -> None:
    """Whom to ask, in this process from now on, where nothing was said with `about`."""
    global _elsewhere
    _elsewhere = ask


def current() -> str:
    """Ids of the requests worked for, with commas between; empty for work that no request asked for."""
    return _current.get() or _elsewhere()


@contextmanager
def about(ids: str) -> Iterator[None]:
    """What runs inside works for these requests."""
    token = _current.set(ids)
    try:
        yield
    finally:
        _current.reset(token)


def joined(ids: Sequence[str]) -> str:
    """Ids of several pieces of work as one text: each once, `MAX_IDS` at most and the number of the rest."""
    if len(ids) == 1:
        return ids[0]
    different = list(dict.fromkeys(each for text in ids for each in text.split(",") if each))
    if len(different) <= MAX_IDS:
        return ",".join(different)
    return ",".join([*different[:MAX_IDS], f"+{len(different) - MAX_IDS}"])


class RequestIds(logging.Filter):
    """Gives records the `request_id` of the work they are about; lets everything through."""

    def filter(self, record: logging.LogRecord) -> bool:
        if ids := current():
            record.request_id = ids
        return True
