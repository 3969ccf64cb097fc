"""Text vectors made by commands: what is written, what stays after an interruption, who does the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import deployments.text_preparation as preparation
from deployments.cli_encoders import _text_vectors
from deployments.settings import Settings
from deployments.store_access import open_writer, read_view
from deployments.text_models import ACTIVE, CANDIDATE, SPECS, model_named, put_model
from deployments.text_preparation import cached_encoder, open_cache, prepare_text_vectors
from graph.errors import InvalidInput, StoreLocked, Unavailable
from graph.lock import StoreLock
from graph.node_text import item_text
from graph.schema import PutItem, PutMemory, PutUser, WriteRequest
from graph.text_vectors import packed
from models.text_encoder.hashing_encoder import HashingEncoder
from models.text_encoder.opening import TextModelSpec
from models.text_encoder.protocol import Encoded

NUM_ITEMS = 7


def silent(stage: str, done: int, total: int, message: str) -> None:
    assert 0 <= done <= total


def make(folder: Path, model: str = "words", **groups: Any) -> Settings:
    given = {
        "text_embedder": {"backend": "hashing", "model": model},
        "text_indexer": {"batch_texts": 3},
        "cache": {"enabled": False},
    }
    return Settings.model_validate({"data_dir": folder / "data", **given, **groups})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a store with seven items and a memory."""
    found = make(tmp_path)
    with open_writer(found, "test") as write:
        items = (PutItem(f"i{n}", f"Title {n}", (), None, "a text") for n in range(NUM_ITEMS))
        write(WriteRequest((*items, PutUser("ann"), PutMemory("m", "ann", "likes trains"))))
    return found


class Faulty(HashingEncoder):
    """Encodes so many texts and then fails; refuses texts with a word."""

    def __init__(self, model: str, budget: int = 1_000, refused: str = "\0") -> None:
        super().__init__(model=model)
        self.budget, self.refused = budget, refused

    def encode_counted(
        self, texts: Sequence[str], prompt: str | None = None, *, truncate: bool = True
    ) -> Encoded:
        if any(self.refused in text for text in texts):
            raise InvalidInput(f"{self.refused} is not allowed")
        if self.texts_encoded + len(texts) > self.budget:
            raise Unavailable("the endpoint went away")
        return super().encode_counted(texts, prompt, truncate=truncate)


Opens = Callable[[HashingEncoder], HashingEncoder]


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> Opens:
    """Makes an encoder the one that the settings' model opens as."""

    def replace(encoder: HashingEncoder) -> HashingEncoder:
        monkeypatch.setattr(preparation, "open_encoder", lambda spec: encoder)
        return encoder

    return replace


def num_vectors(settings: Settings, name: str) -> int:
    view = read_view(settings)
    return len(view.text_vectors("item", name)) + len(view.text_vectors("memory", name))


def test_every_text_has_its_vector_and_the_feed_names_the_model(settings: Settings) -> None:
    name = prepare_text_vectors(settings, silent)
    assert name is not None
    view = read_view(settings)
    assert (model_named(view, ACTIVE), model_named(view, CANDIDATE)) == (name, None)
    spec = view.pointer(SPECS, name)
    assert spec is not None and spec.value["model"] == "words"
    assert num_vectors(settings, name) == NUM_ITEMS + 1
    with cached_encoder(settings) as encoder:
        for item in view.items():
            vector = view.text_vectors("item", name).vector(item.row)
            assert vector is not None
            assert packed(vector) == packed(encoder.encode([item_text(item)])[0])


def test_a_second_time_nothing_is_embedded_and_nothing_written(settings: Settings, opens: Opens) -> None:
    prepare_text_vectors(settings, silent)
    version = read_view(settings).version
    encoder = opens(HashingEncoder(model="words"))
    prepare_text_vectors(settings, silent)
    assert (encoder.texts_encoded, read_view(settings).version) == (0, version)


def test_what_was_written_before_an_interruption_stays_and_the_rest_follows(
    settings: Settings, opens: Opens
) -> None:
    broken = opens(Faulty("words", budget=6))
    with pytest.raises(Unavailable, match="went away"):
        prepare_text_vectors(settings, silent)
    name = broken.fingerprint.name
    assert num_vectors(settings, name) == 6
    assert model_named(read_view(settings), ACTIVE) is None, "it cannot answer for every item yet"

    whole = opens(HashingEncoder(model="words"))
    assert prepare_text_vectors(settings, silent) == name
    assert whole.texts_encoded == NUM_ITEMS + 1 - 6
    assert num_vectors(settings, name) == NUM_ITEMS + 1
    assert model_named(read_view(settings), ACTIVE) == name


def test_another_model_takes_over_once_it_is_complete(settings: Settings, tmp_path: Path) -> None:
    first = prepare_text_vectors(settings, silent)
    second = prepare_text_vectors(make(tmp_path, "signs"), silent)
    view = read_view(settings)
    assert first != second == model_named(view, ACTIVE)
    assert second is not None and num_vectors(settings, second) == NUM_ITEMS + 1


def test_a_change_that_was_called_off_is_forgotten(settings: Settings) -> None:
    name = prepare_text_vectors(settings, silent)
    with open_writer(settings, "test") as write:
        write(WriteRequest((put_model(CANDIDATE, "other"),)))
    assert prepare_text_vectors(settings, silent) == name
    assert model_named(read_view(settings), CANDIDATE) is None


