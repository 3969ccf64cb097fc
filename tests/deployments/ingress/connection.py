"""An ASGI server's side of one request: it can hang up at any time, and see what has been sent by then."""

from __future__ import annotations

import asyncio
import json


def asked(path: str, method: str = "POST", query: str = "", accept: str = "*/*") -> dict:
    """The scope of a request."""
    return {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(b"content-type", b"application/json"), (b"accept", accept.encode())],
    }


class Connection:
    """`receive` and `send` of one request with a JSON body; None for no body."""

    def __init__(self, body: object = None) -> None:
        self._body = b"" if body is None else json.dumps(body).encode()
        self._asked = False
        self.hung_up = asyncio.Event()
        self.sent: list[dict] = []
        self.grew = asyncio.Event()

    async def receive(self) -> dict:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict) -> None:
        self.sent.append(message)
        self.grew.set()

    async def wait_for(self, text: bytes) -> None:
        while text not in b"".join(message.get("body", b"") for message in self.sent):
            self.grew.clear()
            await asyncio.wait_for(self.grew.wait(), 5)
