"""Caches of embeddings that `benchmarks.cache` reads side by side, each as its users would use it.

A side takes texts and gives float32 [n, d]; lists of floats are turned into an array, as a caller would.

    weft           CachedEncoder: entries expire after its default of seven days
    get_pickle     redis-py, one GET per text, the array pickled; SHA-256 of the text as the key
    redisvl_mget   EmbeddingsCache.mget, its batched call; no TTL, with which it would be slower
    redisvl_get    EmbeddingsCache.get, text by text
    langchain      CacheBackedEmbeddings.embed_documents over RedisStore, which is one MGET and JSON; BLAKE2b
                   keys, since it warns about its default of SHA-1; no TTL
    ceiling        redis-benchmark's MGET of as many keys, as long, with values as long as those of weft; the
                   best of CEILING_SETTINGS in every round
"""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import warnings
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import redis

from models.embedding_cache.cached_encoder import CachedEncoder
from models.embedding_cache.store import EmbeddingStore
from models.text_encoder.protocol import Encoded, Fingerprint, Float32

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # langchain-community announces its end
        from langchain_classic.embeddings import CacheBackedEmbeddings
        from langchain_community.storage import RedisStore as LangChainRedisStore
        from langchain_core.embeddings import Embeddings
        from redisvl.extensions.cache.embeddings import EmbeddingsCache
except ImportError as missing:
    raise SystemExit(f"{missing}; what is compared here comes with: pip install -e '.[bench]'") from missing


class Side(Protocol):
    def fill(self, texts: Sequence[str]) -> None: ...

    def read(self, texts: Sequence[str]) -> Float32: ...


class KnownVectors:
    """A TextEncoder of texts whose vectors were computed before; counts the texts asked of it."""

    def __init__(self, fingerprint: Fingerprint, texts: Sequence[str], vectors: Float32) -> None:
        self.fingerprint = fingerprint
        self.asked = 0
        self._places = {text: place for place, text in enumerate(texts)}
        self._vectors = vectors

    def encode(self, texts: Sequence[str], prompt: str | None = None) -> Float32:
        self.asked += len(texts)
        return self._vectors[[self._places[text] for text in texts]]

    def encode_counted(
        self, texts: Sequence[str], prompt: str | None = None, *, truncate: bool = True
    ) -> Encoded:
        return Encoded(self.encode(texts, prompt), np.full(len(texts), -1, np.int32))

    def close(self) -> None: ...


class WeftSide:
    def __init__(self, encoder: KnownVectors, store: EmbeddingStore, memory_bytes: int) -> None:
        self.cache = CachedEncoder(encoder, store, memory_bytes=memory_bytes)

    def fill(self, texts: Sequence[str]) -> None:
        self.cache.encode(texts)
        self.cache.flush()

    def read(self, texts: Sequence[str]) -> Float32:
        return self.cache.encode(texts)


class PickleSide:
    def __init__(self, encoder: KnownVectors, url: str) -> None:
        self._encoder, self._client = encoder, redis.Redis.from_url(url)
        self._prefix = f"{encoder.fingerprint.name}:"

    def fill(self, texts: Sequence[str]) -> None:
        with self._client.pipeline(transaction=False) as pipeline:
            for text, vector in zip(texts, self._encoder.encode(texts), strict=True):
                pipeline.set(self._key(text), pickle.dumps(vector))
            pipeline.execute()

    def read(self, texts: Sequence[str]) -> Float32:
        return np.stack([pickle.loads(self._client.get(self._key(text))) for text in texts])

    def _key(self, text: str) -> str:
        return self._prefix + hashlib.sha256(text.encode()).hexdigest()


class RedisVLSide:
    def __init__(self, encoder: KnownVectors, url: str, *, batched: bool) -> None:
        self._encoder, self._model, self._batched = encoder, encoder.fingerprint.name, batched
        self._cache = EmbeddingsCache(redis_url=url)

    def fill(self, texts: Sequence[str]) -> None:
        vectors = self._encoder.encode(texts).tolist()
        self._cache.mset(
            [
                {"content": text, "model_name": self._model, "embedding": vector}
                for text, vector in zip(texts, vectors, strict=True)
            ]
        )

    def read(self, texts: Sequence[str]) -> Float32:
        if self._batched:
            found = self._cache.mget(texts, self._model)
        else:
            found = [self._cache.get(text, self._model) for text in texts]
        return np.asarray([entry["embedding"] for entry in found if entry is not None], np.float32)


class LangChainSide:
    def __init__(self, encoder: KnownVectors, url: str) -> None:
        self._embeddings = CacheBackedEmbeddings.from_bytes_store(
            _AsLangChain(encoder),
            LangChainRedisStore(redis_url=url),
            namespace=encoder.fingerprint.name,
            key_encoder="blake2b",
        )

    def fill(self, texts: Sequence[str]) -> None:
        self._embeddings.embed_documents(list(texts))

    def read(self, texts: Sequence[str]) -> Float32:
        return np.asarray(self._embeddings.embed_documents(list(texts)), np.float32)


class _AsLangChain(Embeddings):
    def __init__(self, encoder: KnownVectors) -> None:
        self._encoder = encoder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._encoder.encode(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


CEILING_SETTINGS = {
    "1 client": ("-c", "1"),
    "1 client, pipeline 2": ("-c", "1", "-P", "2"),
    "2 clients": ("-c", "2"),
    "8 clients, 2 threads": ("-c", "8", "--threads", "2"),
}


class Ceiling:
    """What redis-benchmark reads with MGET: keys and values as long as those of `weft`, drawn at random."""

    def __init__(self, port: int, db: int, keys: int, batch: int, key_bytes: int, value_bytes: int) -> None:
        self._names = "x" * (key_bytes - 12) + "%s"
        self._command = ["redis-benchmark", "-p", str(port), "--dbnum", str(db), "-r", str(keys), "--csv"]
        self._batch, self._keys, self._value_bytes = batch, keys, value_bytes
        self._url = f"redis://127.0.0.1:{port}/{db}"

    def fill(self) -> None:
        with redis.Redis.from_url(self._url) as client, client.pipeline(transaction=False) as pipeline:
            for number in range(self._keys):
                pipeline.set(self._names % f"{number:012d}", b"x" * self._value_bytes)
            pipeline.execute()

    def vectors_per_s(self, setting: str, calls: int) -> float:
        names = [self._names % "__rand_int__"] * self._batch
        done = subprocess.run(
            [*self._command, *CEILING_SETTINGS[setting], "-n", str(calls), "MGET", *names],
            capture_output=True,
            text=True,
            check=True,
        )
        # The last line: the command in quotes, calls per second, latencies.
        return float(done.stdout.strip().splitlines()[-1].split('","')[1]) * self._batch
