"""All MovieLens layouts, built small, and every way a row can be bad."""

from __future__ import annotations

from pathlib import Path

import pytest

from graph.datasets import MovieLensDataset, Records, Rejects
from graph.errors import InvalidInput
from graph.schema import PutItem, PutRating, PutUser

MOVIES = """movieId,title,genres
1,Toy Box (1995),Adventure|Comedy
2,"Long, The (Le Long) (1987) ",Drama
3,Nameless,(no genres listed)
"""
RATINGS = """userId,movieId,rating,timestamp
1,1,4.0,964982703
1,2,0.5,964982704
2,1,5,964982705
"""


def write(folder: Path, **files: str | bytes) -> Path:
    for name, text in files.items():
        data = text if isinstance(text, bytes) else text.encode()
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def load(folder: Path) -> tuple[Records, Rejects]:
    rejects = Rejects()
    return MovieLensDataset(folder).load(rejects), rejects


def ratings_of(records: Records) -> list[tuple[str, str, float, int]]:
    return [(r.user_id, r.item_id, r.value, r.timestamp) for r in records.ratings.operations(0, 10**6)]


def rejected(rejects: Rejects) -> list[tuple[str, int, str]]:
    return [(r.file, r.line, r.reason.partition(":")[0]) for r in rejects.examples]


def test_latest(tmp_path: Path) -> None:
    records, rejects = load(write(tmp_path, movies__csv=MOVIES, ratings__csv=RATINGS))
    assert rejects.count == 0
    assert records.items == (
        PutItem("1", "Toy Box", ("adventure", "comedy"), 1995),
        PutItem("2", "Long, The (Le Long)", ("drama",), 1987),
        PutItem("3", "Nameless"),
    )
    assert records.users == ()
    assert ratings_of(records) == [
        ("1", "1", 4.0, 964982703),
        ("1", "2", 0.5, 964982704),
        ("2", "1", 5.0, 964982705),
    ]
    assert records.rows_read == 6


def test_byte_order_marks_and_windows_line_ends(tmp_path: Path) -> None:
    def windows(text: str) -> bytes:
        return b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()

    plain, _ = load(write(tmp_path, movies__csv=MOVIES, ratings__csv=RATINGS))
    records, rejects = load(write(tmp_path, movies__csv=windows(MOVIES), ratings__csv=windows(RATINGS)))
    assert rejects.count == 0
    assert list(records.batches()) == list(plain.batches())


def test_free_tags_most_frequent_first_and_bounded(tmp_path: Path) -> None:
    given = ["u1,1,Pixel art", "u2,1,pixel  ART", "u1,1,comedy", "u1,1,zany", "u1,1,zany"]
    given += [f"u1,1,tag{n}" for n in range(9)]
    tags = "userId,movieId,tag,timestamp\n" + "".join(f"{row},1\n" for row in given)
    tags += f"u1,1,{'long ' * 20},1\n"
    records, rejects = load(write(tmp_path, movies__csv=MOVIES, ratings__csv=RATINGS, tags__csv=tags))
    assert rejects.count == 0
    assert records.items[0].tags == ("adventure", "comedy", "pixel art", "tag0", "tag1", "tag2", "tag3")


def test_100k(tmp_path: Path) -> None:
    flags = {"action": 1, "war": 17}
    item = ["0"] * 19
    for place in flags.values():
        item[place] = "1"
    unknown = ["1"] + ["0"] * 18
    folder = write(
        tmp_path,
        u__item=(
            f"1|Caf\xe9 (1995)|01-Jan-1995||http://x|{'|'.join(item)}\r\n"
            f'2|Un"quoted|01-Feb-1971||http://x|{"|".join(unknown)}\r\n'
        ).encode("latin-1"),
        u__user="7|24|M|technician|85711\n8|61|F|writer|00000\n",
        u__data="7\t1\t3\t881250949\n8\t2\t5\t881250950\n",
    )
    records, rejects = load(folder)
    assert MovieLensDataset(folder).layout == "100k"
    assert rejects.count == 0
    assert records.items == (
        PutItem("1", "Café", ("action", "war"), 1995),
        PutItem("2", 'Un"quoted', (), 1971),
    )
    assert records.users == (
        PutUser("7", {"age_group": "18-24", "gender": "M", "occupation": "technician"}),
        PutUser("8", {"age_group": "56+", "gender": "F", "occupation": "writer"}),
    )
    assert ratings_of(records) == [("7", "1", 3.0, 881250949), ("8", "2", 5.0, 881250950)]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_1m(tmp_path: Path, encoding: str) -> None:
    folder = write(
        tmp_path,
        movies__dat="1::Caf\xe9 Noir (1995)::Comedy|Film-Noir\n".encode(encoding),
        users__dat="1::F::1::10::48067\n2::M::56::16::70072\n",
        ratings__dat="1::1::5::978300760\n",
    )
    records, rejects = load(folder)
    assert rejects.count == 0
    assert records.items == (PutItem("1", "Café Noir", ("comedy", "film-noir"), 1995),)
    assert records.users[0].attributes == {
        "age_group": "under 18",
        "gender": "F",
        "occupation": "k-12 student",
    }
    assert records.users[1].attributes == {"age_group": "56+", "gender": "M", "occupation": "self-employed"}
    assert ratings_of(records) == [("1", "1", 5.0, 978300760)]


def test_25m_ignores_the_files_without_a_place_in_the_graph(tmp_path: Path) -> None:
    links, genome = "movieId,imdbId,tmdbId\n1,1,1\n", "tagId,tag\n1,007\n"
    folder = write(
        tmp_path, movies__csv=MOVIES, ratings__csv=RATINGS, links__csv=links, genome_tags__csv=genome
    )
    records, rejects = load(folder)
    assert (len(records), rejects.count) == (6, 0)


