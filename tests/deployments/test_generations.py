"""Generations that fail to load are reported, tried again, and never taken for another."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

import deployments.generations as generations_module
from deployments.encoder_pointers import ACTIVE, SCOPE
from deployments.generations import Generations, load_generation
from graph.errors import Corrupt, NotYet, Unavailable
from graph.schema import ChangeSet, Pointer
from graph.view import GraphView
from tests.small_store import make_small_store


def view_with_active(digest: str) -> GraphView:
    view = GraphView("s")
    view.apply(ChangeSet(0, 1, pointers=[Pointer(SCOPE, ACTIVE, {"digest": digest}, 1)]))
    return view


async def until(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def test_a_defect_in_a_build_is_reported_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generations_module, "_RETRY_S", 0.01)
    attempts = 0

    async def build(digest: str) -> str:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ValueError("not a typed error")
        return f"generation {digest}"

    generations: Generations[str] = Generations(build)
    await generations.restart(view_with_active("a"))
    assert generations.failed() == ("a",)
    assert generations.active is None
    assert type(generations.absence()) is Unavailable
    await until(lambda: generations.active is not None)
    assert (generations.active, generations.failed(), attempts) == ("generation a", (), 3)


async def test_a_generation_on_its_way_is_not_yet_and_none_is_unavailable() -> None:
    gate = asyncio.Event()

    async def build(digest: str) -> str:
        await gate.wait()
        return digest

    generations: Generations[str] = Generations(build)
    generations.follow(GraphView("s"))
    assert "train one" in generations.absence().message
    generations.follow(view_with_active("a"))
    assert isinstance(generations.absence(), NotYet)
    gate.set()
    await until(lambda: generations.active == "a")


def test_a_directory_under_another_name_is_refused(tmp_path: Path) -> None:
    digest = make_small_store(tmp_path).active
    folder = tmp_path / "encoders"
    assert load_generation(folder, digest).digest.startswith(digest)
    shutil.copytree(folder / digest, folder / "0123456789abcdef")
    with pytest.raises(Corrupt, match="give it that name"):
        load_generation(folder, "0123456789abcdef")
