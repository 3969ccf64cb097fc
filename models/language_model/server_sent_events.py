"""Server-sent events, read from bytes that were cut anywhere.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re

from graph.errors import Unavailable

MAX_EVENT_BYTES = 1 << 20

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventStreamReader:
    """The data of one stream's events; comments and all other fields are passed over.

    Holds no more than about twice `max_event_bytes`.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()  # the beginning of a line whose end has not come
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._after_cr = False
        self._at_start = True

    def feed(self, chunk: bytes) -> list[str]:
        """Data of the events that `chunk` ends. Raises Unavailable for an event or line beyond the limit."""
        if not chunk:
            return []
        if self._after_cr:  # the line ended there: this is the rest of its CRLF
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        found: list[str] = []
        *lines, rest = _LINE_END.split(chunk)
        for line in lines:
            self._line += line
            self._check(len(self._line))
            whole = bytes(self._line)
            self._line.clear()
            if (data := self._take(whole)) is not None:
                found.append(data)
        self._line += rest
        self._check(len(self._line))
        return found

    def _take(self, line: bytes) -> str | None:
        """One line; the event's data if it ends one."""
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                value = value.removeprefix(b" ")
                self._data.append(value)
                self._data_bytes += len(value) + 1
                self._check(self._data_bytes)
            return None
        if not self._data:
            return None
        data = b"\n".join(self._data).decode(errors="replace")
        self._data, self._data_bytes = [], 0
        return data

    def _check(self, size: int) -> None:
        if size > self._max_event_bytes:
            raise Unavailable(f"the server sent an event of more than {self._max_event_bytes:,} bytes")