def test_a_refused_text_costs_the_others_nothing(
    settings: Settings, opens: Opens, caplog: pytest.LogCaptureFixture
) -> None:
    name = opens(Faulty("words", refused="Title 4")).fingerprint.name
    assert prepare_text_vectors(settings, silent) == name
    assert num_vectors(settings, name) == NUM_ITEMS
    assert "refuses the text of item 'i4'" in caplog.text


def test_a_model_that_cannot_be_opened_leaves_the_words(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(spec: TextModelSpec) -> HashingEncoder:
        raise InvalidInput("no such model")

    monkeypatch.setattr(preparation, "open_encoder", refuse)
    version = read_view(settings).version
    assert _text_vectors(settings, silent) is None
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "words of titles" in printed.err and "no such model" in printed.err
    assert read_view(settings).version == version


def test_a_locked_store_is_an_error_before_any_model_is_opened(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(spec: TextModelSpec) -> HashingEncoder:
        raise AssertionError("was opened")

    monkeypatch.setattr(preparation, "open_encoder", refuse)
    with StoreLock(settings.data_dir, "a test"), pytest.raises(StoreLocked, match="a test"):
        _text_vectors(settings, silent)


def test_vectors_come_from_the_cache_where_there_is_one(tmp_path: Path, settings: Settings) -> None:
    cached = make(tmp_path, cache={"url": f"sqlite://{tmp_path}/cache.sqlite"})
    prepare_text_vectors(cached, silent)
    elsewhere = cached.model_copy(update={"data_dir": tmp_path / "elsewhere"})
    with open_writer(elsewhere, "test") as write:
        write(WriteRequest((PutItem("other", "Title 3", (), None, "a text"),)))
    with cached_encoder(elsewhere) as encoder:
        answer = encoder.answer([item_text(i) for i in read_view(elsewhere).items()])
    assert answer.hits == 1


def test_a_folder_that_cannot_be_written_to_costs_the_cache_alone(
    tmp_path: Path, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    cached = make(tmp_path, cache={"url": f"sqlite://{tmp_path}/file/cache.sqlite"})
    opened = open_cache(cached)
    assert opened.degraded and "cache.sqlite" in opened.degraded
    assert opened.store is not None
    opened.store.close()
    assert "unavailable" in caplog.text
    assert prepare_text_vectors(cached, silent) is not None


# ------------------------------------------------------------------------------------------ a running service


class FakeService:
    """Answers what a service's status says, one after the other; the last one from then on."""

    def __init__(self, *indexers: dict[str, Any], version: int = 5) -> None:
        self.statuses = [{"graph_state": {"version": version}, "text_indexer": i} for i in indexers]
        self.asked = 0

    def __enter__(self) -> FakeService:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def status(self) -> dict[str, Any]:
        self.asked += 1
        return self.statuses[min(self.asked, len(self.statuses)) - 1]


def indexer(waiting: int, active: str | None = "a", **other: Any) -> dict[str, Any]:
    return {"version": 5, "waiting": waiting, "active": active, "candidate": None, "models": {}} | other


@pytest.fixture
def serving(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeService], FakeService]:
    monkeypatch.setattr(preparation, "service_url", lambda settings: "http://127.0.0.1:1")
    monkeypatch.setattr(preparation, "_POLL_S", 0.001)
    monkeypatch.setattr(preparation, "_STALLED_S", 0.05)

    def replace(service: FakeService) -> FakeService:
        monkeypatch.setattr(preparation, "service_client", lambda settings, url: service)
        return service

    return replace


Serving = Callable[[FakeService], FakeService]


@pytest.mark.parametrize(
    "before",
    [
        indexer(3),
        indexer(0, version=4),  # does not know of the last write yet
        indexer(0, candidate="b"),
        {"error": "no answer"},
    ],
)
def test_the_indexer_of_a_running_service_is_waited_for(
    settings: Settings, serving: Serving, before: dict[str, Any]
) -> None:
    service = serving(FakeService(before, before, indexer(0, active="b")))
    seen: list[tuple[int, int]] = []
    assert prepare_text_vectors(settings, lambda s, done, total, m: seen.append((done, total))) == "b"
    assert service.asked == 3
    assert seen[-1][0] == seen[-1][1]


def test_vectors_that_are_there_do_not_wait_for_a_model_that_is_not(
    settings: Settings, serving: Serving
) -> None:
    serving(FakeService(indexer(0, failure="it is being opened")))
    assert prepare_text_vectors(settings, silent) == "a"


@pytest.mark.parametrize(
    "stuck",
    [
        indexer(3, models={"a": {"failure": "out of order"}}),
        indexer(0, active=None, failure="out of order"),
        {"error": "out of order"},
    ],
)
def test_a_service_that_gets_no_further_is_not_waited_for(
    settings: Settings, serving: Serving, stuck: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    serving(FakeService(stuck))
    with pytest.raises(Unavailable, match="out of order"):
        prepare_text_vectors(settings, silent)
    assert _text_vectors(settings, silent) is None
    assert "out of order" in capsys.readouterr().err
