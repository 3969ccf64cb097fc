"""The backend in front of an OpenAI-compatible server: streams cut anywhere, refusals, cancelling."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from graph.errors import InvalidInput, Overloaded, Unavailable, UnknownAdapter, WeftError
from models.adapter_cascade import AdapterCascade, MemoryPointers
from models.language_model.generator import Generator
from models.language_model.openai_compatible import OpenAICompatibleModel

KEY = "sk-secret"
GOOD = [
    b": hello\r\n\r\nda",
    b'ta: {"choices":[{"delta":{"content":"he\xc3',
    b'\xa9"}}]}\r\n\r\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata: [DONE]\n\n',
]


class Server:
    def __init__(self) -> None:
        self.status, self.chunks, self.requests = 200, GOOD, list[dict[str, Any]]()
        self.hold = threading.Event()
        self.hold.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.requests.append(request)
                outer.hold.wait(10)
                status = 404 if request["model"] != "m" else outer.status
                self.send_response(status)
                self.end_headers()
                try:
                    for chunk in outer.chunks if status != 404 else []:
                        self.wfile.write(chunk)
                        self.wfile.flush()
                except (BrokenPipeError, ConnectionResetError):
                    return

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.thread.start()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.hold.set()
    found.http.shutdown()
    found.http.server_close()
    found.thread.join()


@pytest.fixture
def generator(server: Server) -> Iterator[Generator]:
    url = f"http://127.0.0.1:{server.http.server_port}/v1"
    spec = SimpleNamespace(model="m", url=url, api_key=KEY, timeout_s=5.0)
    with Generator(OpenAICompatibleModel(spec), AdapterCascade(MemoryPointers)) as found:
        yield found


def test_an_answer_cut_anywhere(generator: Generator, server: Server) -> None:
    found = generator.run("a", "hello")
    assert (found.output, found.finish_reason) == ("heé", "length")
    assert (found.prompt_tokens, found.completion_tokens) == (3, 2)
    assert "top_k" not in server.requests[0]


def test_an_adapter_the_server_does_not_know(generator: Generator) -> None:
    with pytest.raises(UnknownAdapter):
        generator.run("a", "x", adapter="a" * 64)


@pytest.mark.parametrize(
    ("status", "error"), [(400, InvalidInput), (401, Unavailable), (429, Overloaded), (500, Unavailable)]
)
def test_refusals_are_typed_and_hold_no_key(
    generator: Generator, server: Server, status: int, error: type[WeftError]
) -> None:
    server.status, server.chunks = status, [json.dumps({"error": {"message": f"no {KEY}"}}).encode()]
    with pytest.raises(error) as caught:
        generator.run("a", "x")
    assert type(caught.value) is error and KEY not in str(caught.value)


@pytest.mark.parametrize(
    "chunks",
    [GOOD[:3], [b"data: {oops\n\n"], [b'data: {"error":{"message":"x"}}\n\n'], [b"a" * (1 << 20) + b"aa"]],
)
def test_broken_streams_are_unavailable(generator: Generator, server: Server, chunks: list[bytes]) -> None:
    server.chunks = chunks
    with pytest.raises(Unavailable):
        generator.run("a", "x")


def test_cancelling_at_once_frees_the_place(generator: Generator, server: Server) -> None:
    server.hold.clear()
    stream = generator.stream("a", "x")
    stream._ticket.cancel()
    with pytest.raises(Unavailable, match="cancelled"):
        next(stream)
