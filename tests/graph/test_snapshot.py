"""Snapshots: the same view back, no damage ever taken for one, and the order of write, remove and purge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph import snapshot
from graph.durable_files import digest_of_file
from graph.errors import Corrupt, SnapshotRequired
from graph.node_text import item_text, text_digest
from graph.schema import (
    RATING_DTYPE,
    ChangeSet,
    DeleteItem,
    DeleteMemory,
    DeleteTextVector,
    DeleteUser,
    Item,
    PutApiKey,
    PutItem,
    PutMemory,
    PutPointer,
    PutRating,
    PutRelation,
    PutTextVector,
    PutUser,
    TextVector,
)
from graph.snapshot import (
    newest_snapshot,
    read_snapshot,
    remove_snapshots_after,
    remove_snapshots_before,
    write_snapshot,
)
from graph.store import GraphStore
from graph.view import GraphView
from graph.writer import GraphWriter
from tests.graph.plain_model import assert_same_view, open_store, read_view, write


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    return open_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def view(store: GraphStore) -> GraphView:
    """Never changed by a test: they work on copies."""
    writer, rng = GraphWriter(store), np.random.default_rng(0)
    write(writer, *(PutItem(f"i{n}", f"Film \u2603 {n}", ("a", f"t{n}"), 1990 + n, "plot") for n in range(9)))
    write(writer, *(PutUser(f"u{n}", {"n": n, "ok": True, "tags": ["x", "y"]}) for n in range(7)))
    for _ in range(60):
        user, item = rng.integers(7), rng.integers(9)
        write(
            writer, PutRating(f"u{user}", f"i{item}", float(rng.integers(1, 11)) / 2, int(rng.integers(99)))
        )
    write(writer, PutMemory("m", "u1", "likes\nnew lines"), PutPointer("encoder", "active", {"digest": "d"}))
    write(writer, *(PutMemory(f"m{n}", "u1", f"fact {n}", 5, 9 + n, "a \u2603") for n in range(4)))
    write(
        writer,
        PutRelation("u1", "m0", "about \u2603", "item", "i2"),
        PutRelation("u1", "m0", "about \u2603", "item", "i8"),
        PutRelation("u1", "m1", "follows", "memory", "m"),
        PutRelation("u1", "m2", "follows", "memory", "m3"),
        DeleteMemory("m3", "u1"),
    )
    text_vectors = [
        PutTextVector("item", item.item_id, model, text_digest(item_text(item)), embedding(rng, dim))
        for model, dim in (("t-1", 3), ("t-2", 5))
        for item in writer.view.items()
        if item.row != 4
    ]
    fact = PutTextVector("memory", "m", "t-1", text_digest("likes\nnew lines"), embedding(rng, 3))
    write(writer, *text_vectors, fact)
    write(
        writer,
        PutApiKey("weft_00000000000000aa", "user", "a" * 64, 1, "u1", "\u2603 phone", 99),
        PutApiKey("weft_00000000000000bb", "admin", "b" * 64, 2),
        PutApiKey("weft_00000000000000cc", "user", "c" * 64, 3, "u6"),
    )
    write(writer, DeleteUser("u6"), DeleteItem("i8"), DeleteTextVector("item", 0, "t-2"))
    return writer.view


def embedding(rng: np.random.Generator, dim: int) -> bytes:
    return rng.standard_normal(dim).astype("<f2").tobytes()


def contents_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_round_trip_keeps_everything(view: GraphView, tmp_path: Path) -> None:
    folder = write_snapshot(tmp_path / "s", view.contents())
    assert folder.name == f"v{view.version:020d}"
    again = newest_snapshot(tmp_path / "s", view.store_id)
    assert again is not None
    assert_same_view(again, view)
    assert (again.num_user_rows, again.num_item_rows) == (7, 9)  # rows of the deleted ones too
    for row in range(view.num_user_rows):
        assert again.ratings_of(row).item_rows.tolist() == view.ratings_of(row).item_rows.tolist()


def test_an_empty_view_round_trips(tmp_path: Path) -> None:
    write_snapshot(tmp_path, GraphView("s").contents())
    again = newest_snapshot(tmp_path, "s")
    assert again is not None
    assert_same_view(again, GraphView("s"))


def test_a_mapped_view_changes_without_touching_its_files(
    view: GraphView, store: GraphStore, tmp_path: Path
) -> None:
    folder = write_snapshot(tmp_path, view.contents())
    before = contents_of(folder)
    mapped, free = read_snapshot(folder), view.copy()
    rng = np.random.default_rng(1)
    # What is there first: growing would copy the arrays, and only then would they no longer be the files'.
    edges = view.edges()
    pairs = list(zip(edges.user_rows.tolist(), edges.item_rows.tolist(), strict=True))
    pairs += [(int(rng.integers(7)), int(rng.integers(9))) for _ in range(150)]
    for pair in pairs:
        version = mapped.version + 1
        record = np.array([(*pair, 2.5, 1, version, rng.random() < 0.4)], RATING_DTYPE)
        for each in (mapped, free):
            each.apply(ChangeSet(version - 1, version, ratings=record))
    assert mapped.edges().values.tolist() == free.edges().values.tolist()
    assert contents_of(folder) == before
    assert_same_view(read_snapshot(folder), view)


def as_format(folder: Path, number: int) -> None:
    """Turn a snapshot into what an older version wrote of the same graph."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["format"] = number
    gone = [folder / "api_keys.jsonl"]
    if number < 3:
        gone.append(folder / "relations.jsonl")
        memories = folder / "memories.jsonl"
        new = ("valid_at", "invalid_at", "source")
        rows = [json.loads(line) for line in memories.read_text().splitlines()]
        old = [{name: value for name, value in row.items() if name not in new} for row in rows]
        memories.write_text("".join(json.dumps(row) + "\n" for row in old))
        manifest["sha256"][memories.name] = digest_of_file(memories)
    if number < 2:
        del manifest["text_vectors"]
        gone += folder.glob("text_vectors.*")
    for path in gone:
        path.unlink()
        del manifest["sha256"][path.name]
    manifest["digest"] = snapshot._manifest_digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_older_snapshot_has_less(view: GraphView, tmp_path: Path, number: int) -> None:
    as_format(write_snapshot(tmp_path, view.contents()), number)
    again = newest_snapshot(tmp_path, view.store_id)
    assert again is not None
    assert list(again.api_keys()) == [] != list(view.api_keys())
    assert again.num_relations == (0 if number < 3 else view.num_relations)
    assert again.text_models("item") == (() if number == 1 else view.text_models("item"))
    bare = [replace(m, valid_at=None, invalid_at=None, source="") for m in view.memories()]
    assert bare != list(view.memories())
    assert list(again.memories()) == (bare if number < 3 else list(view.memories()))
    assert list(again.items()) == list(view.items())
    assert again.num_ratings == view.num_ratings > 0


