"""Adapters are swapped, rolled back, lost and damaged while thousands of requests run: none fails, and each
answer is that of exactly the adapter it names.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from graph.errors import UnknownAdapter
from models.adapter_cascade import MemoryPointers
from models.adapter_pointers import AdapterArm, AdapterScope, decode_arms, encode_state, state_scope
from models.adapters import AdapterStore
from models.language_model.engine_limits import EngineLimits
from models.language_model.generator import Generated
from models.language_model.opening import LanguageModelSpec
from models.language_model.opening_engine import AdapterPlaces, EngineOptions, LocalGenerator, open_engine
from models.language_model.protocol import Sampling
from models.model_files import quiet
from tests.lora_folders import write_adapter
from tests.models.language_model.tiny_models import make_model, make_tokenizer

NUM_CLIENTS, REQUESTS_EACH = 16, 130
VERSIONS = ("v1", "v2", "v3", "v4")
SYSTEM = "All conversations begin with this."
PROMPTS = tuple(
    f"{word} {word[::-1]}, and on" for word in ("sea", "stone", "light", "winter", "road", "bird")
)
POINTERS: tuple[tuple[AdapterScope, str], ...] = (
    ("user", "alice"),
    ("domain", "films"),
    ("global", "default"),
)
WHO: tuple[tuple[str, str | None], ...] = (("alice", None), ("bob", "films"), ("carol", None))
"""A user and a domain for each pointer, whose requests it decides."""


@dataclass
class Served:
    """A generator over four versions in a store that holds fewer in memory than are active."""

    generator: LocalGenerator
    pointers: MemoryPointers
    root: Path
    inbox: Path
    digests: Mapping[str, str]
    """Of the versions."""
    expected: Mapping[tuple[str | None, int], Generated]
    """Answers by digest and prompt, each computed alone."""

    @property
    def store(self) -> AdapterStore:
        store = self.generator.opened.store
        assert store is not None
        return store

    def ask(self, user: str, domain: str | None, prompt: int, **fields: Any) -> Generated:
        """Run a prompt and check the answer against the digest it names."""
        answer = self.generator.run(
            user, PROMPTS[prompt], SYSTEM, domain=domain, sampling=sampling(prompt), timeout_s=60, **fields
        )
        expected = self.expected[answer.digest, prompt]
        assert answer.output == expected.output, answer
        assert [p.token_id for p in answer.logprobs] == [p.token_id for p in expected.logprobs], answer
        found = [p.logprob for p in answer.logprobs]
        assert found == pytest.approx([p.logprob for p in expected.logprobs], abs=1e-4), answer
        return answer

    def activate(self, scope: AdapterScope, name: str, version: str) -> None:
        self.pointers.activate(scope, name, AdapterArm(version, self.digests[version]))

    def lose(self, digest: str, how: Callable[[Path], object]) -> None:
        """Do something to an adapter's folder, and drop what is in memory of it."""
        how(self.root / digest)
        residents = self.generator.opened.residents
        assert residents is not None
        residents.forget(digest)


def sampling(prompt: int) -> Sampling:
    return Sampling(temperature=0.0, max_tokens=3 + prompt % 4, ignore_eos=True, logprobs=0)


def start(folder: Path, adapters: Path, **options: Any) -> tuple[LocalGenerator, MemoryPointers]:
    pointers = MemoryPointers()
    places = AdapterPlaces(adapters, adapters / "inbox", slots=3, max_rank=4, max_resident=2)
    limits = EngineLimits(max_batch=options["max_batch"], prefill_chunk_tokens=64)
    spec = LanguageModelSpec(str(folder), device="cpu")
    opened = open_engine(spec, places, EngineOptions(limits, options["prefix_cache_bytes"]))
    return LocalGenerator(opened, lambda: pointers), pointers


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, str], Any]:
    """A model, a store with four adapters, their digests, and what each answers alone."""
    folder, adapters = tmp_path_factory.mktemp("models") / "tiny", tmp_path_factory.mktemp("adapters")
    with quiet():
        make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    for n, version in enumerate(VERSIONS):
        write_adapter(adapters / "inbox" / version, folder, seed=n, rank=n + 1)
    alone, _ = start(folder, adapters, max_batch=1, prefix_cache_bytes=0)
    with alone:
        store = alone.opened.store
        assert store is not None
        digests = {version: store.import_folder(version).digest for version in VERSIONS}
        expected = {
            (digest, n): alone.run(
                None, prompt, SYSTEM, adapter=digest or "base", sampling=sampling(n), timeout_s=60
            )
            for digest in (None, *digests.values())
            for n, prompt in enumerate(PROMPTS)
        }
    for n in range(len(PROMPTS)):
        sayings = {expected[digest, n].logprobs for digest in (None, *digests.values())}
        assert len(sayings) == 1 + len(VERSIONS)
    return folder, adapters, digests, expected


@pytest.fixture
def served(prepared: tuple[Path, Path, dict[str, str], Any], tmp_path: Path) -> Iterator[Served]:
    folder, adapters, digests, expected = prepared
    copy = shutil.copytree(adapters, tmp_path / "adapters")
    generator, pointers = start(folder, copy, max_batch=8, prefix_cache_bytes=1 << 20)
    with generator:
        yield Served(generator, pointers, copy, copy / "inbox", digests, expected)


@dataclass
class Timeline:
    """What was active under one pointer: `begun` activations, of which the first `returned` have returned."""

    begun: list[str] = field(default_factory=list)
    returned: int = 0

    def move(self, digest: str, write: Callable[[], None]) -> None:
        self.begun.append(digest)
        write()
        self.returned += 1


