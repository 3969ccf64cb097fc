"""Text embedder, text indexer and the retriever's search, around one graph state in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deployments.text_embedder as embedder_module
import deployments.text_indexer as indexer_module
from deployments.graph_state import GraphState
from deployments.messages import CacheInvalidation, EmbedAnswer, EmbedQuery, SearchAnswer, SearchQuery
from deployments.retriever import Retriever
from deployments.text_embedder import TextEmbedder
from deployments.text_indexer import TextIndexer
from deployments.text_models import ACTIVE, CANDIDATE, model_named, put_model
from graph.errors import InvalidInput, NotYet, Unavailable, UnknownItem, UnknownTextModel, WeftError
from graph.node_text import item_text, text_digest
from graph.schema import ChangeSet, DeleteItem, Item, PutItem, PutMemory, PutTextVector, PutUser
from graph.text_vectors import packed
from graph.view import GraphView
from models.text_encoder.hashing_encoder import HashingEncoder
from models.text_encoder.opening import TextModelSpec
from models.text_encoder.protocol import Encoded
from models.text_search import TitleSearch
from tests.deployments.local_state import make_settings, until, write

FILMS = {
    "m1": ("The Matrix", ("action",), "machines dream of people"),
    "m2": ("Toy Story", ("animation",), "a cowboy doll and a space ranger"),
    "m3": ("Heat", ("crime",), "a thief and a detective meet"),
}


class RaisingEmbedder:
    """What `EmbedderHandle` does, without a handle."""

    def __init__(self, *embedders: TextEmbedder) -> None:
        self.embedders = embedders

    async def models(self) -> list[Any]:
        return [_raised(await embedder.model()) for embedder in self.embedders]

    async def embed(self, query: EmbedQuery) -> EmbedAnswer:
        return _raised(await self.embedders[0].embed(query))


def _raised(found: Any) -> Any:
    if isinstance(found, WeftError):
        raise found
    return found


class World:
    """A service in this process; parts are started as a test needs them and stopped at its end."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.settings = make_settings(folder)
        self.state = GraphState(self.settings)
        stack.push_async_callback(self.state.close)
        self.encoders: dict[str, HashingEncoder] = {}

    def configure(self, model: str, **options: Any) -> None:
        groups = {"text_embedder": {"backend": "hashing", "model": model, **options}}
        self.settings = make_settings(self.folder, text_indexer={"retry_s": 0.01, "batch_texts": 2}, **groups)

    def open(self, spec: TextModelSpec) -> HashingEncoder:
        if spec.model == "broken":
            raise InvalidInput("no such model")
        encoder = HashingEncoder(spec.dimensions or 64, spec.model, prompt=spec.prompt)
        return self.encoders.setdefault(encoder.fingerprint.name, encoder)

    async def embedder(self) -> TextEmbedder:
        found = TextEmbedder(self.settings, self.state, self.open)
        await found.start()
        self.stack.push_async_callback(found.stop)
        return found

    async def indexer(self, *embedders: TextEmbedder) -> TextIndexer:
        found = TextIndexer(self.settings, self.state, RaisingEmbedder(*embedders))
        await found.start()
        self.stack.push_async_callback(found.stop)
        return found

    async def embed_everything(self) -> str:
        """Run embedder and indexer until nothing waits, and stop them; the name of their model."""
        embedder = await self.embedder()
        indexer = await self.indexer(embedder)
        name = (await embedder.model()).name
        await until(lambda: self.complete(name))
        await indexer.stop()
        await embedder.stop()
        return str(name)

    async def retriever(self) -> Retriever:
        found = Retriever(self.settings, self.state, encoder=None)  # type: ignore[arg-type]
        await found.start()
        self.stack.push_async_callback(found.stop)
        return found

    async def put(self, *item_ids: str, **texts: str) -> int:
        operations = [PutItem(i, *FILMS[i][:2], 1999, FILMS[i][2]) for i in item_ids]
        operations += [PutItem(i, *FILMS[i][:2], 1999, text) for i, text in texts.items()]
        return (await write(self.state, *operations)).version

    def view(self) -> GraphView:
        return self.state._writer.view

    def complete(self, model: str) -> bool:
        """Whether every text has its vector of that model, in the store."""
        view = self.view()
        kinds = ("item", "memory")
        return not any(len(view.waiting_texts(kind, model)) for kind in kinds)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        made = World(tmp_path, stack)
        made.configure("words")
        yield made


