"""Tables with columns named by options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from graph.datasets import Records, Rejects, TableDataset, TableOptions
from graph.datasets.table import unix_seconds
from graph.errors import InvalidInput
from graph.schema import PutItem

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(name: str, text: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return put


def load(options: TableOptions) -> tuple[Records, Rejects]:
    rejects = Rejects()
    return TableDataset(options).load(rejects), rejects


def ratings_of(records: Records) -> list[tuple[str, str, float, int]]:
    return [(r.user_id, r.item_id, r.value, r.timestamp) for r in records.ratings.operations(0, 10**6)]


def test_items_are_created_from_ratings_in_order_of_appearance(write: Write) -> None:
    ratings = write(
        "r.csv", b"\xef\xbb\xbfuser_id,item_id,rating\r\nu,b,3\r\nv,a,4.5\r\nu,c,9\r\nu, b ,2\r\n"
    )
    records, rejects = load(TableOptions(ratings))
    assert records.items == (PutItem("b", "b"), PutItem("a", "a"))
    assert ratings_of(records) == [("u", "b", 3.0, 0), ("v", "a", 4.5, 0)]
    assert [(r.line, r.reason.partition(":")[0]) for r in rejects.examples] == [
        (4, "rating out of range"),
        (5, "duplicate rating"),
    ]


def test_all_options_together(write: Write) -> None:
    items = write(
        "i.tsv",
        'sku\tname\tkinds\tout\tblurb\nx\t" The ""X"" "\tA; b c;a\t1997.0\t"two\nlines"\ny\tY\t\t\t\n',
    )
    ratings = write("r.tsv", "who\twhat\tstars\twhen\nu\tx\t10\t2001-09-09T01:46:40\nu\ty\t1\t\nu\tz\t5\t3\n")
    records, rejects = load(
        TableOptions(
            ratings,
            items,
            delimiter="\\t",
            user_column="who",
            item_column="what",
            rating_column="stars",
            timestamp_column="when",
            scale=(1, 10),
            item_id_column="sku",
            title_column="name",
            tags_column="kinds",
            tag_separator=";",
            year_column="out",
            text_column="blurb",
        )
    )
    assert records.items == (PutItem("x", 'The "X"', ("a", "b c"), 1997, "two\nlines"), PutItem("y", "Y"))
    assert ratings_of(records) == [("u", "x", 5.0, 1_000_000_000), ("u", "y", 0.5, 0)]
    assert [(r.file, r.line, r.reason) for r in rejects.examples] == [
        ("r.tsv", 4, "unknown item: 'z' is not in i.tsv")
    ]


def test_scale_is_linear(write: Write) -> None:
    ratings = write("r.csv", "user_id,item_id,rating\nu,a,-1\nu,b,0\nu,c,1\nu,d,1.01\n")
    records, rejects = load(TableOptions(ratings, scale=(-1, 1)))
    assert [value for _, _, value, _ in ratings_of(records)] == [0.5, 2.75, 5.0]
    assert rejects.count == 1


def test_implicit_feedback_counts_a_pair_once_and_rejects_nothing(write: Write) -> None:
    ratings = write("r.csv", "user_id,item_id\nu,a\nu,a\nv,a\n")
    records, rejects = load(TableOptions(ratings, rating_column=None))
    assert ratings_of(records) == [("u", "a", 5.0, 0), ("v", "a", 5.0, 0)]
    assert (records.rows_read, rejects.count) == (3, 0)


def test_an_open_quote_costs_its_own_line_only(write: Write) -> None:
    items = write(
        "i.csv",
        'item_id,title\n1,"Open\n2,Fine\n3,"Good, too"\n4,"Two\nlines"\n5,"Open again\n6,Last\n',
    )
    ratings = write("r.csv", "user_id,item_id,rating\nu,2,1\nu,6,1\n")
    records, rejects = load(TableOptions(ratings, items))
    assert [item.item_id for item in records.items] == ["2", "3", "4", "6"]
    assert [(r.line, r.reason.partition(":")[0]) for r in rejects.examples] == [
        (2, "bad quoting"),
        (7, "bad quoting"),
    ]
    assert rejects.examples[0].raw == '1,"Open'


def test_lines_after_a_row_over_several_lines_are_counted(write: Write) -> None:
    items = write("i.csv", 'item_id,title\n1,"a\nb\n\nc"\n2\n')
    _, rejects = load(TableOptions(write("r.csv", "user_id,item_id,rating\n"), items))
    assert [r.line for r in rejects.examples] == [6]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1,Again,,,", "duplicate item"),
        ("2, ,,,", "empty title"),
        (f"2,{'t' * 501},,,", "title too long"),
        ("2,a\x07b,,,", "bad title"),
        ("..,T,,,", "bad item id"),
        ("2,T,,soon,", "bad year"),
        ("2,T,,1997.5,", "bad year"),
        ("2,T,,10000,", "bad year"),
        ("2,T,,nan,", "bad year"),
        (f"2,T,,,{'x' * 20_001}", "text too long"),
        (",T,,,", "empty item id"),
        ("2,T,,", "wrong number of columns"),
    ],
)
def test_bad_items(write: Write, row: str, reason: str) -> None:
    items = write("i.csv", f"item_id,title,tags,year,text\n1,One,,-720,\n{row}\n")
    ratings = write("r.csv", "user_id,item_id,rating\n")
    options = TableOptions(ratings, items, tags_column="tags", year_column="year", text_column="text")
    records, rejects = load(options)
    assert records.items == (PutItem("1", "One", (), -720),)
    assert [(r.file, r.line, r.reason.partition(":")[0]) for r in rejects.examples] == [("i.csv", 3, reason)]


def test_bounds_of_tags(write: Write) -> None:
    tags = "|".join(["x" * 65, "a\x07b", *(f"t{n}" for n in range(70))])
    items = write("i.csv", f"item_id,title,tags\n1,One,{tags}\n")
    records, _ = load(TableOptions(write("r.csv", "user_id,item_id,rating\n"), items, tags_column="tags"))
    assert records.items[0].tags == tuple(f"t{n}" for n in range(64))


def test_a_missing_column_lists_the_columns_there_are(write: Write) -> None:
    ratings = write("r.csv", "user,item,stars\n")
    with pytest.raises(
        InvalidInput, match=r"r\.csv has no column 'user_id'; its columns are 'user', 'item', 'stars'"
    ):
        load(TableOptions(ratings))


@pytest.mark.parametrize("scale", [(5, 1), (1, 1), (0, float("nan")), (0, float("inf"))])
def test_bad_scales(tmp_path: Path, scale: tuple[float, float]) -> None:
    with pytest.raises(InvalidInput, match="scale"):
        TableDataset(TableOptions(tmp_path / "r.csv", scale=scale))


@pytest.mark.parametrize("delimiter", ["", "::", '"', "\n"])
def test_bad_delimiters(tmp_path: Path, delimiter: str) -> None:
    with pytest.raises(InvalidInput, match="delimiter"):
        TableOptions(tmp_path / "r.csv", delimiter=delimiter)


def test_unreadable_files(tmp_path: Path, write: Write) -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        load(TableOptions(tmp_path / "none.csv"))
    with pytest.raises(InvalidInput, match="unknown encoding"):
        load(TableOptions(write("r.csv", "a"), encoding="klingon"))


def test_times() -> None:
    assert [unix_seconds(t) for t in ("", " 7 ", "7.9", "1e3", "1970-01-02", "1970-01-01T01:00+01:00")] == [
        0, 7, 7, 1000, 86_400, 0,
    ]  # fmt: skip


def test_goodbooks(shared_data: Path) -> None:
    folder = shared_data / "goodbooks-10k"
    options = TableOptions(
        folder / "ratings_5pct_users.csv",
        folder / "books.csv",
        item_column="book_id",
        item_id_column="book_id",
        tags_column="authors",
        tag_separator=",",
        year_column="original_publication_year",
    )
    records, rejects = load(options)
    assert rejects.count == 0
    assert (len(records.items), len(records.ratings)) == (10_000, 298_176)
    assert records.items[1].tags == ("j.k. rowling", "mary grandpré")
