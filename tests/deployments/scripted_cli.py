"""Runs `weft` commands against a scripted service."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import httpx
import pytest

import deployments.service_client
from deployments.cli import main
from deployments.client import WeftClient


class Ended(NamedTuple):
    status: int
    out: str
    err: str
    sent: list[tuple[str, str, Any]]


Weft = Callable[..., Ended]


@pytest.fixture
def weft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Weft:
    """Runs a command; `answers` are handed out in order, the last one again and again."""

    def run(*arguments: str, answers: list[httpx.Response], stdin: str = "") -> Ended:
        sent: list[tuple[str, str, Any]] = []
        left = list(answers)

        def answer(request: httpx.Request) -> httpx.Response:
            is_json = request.headers.get("content-type") == "application/json"
            sent.append((request.method, request.url.path, json.loads(request.read()) if is_json else None))
            return left.pop(0) if len(left) > 1 else left[0]

        transport = httpx.MockTransport(answer)
        client = partial(WeftClient, transport=transport)
        monkeypatch.setattr(deployments.service_client, "WeftClient", client)
        monkeypatch.setattr(sys, "argv", ["weft", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err, sent)

    return run
