"""An OpenAI-compatible embeddings endpoint in a thread, which can be told to misbehave."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from models.text_encoder.hashing_encoder import HashingEncoder

Answer = tuple[int, dict[str, str], Any]


class EmbeddingsServer:
    """`answers` are used up first, one per request; then `change` sees every good body."""

    def __init__(self) -> None:
        self.encoder = HashingEncoder(8)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[Answer] = []
        self.change: Callable[[dict[str, Any]], Any] = lambda body: body
        self.floats = False
        self.stall = threading.Event()
        self.stall.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.requests.append(request | {"path": self.path})
                outer.headers.append(dict(self.headers))
                outer.stall.wait(20)
                status, headers, body = outer.answers.pop(0) if outer.answers else outer.good(request)
                raw = json.dumps(body).encode()
                try:
                    self.send_response(status)
                    for name, value in (headers | {"content-length": str(len(raw))}).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(raw)
                except (BrokenPipeError, ConnectionResetError):
                    return  # the client's timeout ended

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def good(self, request: dict[str, Any]) -> Answer:
        vectors = self.encoder.encode(request["input"])[:, : request.get("dimensions", 8)]
        as_text = request["encoding_format"] == "base64" and not self.floats
        data = [
            {
                "object": "embedding",
                "index": place,
                "embedding": base64.b64encode(v.tobytes()).decode() if as_text else v.tolist(),
            }
            for place, v in enumerate(vectors)
        ]
        body = {"object": "list", "data": data[::-1], "usage": {"prompt_tokens": 7 * len(data)}}
        return 200, {}, self.change(body)

    def __enter__(self) -> EmbeddingsServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stall.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