def test_text_vectors_of_a_snapshot_change_without_touching_its_files(
    view: GraphView, tmp_path: Path
) -> None:
    folder = write_snapshot(tmp_path, view.contents())
    before, again = contents_of(folder), read_snapshot(folder)
    assert again.text_models("item") == ("t-1", "t-2")
    assert again.text_vectors("item", "t-2").rows().tolist() == [1, 2, 3, 5, 6, 7]
    gone = TextVector("item", 1, "t-2", "", b"", view.version + 1, deleted=True)
    moved = TextVector("item", 2, "t-2", "0" * 32, bytes(10), view.version + 1)
    again.apply(ChangeSet(view.version, view.version + 1, text_vectors=[gone, moved]))
    assert contents_of(folder) == before
    assert_same_view(read_snapshot(folder), view)


def test_the_name_of_a_model_is_no_name_of_a_file(tmp_path: Path) -> None:
    view = GraphView("s")
    names = ["..", "a/b", "A", "a", "con", "x" * 128, "\u2603 \"'"]
    records = [TextVector("item", n, name, "0" * 32, bytes(2 * n + 2), 1) for n, name in enumerate(names)]
    view.apply(ChangeSet(0, 1, items=[Item(n, f"i{n}", "T", (), None, "", 1) for n in range(7)]))
    view.apply(ChangeSet(1, 2, text_vectors=records))
    write_snapshot(tmp_path / "s", view.contents())
    again = newest_snapshot(tmp_path / "s", "s")
    assert again is not None
    assert again.text_models("item") == tuple(sorted(names))
    assert_same_view(again, view)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def flip(folder: Path, name: str, place: int, bit: int) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)