async def found_by(retriever: Retriever, embedder: TextEmbedder, text: str, **more: Any) -> SearchAnswer:
    embedded = _raised(await embedder.embed(EmbedQuery((text,))))
    (answer,) = await retriever.search([SearchQuery(text, **more)], embedded.vectors, embedded.text_model)
    return _raised(answer)


# ---------------------------------------------------------------------------------------------- text vectors


async def test_every_text_gets_the_vector_that_the_embedder_answers(world: World) -> None:
    await world.put("m1", "m2", "m3")
    await write(world.state, PutUser("ann"), PutMemory("k1", "ann", "likes trains"))
    embedder = await world.embedder()
    await world.indexer(embedder)
    name = (await embedder.model()).name
    await until(lambda: world.complete(name))
    view = world.view()
    assert model_named(view, ACTIVE) == name
    for item in view.items():
        expected = _raised(await embedder.embed(EmbedQuery((item_text(item),)))).vectors[0]
        np.testing.assert_array_equal(view.text_vectors("item", name).vector(item.row), expected)
    assert len(view.text_vectors("memory", name)) == 1


async def test_a_changed_text_gets_another_vector_and_a_deleted_item_none(world: World) -> None:
    embedder = await world.embedder()
    indexer = await world.indexer(embedder)
    name = (await embedder.model()).name
    await world.put("m1", "m2")
    await until(lambda: world.complete(name))
    before = world.view().text_vectors("item", name).vector(0)
    await world.put(m1="a quite different story")
    await write(world.state, DeleteItem("m2"))
    await until(lambda: world.complete(name))
    table = world.view().text_vectors("item", name)
    assert not np.array_equal(table.vector(0), before)
    assert table.rows().tolist() == [0]
    await until(lambda: indexer._waiting[name] == {})


