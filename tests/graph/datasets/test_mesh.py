"""Knowledge graphs, one user's in each file: what becomes of nodes and edges, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.datasets import MeshDataset, Records, Rejects, run_import
from graph.datasets.json_file import JsonFile
from graph.datasets.mesh import memory_id
from graph.errors import InvalidInput
from graph.schema import MAX_RELATIONS, PutItem, PutMemory, PutRelation, WriteRequest, is_id
from graph.writer import GraphWriter
from tests.graph.plain_model import model_of, open_store, write

FILMS = frozenset(("film-0211", "film-0007"))
DOCUMENTED = {
    "user_id": "ada-lind",
    "nodes": [
        {"id": "n1", "text": "I watch films with my daughter.", "source": "chat"},
        {
            "id": "n2",
            "text": "We live in Lisbon.",
            "valid_at": "2024-05-01",
            "invalid_at": 1772366400,
        },
        {"id": "n3", "item": "film-0211"},
    ],
    "edges": [
        {"from": "n1", "to": "n2", "name": "follows"},
        {"from": "n1", "to": "n3", "name": "about"},
        {"from": "n2", "item": "film-0007", "name": "about"},
    ],
}


def folder(tmp_path: Path, **files: Any) -> Path:
    path = tmp_path / "mesh"
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=1)
        (path / f"{name}.json").write_text(text, encoding="utf-8")
    return path


def load(path: Path) -> tuple[Records, Rejects]:
    rejects = Rejects()
    return MeshDataset(path, FILMS).load(rejects), rejects


def reasons(path: Path) -> list[str]:
    return [reject.reason.partition(":")[0] for reject in load(path)[1].examples]


def test_an_id_of_another_users_memory_is_rejected_with_its_edges(tmp_path: Path) -> None:
    nodes = [{"id": "n1", "text": "mine"}, {"id": "n2", "text": "mine, too"}]
    path = folder(tmp_path, ada={"nodes": nodes, "edges": [{"from": "n2", "to": "n1"}]})
    rejects = Rejects()
    owners = {"ada.n1": "eve", "ada.n2": "ada"}
    records = MeshDataset(path, FILMS, owners).load(rejects)
    assert [memory.memory_id for memory in records.memories] == ["ada.n2"]
    assert records.relations == []
    assert [reject.reason.partition(":")[0] for reject in rejects.examples] == ["taken id", "unknown node"]


def test_a_node_with_too_many_edges(tmp_path: Path) -> None:
    nodes = [{"id": "me", "text": "I"}, {"id": "tea", "text": "tea"}]
    edges = [{"from": "me", "to": "tea", "name": f"n{n}"} for n in range(MAX_RELATIONS)]
    edges += [edges[0], {"from": "me", "to": "tea", "name": "more"}, {"from": "tea", "to": "me"}]
    path = folder(tmp_path, ada={"nodes": nodes, "edges": edges})
    records, rejects = load(path)
    assert len(records.relations) == MAX_RELATIONS + 1
    assert [reject.reason[:9] for reject in rejects.examples] == ["bad edge:"]


def test_the_documented_file(tmp_path: Path) -> None:
    records, rejects = load(folder(tmp_path, whatever=DOCUMENTED))
    assert rejects.examples == []
    assert records.memories == [
        PutMemory("ada-lind.n1", "ada-lind", "I watch films with my daughter.", source="chat"),
        PutMemory("ada-lind.n2", "ada-lind", "We live in Lisbon.", 1_714_521_600, 1_772_366_400),
    ]
    assert records.relations == [
        PutRelation("ada-lind", "ada-lind.n1", "follows", "memory", "ada-lind.n2"),
        PutRelation("ada-lind", "ada-lind.n1", "about", "item", "film-0211"),
        PutRelation("ada-lind", "ada-lind.n2", "about", "item", "film-0007"),
    ]
    assert (records.rows_read, len(records)) == (6, 5)


def test_the_module_documents_that_file() -> None:
    from graph.datasets import mesh

    text = mesh.__doc__ or ""
    assert json.loads(text[text.index("    {") : text.index("The user is")]) == DOCUMENTED


def test_what_other_programs_write(tmp_path: Path) -> None:
    """The node-link form of networkx and D3, and nodes that are labelled."""
    exported = {
        "directed": True,
        "graph": {},
        "nodes": [
            {"id": 0, "label": "Likes tea", "size": 3.5},
            {"id": 1, "content": "Lives by the sea", "label": "home"},
            {"id": "film", "label": "A film", "item_id": "film-0007"},
        ],
        "links": [
            {"source": 0, "target": 1, "relation": "beside", "key": 0},
            {"source": 0, "target": "film", "type": "about"},
            {"source": 1, "target": 0},
            {"source": 1, "target": 0, "weight": 2},
        ],
    }
    records, rejects = load(folder(tmp_path, bo=exported))
    assert rejects.examples == []
    assert [(m.memory_id, m.user_id, m.text) for m in records.memories] == [
        ("bo.0", "bo", "Likes tea"),
        ("bo.1", "bo", "Lives by the sea"),
    ]
    assert records.relations == [
        PutRelation("bo", "bo.0", "beside", "memory", "bo.1"),
        PutRelation("bo", "bo.0", "about", "item", "film-0007"),
        PutRelation("bo", "bo.1", "related", "memory", "bo.0"),
    ]
    assert records.rows_read == 7


NODE = {"id": "a", "text": "x"}


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("text", "no object"),
        (None, "no object"),
        ({"text": "x"}, "bad node id"),
        ({"id": True, "text": "x"}, "bad node id"),
        ({"id": 1.5, "text": "x"}, "bad node id"),
        ({"id": " ", "text": "x"}, "empty node id"),
        ({"id": "a", "text": "again"}, "duplicate node"),
        ({"id": "b"}, "no text"),
        ({"id": "b", "text": " \n"}, "bad node"),
        ({"id": "b", "text": ["x"]}, "bad text"),
        ({"id": "b", "text": "x" * 20_001}, "bad node"),
        ({"id": "b", "text": "half \ud83d"}, "bad node"),
        ({"id": "b", "text": "x", "source": "a\nb"}, "bad node"),
        ({"id": "b", "text": "x", "source": 7}, "bad source"),
        ({"id": "b", "text": "x", "valid_at": "yesterday"}, "bad time"),
        ({"id": "b", "text": "x", "valid_at": True}, "bad time"),
        ({"id": "b", "text": "x", "invalid_at": -1}, "bad time"),
        ({"id": "b", "text": "x", "valid_at": 5, "invalid_at": 5}, "bad node"),
        ({"id": "b", "item": "film-9999"}, "unknown item"),
        ({"id": "b", "item": "a/b"}, "slash in item id"),
        ({"id": "b", "item": []}, "bad item id"),
    ],
)
def test_a_bad_node_is_left_out_with_its_edges(tmp_path: Path, node: Any, reason: str) -> None:
    edges = [{"from": "a", "to": "b"}, {"from": "b", "to": "a"}, {"from": "a", "item": "film-0007"}]
    path = folder(tmp_path, ann={"nodes": [NODE, node, {"id": "c", "text": "y"}], "edges": edges})
    records, rejects = load(path)
    assert [r.reason.partition(":")[0] for r in rejects.examples] == [reason, "unknown node", "unknown node"]
    assert [m.memory_id for m in records.memories] == ["ann.a", "ann.c"]
    assert records.relations == [PutRelation("ann", "ann.a", "related", "item", "film-0007")]
    assert records.rows_read == 6


@pytest.mark.parametrize(
    ("edge", "reason"),
    [
        (7, "no object"),
        ({"to": "a"}, "bad edge"),
        ({"from": "a"}, "bad edge"),
        ({"from": "a", "to": "a"}, "bad edge"),
        ({"from": "a", "to": "nope"}, "unknown node"),
        ({"from": "nope", "to": "a"}, "unknown node"),
        ({"from": "film", "to": "a"}, "bad edge"),
        ({"from": "a", "to": "film", "item": "film-0007"}, "bad edge"),
        ({"from": "a", "item": "film-9999"}, "unknown item"),
        ({"from": "a", "to": "film", "name": "x" * 65}, "bad edge"),
        ({"from": "a", "to": "film", "name": ["x"]}, "bad name"),
        ({"from": ["a"], "to": "film"}, "bad node id"),
    ],
)
def test_a_bad_edge_is_left_out(tmp_path: Path, edge: Any, reason: str) -> None:
    nodes = [NODE, {"id": "film", "item": "film-0211"}]
    good = {"from": "a", "to": "film", "name": "about"}
    path = folder(tmp_path, ann={"nodes": nodes, "edges": [edge, good]})
    assert reasons(path) == [reason]
    assert load(path)[0].relations == [PutRelation("ann", "ann.a", "about", "item", "film-0211")]


def test_an_unknown_item_counts_as_known_without_a_catalogue(tmp_path: Path) -> None:
    path = folder(tmp_path, ann={"nodes": [NODE], "edges": [{"from": "a", "item": "film-9999"}]})
    assert [r.target_id for r in MeshDataset(path).load(Rejects()).relations] == ["film-9999"]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("", 1, "not JSON"),
        ('{"nodes": [\n{"id": 1,}\n]}', 2, "not JSON"),
        ("[" * 100_000, 1, "not JSON"),
        ('{"nodes": [' + "1" * 5_000 + "]}", 1, "not JSON"),
        ("[]", 1, "no object"),
        ('{"nodes": {}}', 1, "no array"),
        ('{"nodes": null}', 1, "no array"),
        ('{"nodes": [], "links": 3}', 1, "no array"),
        ('{"user_id": "a/b"}', 1, "slash in user id"),
        ('{"user_id": []}', 1, "bad user id"),
        ('{"user_id": "ann"}', 1, "second file"),
    ],
)
def test_a_bad_file_is_left_out(tmp_path: Path, content: str, line: int, reason: str) -> None:
    path = folder(tmp_path, bad=content, ann={"nodes": [NODE]}, zoe={"nodes": [NODE]})
    (path / "bad.json").rename(path / "m.json")
    records, rejects = load(path)
    assert [(r.file, r.line, r.reason.partition(":")[0]) for r in rejects.examples] == [
        ("m.json", line, reason)
    ]
    assert [m.memory_id for m in records.memories] == ["ann.a", "zoe.a"]
    assert records.rows_read == 3


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = folder(tmp_path, ann={"nodes": [NODE]})
    (path / "bad.json").write_bytes(b'{"nodes":\n\n["\xff"]}')
    (rejected,) = load(path)[1].examples
    assert (rejected.file, rejected.line) == ("bad.json", 3)
    (path / "bad.json").write_bytes(b'\xef\xbb\xbf{"user_id": "bo", "nodes": [{"id": 1, "text": "BOM"}]}')
    assert [m.memory_id for m in load(path)[0].memories] == ["ann.a", "bo.1"]


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not ours")
    (tmp_path / "sub.json").mkdir()
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "notes.txt"):
        with pytest.raises(InvalidInput, match=path.name):
            load(path)


def test_rejects_name_the_line(tmp_path: Path) -> None:
    text = """{
  "nodes": ["not this one, a later key counts"], "x": {"nodes": [1,
  2]}, "edges": [],
  "nodes" : [
    {"id": "a",
     "text": "good"}, 5,
    {"id": "]},", "text": ""}
  ],
  "edges":[
  [1,
   2], {"from": "a", "to": "?"}
]}"""
    (path := folder(tmp_path) / "ann.json").write_text(text)
    assert [(r.line, r.raw) for r in load(path.parent)[1].examples] == [
        (6, "5"),
        (7, '{"id": "]},", "text": ""}'),
        (10, "[1, 2]"),
        (11, '{"from": "a", "to": "?"}'),
    ]


VALUES = st.recursive(
    st.none() | st.integers(0, 9) | st.text('a]}\\",:\n\u2603', max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("an]", max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.lists(VALUES, max_size=6), VALUES, st.integers(0, 3) | st.none(), st.booleans())
def test_lines_of_any_array(
    tmp_path_factory: Any, array: list[Any], other: Any, indent: int, lines: bool
) -> None:
    """Written element by element, so that where each begins is known."""
    start = json.dumps({"z": other}, indent=indent)[:-1] + ', "n" :\n ['
    parts, expected = start, []
    for place, value in enumerate(array):
        parts += ("," if place else "") + ("\r\n\t" if lines else " ")
        expected.append(parts.count("\n") + 1)
        parts += json.dumps(value, indent=indent)
    path = tmp_path_factory.getbasetemp() / "lines.json"
    path.write_bytes((parts + ' ] , "after":[{}] }').encode())
    file = JsonFile(path)
    assert file.object["n"] == array
    assert [file.line("n", place) for place in range(len(array))] == expected


def test_ids_are_the_same_at_every_import() -> None:
    assert memory_id("ann", "n.1") == "ann.n.1"
    assert memory_id("ann@example.org", "1") == "mem_0f8addf1f8e2e26760e7"
    assert memory_id("ann", "http://x/1") == "mem_5bc38a118c0d2baebbd7"


USER_IDS = st.text("ab.", min_size=1, max_size=3).filter(is_id)
NODE_IDS = st.text("ab./", min_size=1, max_size=3) | st.just("x" * 130)


@settings(deadline=None)
@given(st.lists(st.tuples(USER_IDS, NODE_IDS), unique=True, min_size=2, max_size=8))
def test_no_two_nodes_share_an_id(pairs: list[tuple[str, str]]) -> None:
    ids = [memory_id(*pair) for pair in pairs]
    assert len(set(ids)) == len(ids)
    assert all(map(is_id, ids))


def test_importing_again_changes_what_changed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    writer = GraphWriter(store)
    write(writer, *(PutItem(film, film) for film in sorted(FILMS)))

    def take(path: Path) -> tuple[int, int, int, int]:
        def commit(request: WriteRequest) -> Any:
            return write(writer, *request.operations)

        summary = run_import(MeshDataset(path, FILMS), commit)
        assert (summary.read, summary.rejected) == (summary.kept, 0)
        return summary.memories, summary.relations, summary.changed, summary.unchanged

    bo = {"nodes": [{"id": "n1", "text": "Has a dog"}]}
    path = folder(tmp_path, ada=DOCUMENTED, bo=bo)
    assert take(path) == (3, 3, 3 + 2 + 3, 0)  # memories, their users, relations
    first = model_of(writer.view)
    assert first.memories["ada-lind.n1"][:2] == ("ada-lind", "I watch films with my daughter.")
    assert set(first.relations) == {
        ("ada-lind.n1", "follows", "memory", "ada-lind.n2"),
        ("ada-lind.n1", "about", "item", "film-0211"),
        ("ada-lind.n2", "about", "item", "film-0007"),
    }
    head = store.head()
    assert take(path) == (3, 3, 0, 6)
    assert store.head() == head
    bo["nodes"][0]["text"] = "Has a cat"
    assert take(folder(tmp_path, bo=bo))[2:] == (1, 5)
    assert model_of(writer.view).memories["bo.n1"][1] == "Has a cat"
    store.close()


def test_batches_are_in_dependency_order(tmp_path: Path) -> None:
    records, _ = load(folder(tmp_path, ada=DOCUMENTED))
    batches = list(records.batches(2))
    assert [[type(o).__name__ for o in batch] for batch in batches] == [
        ["PutMemory"] * 2,
        ["PutRelation"] * 2,
        ["PutRelation"],
    ]


def test_progress_counts_bytes(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = folder(tmp_path, ada=DOCUMENTED, bo="{}")
    MeshDataset(path).load(Rejects(), lambda *call: seen.append(call))
    total = sum(file.stat().st_size for file in path.iterdir())
    assert seen[0] == ("reading mesh", 0, total)
    assert seen[-1] == ("reading mesh", total, total)
    assert len(seen) == 3
