"""Which text models the feed names, and how they are opened again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deployments.setting_groups import TextEmbedderSettings
from deployments.text_models import (
    ACTIVE,
    CANDIDATE,
    SPECS,
    configured_spec,
    model_named,
    models_in_use,
    put_model,
    remembered_spec,
    spec_value,
    text_model_of,
)
from graph.schema import Operation, PutPointer, WriteRequest
from graph.store import GraphStore
from graph.view import GraphView
from graph.writer import GraphWriter
from models.text_encoder.opening import TextModelSpec, open_encoder

URL = "http://127.0.0.1:8080/v1"


def view_with(folder: Path, *operations: Operation) -> GraphView:
    store = GraphStore(f"sqlite:///{folder / 'store.sqlite'}")
    try:
        writer = GraphWriter(store)
        writer.commit([WriteRequest(operations)])
        return writer.view
    finally:
        store.close()


def put_encoder(folder: Path, digest: str, manifest: object) -> None:
    (folder / digest).mkdir(parents=True)
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    (folder / digest / "encoder.json").write_text(text)


def test_pointers_name_models_and_can_name_none(tmp_path: Path) -> None:
    view = view_with(tmp_path, put_model(ACTIVE, "words-1"), put_model(CANDIDATE, None))
    assert model_named(view, ACTIVE) == "words-1"
    assert model_named(view, CANDIDATE) is None
    assert model_named(view, "no such pointer") is None


@pytest.mark.parametrize(("cpu_count", "threads", "expected"), [(1, None, 1), (64, None, 4), (2, 16, 16)])
def test_threads_are_the_cores_within_bounds(cpu_count: int, threads: int | None, expected: int) -> None:
    settings = TextEmbedderSettings(num_threads=threads)
    assert configured_spec(settings, cpu_count).num_threads == expected


def test_the_configured_model_is_that_of_the_settings() -> None:
    settings = TextEmbedderSettings.model_validate(
        {"backend": "openai", "url": URL, "model": "m", "api_key": "hidden", "dimensions": 8, "prompt": "p: "}
    )
    spec = configured_spec(settings, 2)
    assert (spec.backend, spec.url, spec.model, spec.api_key) == ("openai", URL, "m", "hidden")
    assert (spec.dimensions, spec.prompt) == (8, "p: ")
    assert "hidden" not in repr(spec) + repr(settings)


def test_a_model_is_opened_again_as_it_was(tmp_path: Path) -> None:
    then = TextModelSpec("words", "hashing", prompt="p: ", dimensions=8, device="cuda", num_threads=9)
    fingerprint = open_encoder(then).fingerprint
    put = PutPointer(SPECS, fingerprint.name, spec_value(then, fingerprint))
    view = view_with(tmp_path, put)
    found = remembered_spec(view, fingerprint.name, TextModelSpec("other", num_threads=2))
    assert found is not None
    assert open_encoder(found).fingerprint == fingerprint
    assert (found.device, found.num_threads) == ("auto", 2), "those belong to a machine"
    assert remembered_spec(view, "nobody", TextModelSpec()) is None


def test_no_key_is_remembered_and_none_goes_to_another_endpoint(tmp_path: Path) -> None:
    then = TextModelSpec("m", "openai", url=URL, api_key="hidden")
    fingerprint = open_encoder(TextModelSpec("m", "hashing")).fingerprint
    value = spec_value(then, fingerprint)
    assert "hidden" not in json.dumps(value)
    view = view_with(tmp_path, PutPointer(SPECS, "m-1", value))
    same = remembered_spec(view, "m-1", TextModelSpec("n", "openai", url=URL, api_key="key"))
    other = remembered_spec(view, "m-1", TextModelSpec("n", "openai", url=URL + "/2", api_key="key"))
    assert same is not None and (same.url, same.api_key) == (URL, "key")
    assert other is not None and (other.url, other.api_key) == (URL, None)


@pytest.mark.parametrize(
    "change",
    [{"backend": "word2vec"}, {"model": 5}, {"dimensions": "many"}, {"url": None}, {"dtype": "int8"}],
)
def test_what_another_version_wrote_is_not_opened(tmp_path: Path, change: dict[str, Any]) -> None:
    spec = TextModelSpec("m", "openai", url=URL)
    value = spec_value(spec, open_encoder(TextModelSpec("m", "hashing")).fingerprint)
    view = view_with(tmp_path, PutPointer(SPECS, "m-1", value | change), PutPointer(SPECS, "m-2", {}))
    assert remembered_spec(view, "m-1", TextModelSpec()) is None
    assert remembered_spec(view, "m-2", TextModelSpec()) is None


def test_models_in_use_are_those_of_search_and_of_encoders(tmp_path: Path) -> None:
    put_encoder(tmp_path / "encoders", "e1", {"features": {"text_model": "old-1"}})
    put_encoder(tmp_path / "encoders", "e2", {"features": {"text_model": "words-1"}})
    view = view_with(
        tmp_path,
        put_model(ACTIVE, "words-1"),
        put_model(CANDIDATE, "signs-1"),
        PutPointer("encoder", "active", {"digest": "e1"}),
        PutPointer("encoder", "candidate", {"digest": "e2"}),
    )
    assert models_in_use(view, tmp_path / "encoders") == ("words-1", "signs-1", "old-1")
    assert models_in_use(view, tmp_path / "nowhere") == ("words-1", "signs-1")


@pytest.mark.parametrize(
    "manifest",
    ["", "{", "[]", "5", {}, {"features": None}, {"features": []}, {"features": {"text_model": 3}}],
)
def test_an_encoder_without_a_readable_model_needs_no_vectors(tmp_path: Path, manifest: object) -> None:
    put_encoder(tmp_path, "e1", manifest)
    assert text_model_of(tmp_path / "e1") is None