async def test_a_failing_model_delays_vectors_and_says_how_many_wait(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = await world.embedder()
    (encoder,) = world.encoders.values()
    encoder.fail(Unavailable("away"))
    indexer = await world.indexer(embedder)
    await world.put("m1", "m2", "m3")

    async def failing() -> dict[str, Any]:
        while (
            not (status := await indexer.status())["models"].get(encoder.fingerprint.name, {}).get("failure")
        ):
            await asyncio.sleep(0.001)
        return status

    status = await asyncio.wait_for(failing(), 10)
    assert status["waiting"] == 3
    assert status["models"][encoder.fingerprint.name]["vectors"] == 0
    assert world.view().num_items == 3
    encoder.recover()
    await until(lambda: world.complete(encoder.fingerprint.name))
    await until(lambda: not indexer._failures and not indexer._waiting[encoder.fingerprint.name])
    assert (await indexer.status())["waiting"] == 0
    warnings = [
        r for r in caplog.records if r.message.startswith("text vectors: words-") and "away" in r.message
    ]
    assert len(warnings) == 1


async def test_one_text_that_the_model_refuses_does_not_hold_up_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.configure(
        "words",
    )
    embedder = await world.embedder()
    (encoder,) = world.encoders.values()
    encode = HashingEncoder.encode_counted

    def refusing(self: HashingEncoder, texts: Any, prompt: Any = None, *, truncate: bool = True) -> Any:
        if any("cowboy" in text for text in texts):
            raise InvalidInput("no cowboys")
        return encode(self, texts, prompt, truncate=truncate)

    monkeypatch.setattr(HashingEncoder, "encode_counted", refusing)
    indexer = await world.indexer(embedder)
    await world.put("m1", "m2", "m3")
    name = encoder.fingerprint.name
    await until(lambda: len(world.view().text_vectors("item", name)) == 2)
    await until(lambda: len(indexer._refused.get(name, ())) == 1)
    assert (await indexer.status())["models"][name]["refused"] == 1
    await world.put(m2="a sheriff and a space ranger")
    await until(lambda: world.complete(name))


async def test_restarts_find_again_what_waited(world: World) -> None:
    await world.put("m1")
    embedder = await world.embedder()
    indexer = await world.indexer(embedder)
    name = (await embedder.model()).name
    await until(lambda: world.complete(name))
    await indexer.stop()
    await world.put("m2", m1="another text")
    assert not world.complete(name)
    await world.indexer(embedder)
    await until(lambda: world.complete(name))


# ----------------------------------------------------------------------------------------------- generations


async def test_a_changed_model_answers_once_everything_has_its_vectors(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer_module, "_GRACE_S", 0.05)
    monkeypatch.setattr(indexer_module, "_LOOK_AGAIN_S", 0.05)
    monkeypatch.setattr(embedder_module, "_GRACE_S", 0.05)
    await world.put("m1", "m2", "m3")
    old = await world.embed_everything()

    world.configure("better words", dimensions=32)
    second = await world.embedder()
    new = (await second.model()).name
    world.encoders[new].fail()
    retriever = await world.retriever()
    await world.indexer(second)
    await until(lambda: model_named(world.view(), CANDIDATE) == new)
    # The new model cannot embed: the old one, opened again from what the feed remembers, goes on answering.
    await until(lambda: old in second.generations())
    answer = await found_by(retriever, second, "cowboy doll")
    assert (answer.results[0].item_id, answer.text_model) == ("m2", old)
    assert model_named(world.view(), ACTIVE) == old

    await world.put(m3="two cowboys meet in the rain")
    await until(lambda: world.complete(old))
    world.encoders[new].recover()
    await until(lambda: model_named(world.view(), ACTIVE) == new)
    assert model_named(world.view(), CANDIDATE) is None
    assert world.complete(new)
    await until(lambda: retriever._searchable.active == new)
    answer = await found_by(retriever, second, "cowboys in the rain")
    assert (answer.results[0].item_id, answer.text_model) == ("m3", new)
    # What nobody uses goes: vectors from the store, the model from memory.
    await until(lambda: world.view().text_models("item") == (new,))
    await until(lambda: second.generations() == (new,))


async def test_going_back_before_the_change_is_complete_withdraws_the_candidate(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer_module, "_GRACE_S", 0.05)
    monkeypatch.setattr(indexer_module, "_LOOK_AGAIN_S", 0.05)
    await world.put("m1", "m2", "m3")
    old = await world.embed_everything()
    world.configure("passing fancy")
    embedder = await world.embedder()
    world.encoders[(await embedder.model()).name].fail()
    indexer = await world.indexer(embedder)
    await until(lambda: model_named(world.view(), CANDIDATE) is not None)
    await indexer.stop()
    await embedder.stop()
    world.configure("words")
    embedder = await world.embedder()
    await world.indexer(embedder)
    await until(lambda: model_named(world.view(), CANDIDATE) is None)
    assert model_named(world.view(), ACTIVE) == old


async def test_a_model_that_cannot_be_opened_says_why_and_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder_module, "_RETRY_S", 0.01)
    world.configure("broken")
    embedder = await world.embedder()
    answer = await embedder.embed(EmbedQuery(("text",)))
    assert isinstance(answer, Unavailable)
    assert "no such model" in answer.message
    assert "no such model" in (await embedder.status())["failures"][""]
    monkeypatch.setattr(embedder, "_opener", lambda spec: HashingEncoder(8, "mended"))
    await until(lambda: embedder.generations() != ())
    assert isinstance(await embedder.embed(EmbedQuery(("text",))), EmbedAnswer)


async def test_a_candidate_that_refuses_texts_does_not_take_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_GRACE_S", 0.05), ("_LOOK_AGAIN_S", 0.05), ("_REFUSED_AGAIN_S", 0.3)):
        monkeypatch.setattr(indexer_module, name, value)
    await world.put("m1", "m2", "m3")
    old = await world.embed_everything()
    world.configure("squeamish")
    embedder = await world.embedder()
    new = (await embedder.model()).name
    world.encoders[new].fail(InvalidInput("not that"))
    indexer = await world.indexer(embedder)
    await until(lambda: len(indexer._refused.get(new, ())) == 3)
    await until(lambda: "refuses 3 of 3" in indexer._failures.get("switch", ""))
    assert model_named(world.view(), ACTIVE) == old
    assert world.complete(old)
    assert (await indexer.status())["refused"] == 3
    # What refused may be mended: the texts are put to it again.
    world.encoders[new].recover()
    await until(lambda: model_named(world.view(), ACTIVE) == new)
    assert world.complete(new)
    await until(lambda: not indexer._failures)


