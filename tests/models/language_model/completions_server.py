"""An OpenAI-compatible endpoint in a thread: it says what a test tells it, however slowly and badly."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WAIT_S = 10.0
DONE = b"data: [DONE]\n\n"


def event(payload: Any) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def said(text: str, **more: Any) -> bytes:
    """A chunk of chat."""
    return event({"choices": [{"index": 0, "delta": {"content": text}, **more}]})


def ended(reason: str = "stop") -> bytes:
    return event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})


@dataclass
class Reply:
    """`parts` are sent one by one; what can be called is called in between. `cut`: without a proper end."""

    parts: Iterable[bytes | Callable[[], object]] = (said("hello"), ended(), DONE)
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "text/event-stream"})
    cut: bool = False


def refusal(status: int, message: str, **more: Any) -> Reply:
    return Reply([json.dumps({"error": {"message": message, **more}}).encode()], status)


class CompletionsServer:
    """`reply` answers a request, which is its JSON and its `path`; models but "m" and `known` are refused."""

    def __init__(self) -> None:
        self.reply: Callable[[dict[str, Any]], Reply] = lambda request: Reply()
        self.known = {"m"}
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.connections = 0
        self.at_once = self.most_at_once = 0
        self.hung_up = threading.Semaphore(0)
        """Released for every client that goes away in the middle."""
        self._lock = threading.Lock()
        self._here = threading.local()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            timeout = WAIT_S

            def setup(self) -> None:
                super().setup()
                with outer._lock:
                    outer.connections += 1

            def handle(self) -> None:
                try:
                    super().handle()
                except ConnectionError:
                    return  # the client went away between two requests

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                request["path"] = self.path
                outer._here.connection = self.connection
                with outer._lock:
                    outer.requests.append(request)
                    outer.headers.append(dict(self.headers))
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                known = request["model"] in outer.known
                try:
                    self.send(outer.reply(request) if known else refusal(404, "no such model"))
                except ConnectionError:
                    self.close_connection = True
                    outer.hung_up.release()
                finally:
                    with outer._lock:
                        outer.at_once -= 1

            def send(self, reply: Reply) -> None:
                self.send_response(reply.status)
                for name, value in {**reply.headers, "transfer-encoding": "chunked"}.items():
                    self.send_header(name, value)
                self.end_headers()
                for part in reply.parts:
                    if isinstance(part, bytes):
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
                    else:
                        part()
                if reply.cut:
                    self.close_connection = True
                else:
                    self.wfile.write(b"0\r\n\r\n")

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

        self._http = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def stall(self) -> None:
        """Part of a reply: wait until the client goes away."""
        if not self._here.connection.recv(1):
            raise ConnectionAbortedError

    def __enter__(self) -> CompletionsServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
