"""Writers that keep a book of what was acknowledged, outside the service, and compare it with the service."""

from __future__ import annotations

import random
import threading
import time
import uuid
from dataclasses import dataclass, field

import httpx

from deployments.settings import Settings
from deployments.store_access import read_view
from tests.service import Service

REQUEST_TIMEOUT_S = 20.0
GIVE_UP_S = 60.0

Rating = tuple[str, str]


@dataclass(eq=False)
class BookkeepingWriter:
    """One thread's worth of writes to users of its own: new ratings, other values, deletes.

    Every write is repeated with its own Idempotency-Key until it is acknowledged, so each happens exactly
    once, however often its request was lost. Every write changes something and so takes one version.
    """

    url: str
    name: str
    items: tuple[str, ...]
    random: random.Random
    ratings: dict[Rating, float] = field(default_factory=dict)
    versions: list[int] = field(default_factory=list)  # of the acknowledged writes
    repeats: int = 0
    _http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self._http = httpx.Client(base_url=self.url, timeout=REQUEST_TIMEOUT_S, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def write(self) -> None:
        known = list(self.ratings)
        choice = self.random.random()
        if known and choice < 0.1:
            self._delete(self.random.choice(known))
        elif known and choice < 0.4:
            rating = self.random.choice(known)
            self._rate(rating, self.ratings[rating] % 5.0 + 0.5)
        else:
            user = f"{self.name}-{len(self.versions) // 20}"
            free = [item for item in self.items if (user, item) not in self.ratings]
            self._rate((user, self.random.choice(free)), self.random.randrange(1, 11) / 2)

    def _rate(self, rating: Rating, value: float) -> None:
        user, item = rating
        body = {"user_id": user, "item_id": item, "value": value, "timestamp": len(self.versions)}
        self._until_acknowledged("POST", "/v1/ratings", body)
        self.ratings[rating] = value

    def _delete(self, rating: Rating) -> None:
        user, item = rating
        self._until_acknowledged("DELETE", f"/v1/users/{user}/ratings/{item}", None)
        del self.ratings[rating]

    def _until_acknowledged(self, method: str, path: str, body: dict[str, object] | None) -> None:
        headers = {"idempotency-key": uuid.uuid4().hex}
        deadline = time.monotonic() + GIVE_UP_S
        while True:
            assert time.monotonic() < deadline, f"{method} {path}: no acknowledgement within {GIVE_UP_S:g} s"
            try:
                response = self._http.request(method, path, json=body, headers=headers)
            except httpx.TransportError:
                self.repeats += 1
                continue
            if response.status_code == 200:
                break
            # 5xx without the error shape was made by the proxy: nothing is known, like a lost connection.
            error = response.json()["error"] if response.text.startswith("{") else {"retryable": True}
            assert response.status_code >= 429 and error["retryable"], f"{method} {path}: {response.text}"
            self.repeats += 1
        self.versions.append(int(response.json()["version"].rpartition(".")[2]))


class BackgroundWriters:
    """Several bookkeeping writers at work until stopped."""

    def __init__(self, service: Service, items: tuple[str, ...], seed: int, number: int = 4) -> None:
        mark = uuid.uuid4().hex[:6]
        self.writers = [
            BookkeepingWriter(service.url, f"{mark}-w{n}", items, random.Random(seed * 100 + n))
            for n in range(number)
        ]
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._work, args=(w,)) for w in self.writers]

    def __enter__(self) -> BackgroundWriters:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for writer in self.writers:
            writer.close()

    @property
    def acknowledged(self) -> int:
        self.check()
        return sum(len(writer.versions) for writer in self.writers)

    @property
    def versions(self) -> list[int]:
        return sorted(v for writer in self.writers for v in writer.versions)

    def check(self) -> None:
        """Raise what went wrong in a thread."""
        if self._errors:
            raise self._errors[0]

    def _work(self, writer: BookkeepingWriter) -> None:
        try:
            while not self._stop.is_set():
                writer.write()
        except BaseException as error:
            self._errors.append(error)


def assert_kept(service: Service, writers: list[BookkeepingWriter]) -> None:
    """What the books say is what the replicas answer and what the disk holds: no less, no more."""
    names = tuple(f"{writer.name}-" for writer in writers)
    expected = {rating: value for writer in writers for rating, value in writer.ratings.items()}
    view = read_view(
        Settings.model_validate({"data_dir": service.data_dir, "store": {"url": service.store_url}})
    )
    on_disk = {
        (user.user_id, view.item_at(int(row)).item_id): float(value)  # type: ignore[union-attr]
        for user in view.users()
        if user.user_id.startswith(names)
        for ratings in [view.ratings_of(user.row)]
        for row, value in zip(ratings.item_rows, ratings.values, strict=True)
    }
    assert on_disk == expected
    served: dict[Rating, float] = {}
    with service.client() as client:
        client.observe(f"{view.store_id}.{view.version}")
        for user_id in sorted({user.user_id for user in view.users() if user.user_id.startswith(names)}):
            page = client.list_ratings(user_id, limit=1000)
            served |= {(user_id, rating.item_id): rating.value for rating in page.records}
    assert served == expected


def head(service: Service) -> int:
    return int(service.status()["graph_state"]["version"])