async def test_replicas_with_different_models_move_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer_module, "_LOOK_AGAIN_S", 0.01)
    await world.put("m1")
    one = await world.embedder()
    name = (await one.model()).name
    indexer = await world.indexer(one)
    await until(lambda: world.complete(name))
    await indexer.stop()
    world.configure("other words")
    other = await world.embedder()
    version = world.view().version
    indexer = await world.indexer(one, other)
    await until(lambda: "different models" in indexer._failures.get("", ""))
    await world.put("m2")
    await until(lambda: world.complete(name))
    assert model_named(world.view(), CANDIDATE) is None
    assert world.view().version == version + 2  # the item and its vector


async def test_a_vector_that_does_not_fit_is_set_aside(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = HashingEncoder.encode_counted

    def overflowing(self: HashingEncoder, texts: Any, prompt: Any = None, *, truncate: bool = True) -> Any:
        vectors, tokens = encode(self, texts, prompt, truncate=truncate)
        vectors[["cowboy" in text for text in texts]] *= 1e6
        return Encoded(vectors, tokens)

    monkeypatch.setattr(HashingEncoder, "encode_counted", overflowing)
    embedder = await world.embedder()
    indexer = await world.indexer(embedder)
    name = (await embedder.model()).name
    await world.put("m1", "m2", "m3")
    await until(lambda: len(world.view().text_vectors("item", name)) == 2)
    await until(lambda: len(indexer._refused.get(name, ())) == 1)


async def test_what_is_no_longer_wanted_is_not_opened_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer_module, "_LOOK_AGAIN_S", 0.05)
    monkeypatch.setattr(embedder_module, "_RETRY_S", 0.02)
    await world.put("m1")
    old = await world.embed_everything()
    opener = world.open
    world.open = lambda spec: opener(replace(spec, model="broken" if spec.model == "words" else spec.model))
    world.configure("new words")
    embedder = await world.embedder()
    await until(lambda: old in embedder._failures)
    assert isinstance(await embedder.embed(EmbedQuery(("x",), model=old)), Unavailable)
    await world.indexer(embedder)
    new = (await embedder.model()).name
    await until(lambda: model_named(world.view(), ACTIVE) == new)
    await until(lambda: not embedder._failures and not embedder._tasks)


async def test_a_model_whose_opening_crashes_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedder_module, "_RETRY_S", 0.01)

    def crashing(spec: TextModelSpec) -> HashingEncoder:
        raise RuntimeError("a defect")

    world.open = crashing
    embedder = await world.embedder()
    assert "RuntimeError" in (await embedder.status())["failures"][""]
    monkeypatch.setattr(embedder, "_opener", lambda spec: HashingEncoder(8, "mended"))
    await until(lambda: embedder.generations() != ())
    assert any(record.exc_info for record in caplog.records)


async def test_a_name_never_gets_vectors_of_another_model(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer_module, "_LOOK_AGAIN_S", 0.05)
    await world.put("m1")
    old = await world.embed_everything()
    world.configure("broken")
    embedder = await world.embedder()
    await until(lambda: old in embedder.generations())
    assert _raised(await embedder.embed(EmbedQuery(("x",)))).text_model == old
    assert isinstance(await embedder.embed(EmbedQuery(("x",), model="broken")), Unavailable)


# ------------------------------------------------------------------------------------------------- embedding


async def test_answers_name_the_model_and_count_hits(world: World) -> None:
    embedder = await world.embedder()
    (encoder,) = world.encoders.values()
    first = _raised(await embedder.embed(EmbedQuery(("a b", "c"))))
    again = _raised(await embedder.embed(EmbedQuery(("c", "d", "a b"))))
    assert (first.hits, again.hits) == (0, 2)
    np.testing.assert_array_equal(again.vectors[[2, 0]], first.vectors)
    assert first.tokens.tolist() == [2, 1]
    assert (first.model_name, first.text_model) == ("words", encoder.fingerprint.name)
    by_name = _raised(await embedder.embed(EmbedQuery(("c",), model="words")))
    np.testing.assert_array_equal(by_name.vectors[0], first.vectors[1])
    assert isinstance(await embedder.embed(EmbedQuery(("c",), model="other")), UnknownTextModel)