def test_thousands_of_requests_during_swaps_and_rollbacks(served: Served) -> None:
    timelines = {pointer: Timeline() for pointer in POINTERS}
    finished, clients_done = threading.Semaphore(0), threading.Event()

    def swap(chance: random.Random, scope: AdapterScope, name: str) -> None:
        version = chance.choice(VERSIONS)
        timelines[scope, name].move(served.digests[version], lambda: served.activate(scope, name, version))

    def roll_back(scope: AdapterScope, name: str) -> None:
        found = served.pointers.pointer(state_scope(scope), name)
        assert found is not None
        arms, previous = decode_arms(found.value), decode_arms({"arms": found.value["previous"]})
        if previous:
            value = encode_state(previous, arms, "rollback")
            timelines[scope, name].move(
                previous[0].digest, lambda: served.pointers.put(state_scope(scope), name, value)
            )

    def write() -> int:
        """Move a pointer every few answers; each time the next request has to see it."""
        chance, moves = random.Random(1), 0
        while not clients_done.is_set():
            for _ in range(5):
                finished.acquire(timeout=30)
            which = chance.randrange(3)
            if chance.random() < 0.3:
                roll_back(*POINTERS[which])
            else:
                swap(chance, *POINTERS[which])
            moves += 1
            if moves % 10 == 0:
                answer = served.ask(*WHO[which], prompt=moves % len(PROMPTS))
                assert answer.digest == timelines[POINTERS[which]].begun[-1]
        return moves

    def client(seed: int) -> set[str | None]:
        chance = random.Random(100 + seed)
        seen: set[str | None] = set()
        for _ in range(REQUESTS_EACH):
            which = chance.randrange(3)
            timeline = timelines[POINTERS[which]]
            settled = timeline.returned
            answer = served.ask(*WHO[which], prompt=chance.randrange(len(PROMPTS)))
            # One that was active at some time between the request's start and its end.
            assert answer.digest in timeline.begun[settled - 1 :], answer
            assert answer.source == POINTERS[which][0]
            seen.add(answer.digest)
            finished.release()
        return seen

    for scope, name in POINTERS:
        swap(random.Random(0), scope, name)
    with ThreadPoolExecutor(NUM_CLIENTS + 1) as threads:
        writer = threads.submit(write)
        clients = [threads.submit(client, seed) for seed in range(NUM_CLIENTS)]
        try:
            seen = set().union(*(future.result() for future in clients))
        finally:
            clients_done.set()
            for _ in range(5):
                finished.release()
        moves = writer.result()
    assert seen == set(served.digests.values())
    assert moves >= NUM_CLIENTS * REQUESTS_EACH / 5 * 0.9
    status: Any = served.generator.backend.status()
    adapters, prefixes = status["adapters"], status["prefix_cache"]
    assert adapters["loads"] > 20 and adapters["evictions"] > 20  # they came from the disk again and again
    assert adapters["failures"] == 0 and adapters["pinned"] == 0
    assert prefixes["hits"] > 100
    assert (status["running"], status["queued"]) == (0, 0)


def vanish(folder: Path) -> None:
    shutil.rmtree(folder)


def flip_a_bit(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut_short(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def lose_a_file(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


@pytest.mark.parametrize(
    "how, reason",
    [(vanish, "gone"), (flip_a_bit, "damaged"), (cut_short, "damaged"), (lose_a_file, "gone")],
)
def test_an_active_adapter_is_lost_while_serving(
    served: Served, how: Callable[[Path], object], reason: str
) -> None:
    served.activate("user", "alice", "v1")
    served.activate("global", "default", "v2")
    first, second = served.digests["v1"], served.digests["v2"]
    lost, answered = threading.Event(), threading.Semaphore(0)

    def client(seed: int) -> list[Generated]:
        chance = random.Random(seed)
        answers = []
        while sum(1 for _, after in answers if after) < 4:
            after = lost.is_set()
            user = chance.choice(["alice", "alice", "bob"])
            answers.append((served.ask(user, None, prompt=chance.randrange(len(PROMPTS))), after))
            answered.release()
        for answer, after in answers:
            if answer.user_id == "bob":
                assert answer.digest == second and answer.why == "global/default has v2 active"
            elif answer.digest == second:
                assert answer.source == "global"
                assert "user/alice/v1 could not be loaded" in answer.why and reason in answer.why
                assert "fell back to global/default/v2" in answer.why
            else:
                assert answer.digest == first and not after
        return [answer for answer, _ in answers]

    with ThreadPoolExecutor(8) as threads:
        clients = [threads.submit(client, seed) for seed in range(8)]
        for _ in range(16):
            assert answered.acquire(timeout=30)
        served.lose(first, how)
        lost.set()
        answers = [answer for future in clients for answer in future.result()]
    assert {answer.digest for answer in answers} == {first, second}
    status: Any = served.generator.backend.status()
    assert status["adapters"]["failures"] >= 1


def test_nothing_is_left_but_the_base_model_until_the_files_come_back(served: Served) -> None:
    served.activate("user", "alice", "v1")
    served.activate("global", "default", "v2")
    for version in ("v1", "v2"):
        served.lose(served.digests[version], vanish)
    answer = served.ask("alice", None, prompt=0)
    assert (answer.digest, answer.source) == (None, "base")
    for words in ("user/alice/v1 could", "global/default/v2 could", "fell back to the base model"):
        assert words in answer.why
    with pytest.raises(UnknownAdapter, match="user/alice/v1 could not be loaded"):
        served.ask("alice", None, prompt=0, adapter="user/alice")
    for version in ("v1", "v2"):
        assert served.store.import_folder(version).digest == served.digests[version]
    deadline = time.monotonic() + 20
    while (answer := served.ask("alice", None, prompt=0)).source != "user":
        assert time.monotonic() < deadline
    assert answer.digest == served.digests["v1"]
