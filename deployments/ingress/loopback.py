"""Who may talk to a service without keys: programs of this machine, and no web page of another site.

Listening on loopback keeps other machines out, but not what they have a browser of this machine do. A page
can post to 127.0.0.1 (its `Origin` gives it away), and a name that the page's owner first resolves to his own
server and then to 127.0.0.1 makes this service the page's own origin (the name in `Host` gives it away).
"""

from __future__ import annotations

import re

from deployments.setting_groups import is_loopback
from graph.errors import WeftError

_AUTHORITY = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::\d{1,5})?")  # [::1]:8000, localhost
_ORIGIN = re.compile(r"https?://(.+)")
_REMEMBERED = 64


class ForeignHost(WeftError):
    """The request was meant for a host of another name."""

    code, status = "foreign_host", 403


class ForeignOrigin(WeftError):
    """A web page of another site wants to write."""

    code, status = "foreign_origin", 403


class LoopbackOnly:
    """Refuses requests for or from anything but this machine."""

    def __init__(self) -> None:
        self._hosts: set[bytes] = set()

    def check(self, method: str, headers: dict[bytes, bytes]) -> None:
        """Raises ForeignHost or ForeignOrigin. One look-up in a set for a host seen before."""
        host = headers.get(b"host", b"")
        if host not in self._hosts:
            if not _is_here(host.decode("latin-1")):
                raise ForeignHost(
                    "this service answers to localhost, 127.0.0.1 and [::1] only; the Host header names "
                    f"{host[:80].decode('latin-1')!r}",
                    param="Host",
                )
            if len(self._hosts) < _REMEMBERED:  # any port is taken, so there are more than to be kept
                self._hosts.add(host)
        if b"origin" in headers and method not in ("GET", "HEAD"):
            origin = headers[b"origin"].decode("latin-1")
            match = _ORIGIN.fullmatch(origin)
            if match is None or not _is_here(match[1]):
                raise ForeignOrigin(
                    f"web pages of {origin[:80]!r} may not write here; only those of this machine may",
                    param="Origin",
                )


def _is_here(authority: str) -> bool:
    match = _AUTHORITY.fullmatch(authority)
    return match is not None and is_loopback((match[1] or match[2]).lower())