async def test_a_hundred_callers_of_one_new_text_encode_it_once(world: World) -> None:
    embedder = await world.embedder()
    (encoder,) = world.encoders.values()
    answers = await asyncio.gather(*(embedder.embed(EmbedQuery(("one new text",))) for _ in range(100)))
    assert encoder.texts_encoded == 1
    assert len({_raised(a).vectors.tobytes() for a in answers}) == 1


async def test_shorter_vectors_only_where_the_model_is_trained_for_them(world: World) -> None:
    world.configure("nested", dimensions=64, matryoshka_dimensions=(16, 32))
    embedder = await world.embedder()
    whole = _raised(await embedder.embed(EmbedQuery(("some words here",)))).vectors[0]
    short = _raised(await embedder.embed(EmbedQuery(("some words here",), dimensions=32))).vectors[0]
    assert short.shape == (32,)
    np.testing.assert_allclose(np.linalg.norm(short), 1, atol=1e-6)
    np.testing.assert_allclose(short, whole[:32] / np.linalg.norm(whole[:32]), rtol=1e-6)
    assert isinstance(await embedder.embed(EmbedQuery(("x",), dimensions=48)), InvalidInput)
    assert len(_raised(await embedder.embed(EmbedQuery(("x",), dimensions=64))).vectors[0]) == 64


async def test_dropped_entries_are_embedded_anew(world: World) -> None:
    embedder = await world.embedder()
    (encoder,) = world.encoders.values()
    await embedder.embed(EmbedQuery(("a", "b")))
    assert await embedder.invalidate(CacheInvalidation(texts=("a",))) == 1
    assert _raised(await embedder.embed(EmbedQuery(("a", "b")))).hits == 1
    for what in (CacheInvalidation(everything=True), CacheInvalidation(model=encoder.fingerprint.name)):
        assert await embedder.invalidate(what) >= 1
        assert _raised(await embedder.embed(EmbedQuery(("a", "b")))).hits == 0
    statistics = (await embedder.cache_statistics())["models"][encoder.fingerprint.name]
    assert statistics["lookups"] == 8
    assert statistics["hits"] == 1


# ---------------------------------------------------------------------------------------------------- search


async def test_search_finds_an_item_in_the_version_of_its_vector(world: World) -> None:
    embedder = await world.embedder()
    indexer = await world.indexer(embedder)
    retriever = await world.retriever()
    name = (await embedder.model()).name
    await world.put("m1", "m2", "m3")
    await until(lambda: world.complete(name))
    version = world.view().version
    assert await retriever.wait_for(version, 5)
    answer = await found_by(retriever, embedder, "thief detective", min_version=version)
    assert answer.results[0].item_id == "m3"
    assert (answer.waiting, answer.text_model) == (0, name)
    filtered = await found_by(retriever, embedder, "thief detective", tags=("ACTION",))
    assert [r.item_id for r in filtered.results] == ["m1"]
    without = await found_by(retriever, embedder, "thief detective", exclude=("m3", "nothing"))
    assert "m3" not in [r.item_id for r in without.results]
    (late,) = await retriever.search([SearchQuery("x", min_version=version + 1)], None, None)
    assert isinstance(late, NotYet)
    await write(world.state, DeleteItem("m3"))
    assert await retriever.wait_for(world.view().version, 5)
    answer = await found_by(retriever, embedder, "thief detective")
    assert "m3" not in [r.item_id for r in answer.results]
    await indexer.stop()


async def test_words_alone_find_titles_while_there_is_no_model(world: World) -> None:
    retriever = await world.retriever()
    version = await world.put("m1", "m2", "m3")
    assert await retriever.wait_for(version, 5)
    (answer,) = await retriever.search([SearchQuery("teh matrx")], None, None)
    answer = _raised(answer)
    assert answer.results[0].item_id == "m1"
    assert (answer.text_model, answer.waiting) == (None, 3)


