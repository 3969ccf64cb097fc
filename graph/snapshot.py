"""Views on disk: versioned, checksummed, atomically renamed, memory-mappable.

A snapshot is a folder `v<version>` with one `.npy` file per array, the node records as JSON lines, and
`manifest.json` with the store id, version and SHA-256 of every file and of itself. It is written under a
temporary name, synced, and renamed; a folder without that history is never taken for a snapshot.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graph.durable_files import digest_of_file, sync
from graph.errors import Corrupt
from graph.schema import ApiKey, Item, Memory, Pointer, Relation, User
from graph.text_vectors import TextVectorArrays
from graph.view import GraphView
from graph.view_contents import ViewContents

log = logging.getLogger(__name__)

FORMAT = 4
"""2: text vectors. 3: relations; validity and source of memories. 4: API keys. Older formats are
read as without any."""
_Record: TypeAlias = User | Item | Memory | Relation | Pointer | ApiKey
_RECORDS: dict[str, type[_Record]] = {
    "users": User,
    "items": Item,
    "memories": Memory,
    "relations": Relation,
    "pointers": Pointer,
    "api_keys": ApiKey,
}
_SINCE = {"relations": 3, "api_keys": 4}
"""The format that brought a kind of records, where it was not the first."""
_TEXT_VECTOR_ARRAYS = ("rows", "vectors", "digests")


def write_snapshot(root: Path, contents: ViewContents) -> Path:
    """Write `contents` under `root` and make it durable; returns its folder.

    `GraphView.contents()` gives the contents: copies, so that the view may go on meanwhile.
    """
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"v{contents.version:020d}"
    if target.exists():
        # Left alone only if it is this snapshot: a damaged one, or one of another store, would be skipped.
        try:
            if read_snapshot(target).store_id == contents.store_id:
                return target
        except Corrupt as error:
            log.warning("%s; it is written again", error.message)
        shutil.rmtree(target)
    scratch = root / f".writing-{os.getpid()}-{contents.version}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for side, (indptr, keys, columns) in (("by_user", contents.by_user), ("by_item", contents.by_item)):
        sides: dict[str, npt.NDArray[Any]] = {"indptr": indptr, "keys": keys, **columns}
        for name, array in sides.items():
            _save(scratch / f"{side}.{name}.npy", array)
    for number, arrays in enumerate(contents.text_vectors):
        for name in _TEXT_VECTOR_ARRAYS:
            _save(scratch / _text_vector_file(number, name), getattr(arrays, name))
    for name, records in (
        ("users", contents.users),
        ("items", contents.items),
        ("memories", contents.memories),
        ("relations", contents.relations),
        ("pointers", contents.pointers),
        ("api_keys", contents.api_keys),
    ):
        _write_records(scratch / f"{name}.jsonl", records)
    manifest = {
        "format": FORMAT,
        "store_id": contents.store_id,
        "version": contents.version,
        "user_rows": contents.user_rows,
        "item_rows": contents.item_rows,
        "text_vectors": [{"kind": a.kind, "model": a.model} for a in contents.text_vectors],
        "sha256": {p.name: digest_of_file(p) for p in sorted(scratch.iterdir())},
    }
    manifest["digest"] = _manifest_digest(manifest)
    (scratch / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in scratch.iterdir():
        sync(path)
    sync(scratch)
    scratch.rename(target)
    sync(root)
    return target


def read_snapshot(path: Path) -> GraphView:
    """The view of one snapshot folder; its rating arrays are mapped copy-on-write. Raises Corrupt."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] not in range(1, FORMAT + 1):
            raise Corrupt(
                f"snapshot {path} has format {manifest['format']}, this version reads 1 to {FORMAT}"
            )
        if manifest["digest"] != _manifest_digest(manifest):
            raise Corrupt(f"snapshot {path}: manifest.json does not match its own checksum")
        for name, digest in manifest["sha256"].items():
            if digest_of_file(path / name) != digest:
                raise Corrupt(f"snapshot {path}: {name} does not match its checksum")
        records = {
            name: list(_read_records(path / f"{name}.jsonl", kind))
            for name, kind in _RECORDS.items()
            if manifest["format"] >= _SINCE.get(name, 1)
        }
        contents = ViewContents(
            store_id=manifest["store_id"],
            version=manifest["version"],
            user_rows=manifest["user_rows"],
            item_rows=manifest["item_rows"],
            by_user=_read_side(path, "by_user", ("value", "timestamp")),
            by_item=_read_side(path, "by_item", ("value",)),
            text_vectors=[
                TextVectorArrays(
                    **named,
                    **{
                        name: np.load(path / _text_vector_file(number, name), mmap_mode="r")
                        for name in _TEXT_VECTOR_ARRAYS
                    },
                )
                for number, named in enumerate(manifest.get("text_vectors", []))
            ],
            **records,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"snapshot {path} cannot be read: {error}") from error
    return GraphView.from_contents(contents)


def newest_snapshot(root: Path, store_id: str) -> GraphView | None:
    """The newest readable snapshot of that store under `root`; damaged ones are skipped with a warning."""
    for path in sorted(root.glob("v*"), reverse=True):
        try:
            view = read_snapshot(path)
        except Corrupt as error:
            log.warning("%s; it is ignored", error.message)
            continue
        if view.store_id == store_id:
            return view
        log.warning("snapshot %s belongs to store %s, not %s; it is ignored", path, view.store_id, store_id)
    return None


def remove_snapshots_after(root: Path, version: int) -> None:
    """Drop snapshots newer than `version`: where a backup was restored, they tell of what never happened."""
    for path in root.glob("v" + "[0-9]" * 20):
        if path.name > f"v{version:020d}":
            log.warning("snapshot %s is ahead of the store, at version %d; it is removed", path, version)
            shutil.rmtree(path)


def remove_snapshots_before(root: Path, version: int) -> None:
    """Drop snapshots older than `version`, and what an interrupted write left behind."""
    for path in root.iterdir():
        older = path.name.startswith("v") and path.name < f"v{version:020d}"
        if older or path.name.startswith(".writing-"):
            shutil.rmtree(path)


def _text_vector_file(number: int, name: str) -> str:
    # By number, which the manifest resolves: the name of a model is no safe name of a file.
    return f"text_vectors.{number}.{name}.npy"


def _save(path: Path, array: npt.NDArray[Any]) -> None:
    np.save(path, array, allow_pickle=False)


def _write_records(path: Path, records: Iterable[_Record]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")


def _read_records(path: Path, kind: type[Any]) -> Iterator[Any]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            fields = json.loads(line)
            if kind is Item:
                fields["tags"] = tuple(fields["tags"])
            yield kind(**fields)


def _read_side(
    path: Path, side: str, columns: tuple[str, ...]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], dict[str, npt.NDArray[np.generic]]]:
    def mapped(name: str) -> Any:
        return np.load(path / f"{side}.{name}.npy", mmap_mode="c", allow_pickle=False)

    return np.array(mapped("indptr")), mapped("keys"), {name: mapped(name) for name in columns}


def _manifest_digest(manifest: dict[str, Any]) -> str:
    rest = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
