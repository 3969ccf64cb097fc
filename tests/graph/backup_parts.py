"""A small store with files beside it, to be backed up and restored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from graph.backup import Folder
from graph.schema import (
    Idempotency,
    Pointer,
    PutApiKey,
    PutItem,
    PutMemory,
    PutPointer,
    PutRating,
    WriteRequest,
)
from graph.store import GraphStore
from graph.writer import GraphWriter
from tests.graph.plain_model import write

KEY = Idempotency("ratings", "key-1", "digest")


@dataclass(frozen=True)
class Parts:
    """Where a store and what belongs to it are."""

    data_dir: Path
    store_url: str

    @property
    def folders(self) -> tuple[Folder, ...]:
        return tuple(Folder(name, self.data_dir / name) for name in ("encoders", "adapters", "audit"))

    def store(self) -> GraphStore:
        return GraphStore(self.store_url)


def named(pointers: Sequence[Pointer]) -> dict[str, str]:
    """What `deployments.named_files` is to the service."""
    return {f"encoders/{p.value['digest']}": "the active encoder" for p in pointers if p.name == "active"}


def make_parts(data_dir: Path, store_url: str | None = None) -> Parts:
    parts = Parts(data_dir, store_url or f"sqlite:///{data_dir / 'weft.sqlite'}")
    for name in (
        "encoders/e1",
        "encoders/.saving-1",
        "adapters/a1",
        "adapters/.uploads",
        "audit",
        "snapshots",
    ):
        (data_dir / name).mkdir(parents=True)
    (data_dir / "encoders/e1/tensors").write_bytes(b"t" * 3_000_000)
    (data_dir / "encoders/e1/encoder.json").write_text("{}", encoding="utf-8")
    (data_dir / "encoders/.saving-1/tensors").write_bytes(b"half")
    (data_dir / "adapters/a1/weights").write_bytes(b"w" * 100)
    (data_dir / "adapters/.uploads/u").write_bytes(b"half")
    (data_dir / "audit/generations-0.jsonl").write_text("{}\n", encoding="utf-8")
    (data_dir / "audit/generations-0.jsonl").chmod(0o600)
    (data_dir / "snapshots/v1").write_bytes(b"derived")
    (data_dir / "embeddings.sqlite").write_bytes(b"derived")
    store = parts.store()
    writer = GraphWriter(store)
    write(writer, *(PutItem(f"i{n}", "An Item", (), 1990, "text " * 50) for n in range(300)))
    write(writer, PutRating("ada", "i1", 4.0, 1), PutMemory("m1", "ada", "keeps bees"))
    writer.commit([WriteRequest((PutRating("ada", "i2", 5.0, 2),), KEY)])
    write(writer, PutApiKey("weft_0000000000000000", "admin", "0" * 64, 5))
    write(writer, PutPointer("encoder", "active", {"digest": "e1"}))
    store.close()
    return parts


COPIED = {
    "weft.sqlite",
    "encoders/e1/tensors",
    "encoders/e1/encoder.json",
    "adapters/a1/weights",
    "audit/generations-0.jsonl",
}
"""Files of its backup, beside the manifest."""


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