FILES = [
    "manifest.json",
    "users.jsonl",
    "items.jsonl",
    "memories.jsonl",
    "relations.jsonl",
    "pointers.jsonl",
    "api_keys.jsonl",
    *(f"by_user.{part}.npy" for part in ("indptr", "keys", "value", "timestamp")),
    *(f"by_item.{part}.npy" for part in ("indptr", "keys", "value")),
    *(f"text_vectors.{n}.{part}.npy" for n in range(3) for part in ("rows", "vectors", "digests")),
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FILES), st.integers(0, 10_000), st.integers(0, 7))
def test_no_flipped_bit_gets_into_a_view(
    view: GraphView, tmp_path: Path, name: str, place: int, bit: int
) -> None:
    folder = write_snapshot(tmp_path / "s", view.contents())
    assert set(contents_of(folder)) == set(FILES)
    flip(folder, name, place, bit)
    found = newest_snapshot(tmp_path / "s", view.store_id)
    if found is not None:  # white space between two fields of the manifest
        assert name == "manifest.json"
        assert_same_view(found, view)
    shutil.rmtree(folder)


def edit_manifest(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        edited = edit(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest if edited is None else edited))

    return damage


def truncate(name: str, left: int) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:left])


DAMAGE: dict[str, Callable[[Path], Any]] = {
    **{f"no {name}": (lambda folder, name=name: (folder / name).unlink()) for name in FILES},
    **{f"half of {name}": truncate(name, 40) for name in FILES},
    **{f"nothing in {name}": truncate(name, 0) for name in FILES},
    "another version": edit_manifest(lambda m: m.update(version=m["version"] + 1)),
    "another store": edit_manifest(lambda m: m.update(store_id="other")),
    "another format": edit_manifest(lambda m: m.update(format=5)),
    "fewer rows": edit_manifest(lambda m: m.update(user_rows=1)),
    "no checksums": edit_manifest(lambda m: m.update(sha256={})),
    "checksums as a list": edit_manifest(lambda m: m.update(sha256=[])),
    "a field less": edit_manifest(lambda m: m.pop("item_rows")),
    "a list": edit_manifest(lambda m: [m]),
    "a text": edit_manifest(lambda m: "m"),
    "a file in its place": lambda folder: (shutil.rmtree(folder), folder.write_text("x")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_skipped_for_the_one_before(
    view: GraphView, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    older = GraphView(view.store_id, version=3)
    write_snapshot(tmp_path, older.contents())
    folder = write_snapshot(tmp_path, view.contents())
    DAMAGE[damage](folder)
    with pytest.raises(Corrupt):
        read_snapshot(folder)
    found = newest_snapshot(tmp_path, view.store_id)
    assert found is not None
    assert_same_view(found, older)
    assert "it is ignored" in caplog.text


def test_without_a_readable_snapshot_the_store_is_there(
    view: GraphView, store: GraphStore, tmp_path: Path
) -> None:
    flip(write_snapshot(tmp_path, view.contents()), "by_user.keys.npy", 150, 3)
    recovered = GraphWriter(store, newest_snapshot(tmp_path, store.store_id)).view
    assert_same_view(recovered, view)


def test_snapshots_of_another_store_are_no_help(view: GraphView, tmp_path: Path) -> None:
    foreign = GraphView("foreign", version=view.version)
    folder = write_snapshot(tmp_path, foreign.contents())
    assert newest_snapshot(tmp_path, view.store_id) is None
    # And they do not stand in the way of an own one.
    assert write_snapshot(tmp_path, view.contents()) == folder
    assert_same_view(read_snapshot(folder), view)


def test_a_damaged_snapshot_is_written_again(view: GraphView, tmp_path: Path) -> None:
    folder = write_snapshot(tmp_path, view.contents())
    untouched = (folder / "users.jsonl").stat().st_mtime_ns
    assert write_snapshot(tmp_path, view.contents()) == folder
    assert (folder / "users.jsonl").stat().st_mtime_ns == untouched
    flip(folder, "items.jsonl", 5, 1)
    write_snapshot(tmp_path, view.contents())
    assert_same_view(read_snapshot(folder), view)


def test_a_write_that_was_interrupted_leaves_nothing_that_counts(
    view: GraphView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = GraphView(view.store_id, version=3)
    write_snapshot(tmp_path, older.contents())
    sync = snapshot.sync

    def power_loss(path: Path) -> None:
        if path.name.startswith(".writing-"):  # everything is written, the folder not yet renamed
            raise OSError("power loss")
        sync(path)

    monkeypatch.setattr(snapshot, "sync", power_loss)
    with pytest.raises(OSError, match="power loss"):
        write_snapshot(tmp_path, view.contents())
    monkeypatch.undo()
    assert [p.name[0] for p in sorted(tmp_path.iterdir())] == [".", "v"]
    found = newest_snapshot(tmp_path, view.store_id)
    assert found is not None
    assert found.version == 3
    write_snapshot(tmp_path, view.contents())  # over the leftovers
    remove_snapshots_before(tmp_path, view.version)
    assert [p.name for p in tmp_path.iterdir()] == [f"v{view.version:020d}"]


def test_everything_is_synced_before_the_rename_and_the_rename_after(
    view: GraphView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    target = tmp_path / f"v{view.version:020d}"
    monkeypatch.setattr(snapshot, "sync", lambda path: synced.append((path.name, target.exists())))
    write_snapshot(tmp_path, view.contents())
    assert {name for name, renamed in synced if not renamed} >= set(FILES)
    assert synced[-1] == (tmp_path.name, True)


def test_old_and_impossible_snapshots_are_removed(tmp_path: Path) -> None:
    for version in (1, 5, 9, 12):
        write_snapshot(tmp_path, GraphView("s", version=version).contents())
    (tmp_path / ".writing-1-7").mkdir()
    (tmp_path / "notes.txt").write_text("not ours")
    remove_snapshots_before(tmp_path, 5)
    remove_snapshots_after(tmp_path, 9)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", f"v{5:020d}", f"v{9:020d}"]
    remove_snapshots_after(tmp_path / "nowhere", 0)
    assert newest_snapshot(tmp_path / "nowhere", "s") is None


def test_at_every_point_of_a_snapshot_a_follower_finds_its_way(tmp_path: Path) -> None:
    """Write, remove, purge: in this order there is always a snapshot or a feed from where the follower is."""
    store = open_store(tmp_path)
    writer, root = GraphWriter(store), tmp_path / "snapshots"
    write(writer, PutUser("stays"), PutUser("goes"), PutItem("i", "I"))
    write_snapshot(root, writer.view.contents())
    write(writer, DeleteUser("goes"), PutRating("stays", "i", 3.0))

    def start() -> GraphView:
        view = newest_snapshot(root, store.store_id) or GraphView(store.store_id)
        view.apply(ChangeSet.concatenate(list(store.changes_since(view.version))))
        return view

    follower, contents = start(), writer.view.contents()
    for step in (
        lambda: write_snapshot(root, contents),
        lambda: remove_snapshots_before(root, contents.version),
        lambda: writer.purge(contents.version),
    ):
        step()
        assert_same_view(start(), writer.view)
        assert_same_view(read_view(store), writer.view)
    assert_same_view(follower, writer.view)
    with pytest.raises(SnapshotRequired):
        list(store.changes_since(1))
    store.close()
