"""run_import, the rejects file and the order of batches."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from graph.datasets import DemoDataset, Rejects, TableDataset, TableOptions, run_import
from graph.errors import InvalidInput
from graph.schema import MAX_ROWS_PER_WRITE, WriteRequest, WriteResult


class Recorder:
    """Takes writes and says that each changed `changed` rows fewer than asked."""

    def __init__(self, unchanged: int = 0) -> None:
        self.requests: list[WriteRequest] = []
        self._unchanged = unchanged

    def __call__(self, request: WriteRequest) -> WriteResult:
        self.requests.append(request)
        return WriteResult(len(self.requests), len(request.operations) - self._unchanged)


def table(tmp_path: Path, rows: list[str]) -> TableDataset:
    path = tmp_path / "r.csv"
    path.write_text("user_id,item_id,rating\n" + "".join(f"{row}\n" for row in rows))
    return TableDataset(TableOptions(path))


def test_summary_counts_rows_and_operations(tmp_path: Path) -> None:
    write = Recorder(unchanged=1)
    summary = run_import(table(tmp_path, ["u,a,1", "u,b,nan", "v,b,2"]), write)
    assert (summary.read, summary.kept, summary.rejected) == (3, 2, 1)
    assert (summary.items, summary.users, summary.ratings, summary.memories) == (2, 0, 2, 0)
    assert (summary.changed, summary.unchanged, summary.version) == (2, 2, 2)


def test_strict_writes_nothing_and_still_lists_the_rows(tmp_path: Path) -> None:
    write, path = Recorder(), tmp_path / "rejects.csv"
    dataset = table(tmp_path, ["u,a,1", "u,b,nan", "u,c,7"])
    with pytest.raises(InvalidInput, match=r"2 bad rows.*nothing was imported.*r\.csv line 3.*rejects\.csv"):
        run_import(dataset, write, Rejects(path), strict=True)
    assert write.requests == []
    assert [row["line"] for row in csv.DictReader(path.read_text().splitlines())] == ["3", "4"]


def test_strict_imports_clean_sources(tmp_path: Path) -> None:
    write = Recorder()
    assert run_import(table(tmp_path, ["u,a,1"]), write, strict=True).kept == 1
    assert len(write.requests) == 2


def test_nothing_to_write(tmp_path: Path) -> None:
    write = Recorder()
    summary = run_import(table(tmp_path, []), write)
    assert (summary.read, summary.version, write.requests) == (0, None, [])


def test_batches_are_bounded_and_in_dependency_order() -> None:
    records = DemoDataset().load(Rejects())
    batches = list(records.batches())
    assert max(map(len, batches)) == MAX_ROWS_PER_WRITE
    kinds = [type(operation).__name__ for batch in batches for operation in batch]
    assert list(dict.fromkeys(kinds)) == ["PutItem", "PutUser", "PutRating", "PutMemory"]
    assert len(kinds) == len(records)
    assert all(len({type(operation) for operation in batch}) == 1 for batch in batches)


def test_progress_reaches_its_total(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    dataset = table(tmp_path, [f"u{n},a,1" for n in range(20_000)])
    run_import(dataset, Recorder(), progress=lambda *call: seen.append(call))
    for stage in ("reading r.csv", "writing"):
        calls = [(done, total) for name, done, total in seen if name == stage]
        assert len(calls) > 2
        assert calls == sorted(calls)
        assert calls[-1][0] == calls[-1][1]


def test_rejects_file(tmp_path: Path) -> None:
    path = tmp_path / "rejects.csv"
    with Rejects(path) as rejects:
        rejects.add("a.csv", 3, "bad thing: x", 'raw,"text" \udcff' + "y" * 300)
        rejects.add("a.csv", 4, "bad thing: z", "")
    rows = list(csv.reader(path.read_text("utf-8").splitlines()))
    assert rows[0] == ["file", "line", "reason", "raw"]
    assert rows[1][:3] == ["a.csv", "3", "bad thing: x"]
    assert rows[1][3].startswith('raw,"text" \\udcff')
    assert rows[1][3].count("y") < 200
    assert rejects.kinds == {"bad thing": 2}
    assert str(rejects.examples[0]) == "a.csv line 3: bad thing: x"


def test_rejects_of_an_earlier_import_are_replaced_or_removed(tmp_path: Path) -> None:
    path = tmp_path / "rejects.csv"
    for _ in range(2):
        with Rejects(path) as rejects:
            rejects.add("a.csv", 3, "bad", "")
        assert len(path.read_text().splitlines()) == 2
    with Rejects(path):
        pass
    assert not path.exists()


def test_a_file_that_is_no_rejects_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text("user_id,item_id\nu,a\n")
    with pytest.raises(InvalidInput, match="not a rejects file"):
        Rejects(path)
    assert path.read_text() == "user_id,item_id\nu,a\n"