async def test_vectors_that_cannot_be_compared_leave_words_alone(world: World) -> None:
    embedder = await world.embedder()
    await world.indexer(embedder)
    retriever = await world.retriever()
    name = (await embedder.model()).name
    version = await world.put("m1", "m2", "m3")
    await until(lambda: world.complete(name))
    assert await retriever.wait_for(world.view().version, 5)
    for vectors, model in ((np.ones((2, 64), np.float32), "gone"), (np.ones((2, 3), np.float32), name)):
        late, answer = await retriever.search(
            [SearchQuery("toy", min_version=version + 99), SearchQuery("teh matrx")], vectors, model
        )
        answer = _raised(answer)
        assert isinstance(late, NotYet)
        assert answer.results[0].item_id == "m1"
        assert (answer.text_model, answer.waiting) == (None, 0)


async def test_waiting_counts_for_the_model_that_was_asked_for(world: World) -> None:
    embedder = await world.embedder()
    indexer = await world.indexer(embedder)
    name = (await embedder.model()).name
    await world.put("m1", "m2", "m3")
    await until(lambda: world.complete(name))
    await indexer.stop()
    digest = text_digest(item_text(world.view().item("m2")))
    vector = PutTextVector("item", "m2", "next", digest, packed(np.ones(8, np.float32)))
    await write(world.state, put_model(CANDIDATE, "next"), vector)
    retriever = await world.retriever()
    (answer,) = await retriever.search([SearchQuery("cowboy doll")], np.ones((1, 8), np.float32), "next")
    assert (_raised(answer).text_model, _raised(answer).waiting) == ("next", 2)
    assert (await found_by(retriever, embedder, "cowboy doll")).waiting == 0


async def test_a_replica_that_loads_anew_answers_from_what_it_had(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = await world.retriever()
    assert await retriever.wait_for(await world.put("m1", "m2"), 5)
    other = GraphView("another store")
    # Another item in the same row.
    other.apply(ChangeSet(0, 1, items=[Item(0, "z1", "Amelie", (), 2001, "", 1)]))
    gate, upsert = threading.Event(), TitleSearch.upsert

    def held(self: TitleSearch, *titles: Any) -> None:
        assert threading.current_thread() is not threading.main_thread()
        assert gate.wait(30)
        upsert(self, *titles)

    monkeypatch.setattr(TitleSearch, "upsert", held)
    loading = asyncio.create_task(retriever.load(other))
    for _ in range(3):
        await asyncio.sleep(0)
    (answer,) = await retriever.search([SearchQuery("matrix")], None, None)
    assert [found.item_id for found in _raised(answer).results] == ["m1"]
    gate.set()
    await loading
    (answer,) = await retriever.search([SearchQuery("amelie")], None, None)
    assert [found.item_id for found in _raised(answer).results] == ["z1"]


async def test_similar_by_text_waits_for_the_vector(world: World) -> None:
    embedder = await world.embedder()
    indexer = await world.indexer(embedder)
    retriever = await world.retriever()
    await world.put("m1")
    name = (await embedder.model()).name
    await until(lambda: world.complete(name))
    await indexer.stop()
    assert await retriever.wait_for(await world.put("m2"), 5)
    answer = await retriever.similar("m2", 2, (), (), "text", 0)
    assert isinstance(answer, NotYet)
    assert "the text of item 'm2' has no vector yet" in answer.message
    assert isinstance(await retriever.similar("m9", 2, (), (), "text", 0), UnknownItem)


async def test_similar_by_text(world: World) -> None:
    embedder = await world.embedder()
    await world.indexer(embedder)
    retriever = await world.retriever()
    name = (await embedder.model()).name
    await world.put("m1", m2="a thief and a detective meet again", m3="a thief and a detective meet")
    await until(lambda: world.complete(name))
    assert await retriever.wait_for(world.view().version, 5)
    answer = _raised(await retriever.similar("m3", 2, (), (), "text", 0))
    assert [s.item_id for s in answer.similar] == ["m2", "m1"]
    assert (answer.basis, answer.model) == ("text", name)