def test_every_bad_rating_is_rejected_with_its_line(tmp_path: Path) -> None:
    bad = [
        (b"1,99,4,1", "unknown item"),
        (b"1,1,nan,1", "rating not finite"),
        (b"1,1,-inf,1", "rating not finite"),
        (b"1,1,four,1", "rating not a number"),
        (b"1,1,5.5,1", "rating out of range"),
        (b"1,1,0,1", "rating out of range"),
        (b"1,1,4", "wrong number of columns"),
        (b"1,1,4,1,1", "wrong number of columns"),
        (b'1,"1,4,1', "bad quoting"),
        (b'1,"1"x,4,1', "bad quoting"),
        (b"\xff\xfe,1,4,1", "undecodable bytes"),
        (b"a\x00b,1,4,1", "undecodable bytes"),
        (b"1,1,4,yesterday", "bad timestamp"),
        (b"1,1,4,-1", "bad timestamp"),
        (b"1,1,4,4294967296", "bad timestamp"),
        (b" ,1,4,1", "empty user id"),
        (b"a/b,1,4,1", "slash in user id"),
        (b"x" * 129 + b",1,4,1", "user id too long"),
        (b"a\tb,1,4,1", "bad user id"),
    ]
    good, blank = b"1,1,4,1", b""
    lines = [
        b"userId,movieId,rating,timestamp",
        good,
        blank,
        *(row for row, _ in bad),
        b"1,1,3,2",
        b"2,2,2,2",
    ]
    folder = write(tmp_path, movies__csv=MOVIES, ratings__csv=b"\r\n".join(lines))
    records, rejects = load(folder)
    found = [(r.line, r.reason.partition(":")[0]) for r in rejects.examples]
    expected = [(4 + place, kind) for place, (_, kind) in enumerate(bad)]
    assert found == [*expected, (4 + len(bad), "duplicate rating")]
    assert "line 2 already" in rejects.examples[-1].reason
    assert rejects.examples[-1].raw == "1,1,3,2"
    assert ratings_of(records) == [("1", "1", 4.0, 1), ("2", "2", 2.0, 2)]
    assert records.rows_read == 3 + 2 + rejects.count


def test_bad_items_users_and_tags(tmp_path: Path) -> None:
    movies = MOVIES + "1,Twice,Drama\n4,,Drama\n5\n,Void,Drama\n6," + "t" * 501 + ",Drama\n"
    tags = "userId,movieId,tag,timestamp\n1,99,odd,1\n1,1, ,1\n"
    _, rejects = load(write(tmp_path, movies__csv=movies, ratings__csv=RATINGS, tags__csv=tags))
    assert rejected(rejects) == [
        ("movies.csv", 5, "duplicate item"),
        ("movies.csv", 6, "empty title"),
        ("movies.csv", 7, "wrong number of columns"),
        ("movies.csv", 8, "empty item id"),
        ("movies.csv", 9, "title too long"),
        ("tags.csv", 2, "unknown item"),
        ("tags.csv", 3, "empty tag"),
    ]


def test_bad_users_and_genre_flags(tmp_path: Path) -> None:
    users = "1::F::1::10::0\n1::F::1::10::0\n2::X::1::10::0\n3::F::old::10::0\n4::F::1::99::0\n"
    (tmp_path / "1m").mkdir()
    folder = write(tmp_path / "1m", movies__dat="1::A::B\n", users__dat=users, ratings__dat="1::1::5::1\n")
    _, rejects = load(folder)
    assert rejected(rejects) == [
        ("users.dat", 2, "duplicate user"),
        ("users.dat", 3, "bad gender"),
        ("users.dat", 4, "bad age"),
        ("users.dat", 5, "unknown occupation"),
    ]
    (tmp_path / "100k").mkdir()
    item = "1|A|||u|" + "|".join(["2"] * 19)
    _, rejects = load(write(tmp_path / "100k", u__item=item, u__user="1|1|F|x|0\n", u__data="1\t1\t5\t1\n"))
    assert rejected(rejects) == [("u.item", 1, "bad genre flag"), ("u.data", 1, "unknown item")]


def test_other_folders_are_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"movies\.csv and ratings\.csv.*movies\.dat.*u\.data"):
        MovieLensDataset(tmp_path)
    with pytest.raises(InvalidInput, match="does not exist"):
        MovieLensDataset(tmp_path / "nowhere")
    (tmp_path / "ml.zip").write_bytes(b"PK")
    with pytest.raises(InvalidInput, match="unpack it"):
        MovieLensDataset(tmp_path / "ml.zip")


def test_a_missing_column_is_named_with_the_columns_there_are(tmp_path: Path) -> None:
    folder = write(tmp_path, movies__csv=MOVIES, ratings__csv="user,movieId,rating,timestamp\n1,1,1,1\n")
    with pytest.raises(InvalidInput, match=r"ratings\.csv has no column 'userId'.*user, movieId"):
        load(folder)
    with pytest.raises(InvalidInput, match="no header"):
        load(write(tmp_path, ratings__csv=""))


def test_ml_latest_small(shared_data: Path) -> None:
    records, rejects = load(shared_data / "ml-latest-small")
    assert rejects.count == 0
    assert len(records.items) == 9_742
    assert len(records.ratings) == 100_836
    assert len(records.ratings.user_ids) == 610
    operations = [operation for batch in records.batches() for operation in batch]
    assert operations == [o for batch in load(shared_data / "ml-latest-small")[0].batches() for o in batch]
    assert operations[9_742] == PutRating("1", "1", 4.0, 964982703)
    assert sum(item.year is None for item in records.items) < 20
