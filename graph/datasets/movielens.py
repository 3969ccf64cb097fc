"""MovieLens folders: latest-small, 25m and their kin (CSV), 1m and 10m (`::`), 100k (tabs and bars).

Genres and the most frequent free tags of an item become its tags, in lower case. The year comes out of the
title. Of a user, age group, gender and occupation are kept and the zip code is not. links.csv and the genome
files have no place in the graph and are not read. Ids are the file's own, as text.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from graph.datasets.ratings import BadValue, RatingFields, Scale, checked_id, read_ratings
from graph.datasets.records import Progress, RatingColumns, Records, no_progress
from graph.datasets.rejects import Rejects
from graph.datasets.rows import Form, RowFile
from graph.errors import InvalidInput
from graph.schema import MAX_TAG_CHARS, MAX_TAGS, MAX_TITLE_CHARS, PutItem, PutUser, is_label

MAX_FREE_TAGS = 5
"""Free tags taken per item, those that most users gave first."""

_YEAR = re.compile(r"\s*\((\d{4})(?:\s*[-–]\s*(?:\d{4})?)?\)\s*$")
_NO_GENRE = frozenset(("(no genres listed)", "unknown", ""))
_AGE_GROUPS = (
    (56, "56+"), (50, "50-55"), (45, "45-49"), (35, "35-44"), (25, "25-34"), (18, "18-24"), (0, "under 18"),
)  # fmt: skip
_OCCUPATIONS_1M = (
    "other", "educator", "artist", "clerical", "college student", "customer service", "doctor", "executive",
    "farmer", "homemaker", "k-12 student", "lawyer", "programmer", "retired", "sales", "scientist",
    "self-employed", "engineer", "tradesman", "unemployed", "writer",
)  # fmt: skip
_GENRES_100K = (
    "unknown", "action", "adventure", "animation", "children's", "comedy", "crime", "documentary", "drama",
    "fantasy", "film-noir", "horror", "musical", "mystery", "romance", "sci-fi", "thriller", "war", "western",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Layout:
    """How one family of folders is written; `required` are the file names that tell it."""

    name: str
    required: tuple[str, ...]
    load: Callable[[_Folder], Records]


@dataclass(frozen=True, slots=True)
class _Folder:
    path: Path
    rejects: Rejects
    progress: Progress

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def open(self, name: str, form: Form) -> RowFile:
        return RowFile(self.path / name, self.rejects, form, self.progress)


class MovieLensDataset:
    """One folder of ratings as GroupLens publishes them.

    Raises InvalidInput when the folder holds none of the known layouts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._layout = _detect(path)

    @property
    def name(self) -> str:
        return f"MovieLens folder {self.path}"

    @property
    def layout(self) -> str:
        """Which family of folders it is: "latest", "1m" or "100k"."""
        return self._layout.name

    def load(self, rejects: Rejects, progress: Progress = no_progress) -> Records:
        """See `graph.datasets.records.Dataset.load`."""
        return self._layout.load(_Folder(self.path, rejects, progress))


def _detect(path: Path) -> _Layout:
    if not path.is_dir():
        what = "is a file: unpack it and name the folder" if path.exists() else "does not exist"
        raise InvalidInput(f"{path} {what}", param="path")
    for layout in _LAYOUTS:
        if all((path / name).is_file() for name in layout.required):
            return layout
    looked_for = "; ".join(f"{' and '.join(layout.required)} ({layout.name})" for layout in _LAYOUTS)
    raise InvalidInput(f"{path} is no MovieLens folder; looked for {looked_for}", param="path")


# ---------------------------------------------------------------------------------- latest-small, 25m, 32m


def _load_latest(folder: _Folder) -> Records:
    form = Form()
    with folder.open("movies.csv", form) as rows:
        width, (id_, title, genres) = _places(rows, ("movieId", "title", "genres"))
        items = _items(
            rows, width, lambda row: _film(row[id_], row[title], row[genres].split("|")), "movies.csv"
        )
        read = rows.count
    if folder.has("tags.csv"):
        with folder.open("tags.csv", form) as rows:
            width, (user, id_, tag) = _places(rows, ("userId", "movieId", "tag"))
            items = _with_free_tags(rows, width, (user, id_, tag), items)
            read += rows.count
    with folder.open("ratings.csv", form) as rows:
        width, places = _places(rows, ("userId", "movieId", "rating", "timestamp"))
        ratings = _ratings(rows, width, RatingFields(*places), items, "movies.csv")
        read += rows.count
    return Records(tuple(items.values()), (), ratings, rows_read=read)


# -------------------------------------------------------------------------------------------------- 1m, 10m


def _load_1m(folder: _Folder) -> Records:
    def form(name: str) -> Form:
        return Form("::", _encoding(folder.path / name), quoted=False)

    with folder.open("movies.dat", form("movies.dat")) as rows:
        items = _items(rows, 3, lambda row: _film(row[0], row[1], row[2].split("|")), "movies.dat")
        read = rows.count
    users: dict[str, PutUser] = {}
    if folder.has("users.dat"):  # 10m comes without
        with folder.open("users.dat", form("users.dat")) as rows:
            users = _users(rows, lambda row: _user(row[0], row[2], row[1], _occupation_1m(row[3])))
            read += rows.count
    with folder.open("ratings.dat", form("ratings.dat")) as rows:
        ratings = _ratings(rows, 4, RatingFields(0, 1, 2, 3), items, "movies.dat")
        read += rows.count
    return Records(tuple(items.values()), tuple(users.values()), ratings, rows_read=read)


def _occupation_1m(code: str) -> str:
    if not code.isdecimal() or int(code) >= len(_OCCUPATIONS_1M):
        raise BadValue(f"unknown occupation: {code!r} is not within 0 to {len(_OCCUPATIONS_1M) - 1}")
    return _OCCUPATIONS_1M[int(code)]


# ----------------------------------------------------------------------------------------------------- 100k


def _load_100k(folder: _Folder) -> Records:
    read = 0

    def form(name: str) -> Form:
        return Form("|", _encoding(folder.path / name), quoted=False)

    genres = list(_GENRES_100K)
    if folder.has("u.genre"):
        with folder.open("u.genre", form("u.genre")) as rows:
            genres = [row[0].strip().lower() for _, _, row in rows.rows(2)]
            read += rows.count

    def film(row: list[str]) -> PutItem:
        flags = row[5:]
        if not set(flags) <= {"0", "1"}:
            raise BadValue("bad genre flag: only 0 and 1 are allowed")
        tags = [genre for genre, flag in zip(genres, flags, strict=True) if flag == "1"]
        released = row[2].rpartition("-")[2]
        return _film(row[0], row[1], tags, int(released) if released.isdecimal() else None)

    with folder.open("u.item", form("u.item")) as rows:
        items = _items(rows, 5 + len(genres), film, "u.item")
        read += rows.count
    with folder.open("u.user", form("u.user")) as rows:
        users = _users(rows, lambda row: _user(row[0], row[1], row[2], row[3]))
        read += rows.count
    with folder.open("u.data", Form("\t", quoted=False)) as rows:
        ratings = _ratings(rows, 4, RatingFields(0, 1, 2, 3), items, "u.item")
        read += rows.count
    return Records(tuple(items.values()), tuple(users.values()), ratings, rows_read=read)


_LAYOUTS = (
    _Layout("latest", ("movies.csv", "ratings.csv"), _load_latest),
    _Layout("1m", ("movies.dat", "ratings.dat"), _load_1m),
    _Layout("100k", ("u.data", "u.item", "u.user"), _load_100k),
)


# ---------------------------------------------------------------------------------------------- their parts


def _places(rows: RowFile, wanted: Iterable[str]) -> tuple[int, list[int]]:
    """Number of columns, and where the wanted ones are; raises InvalidInput for one that is missing."""
    header = rows.header()
    for name in wanted:
        if name not in header:
            raise InvalidInput(f"{rows.name} has no column {name!r}; its columns are {', '.join(header)}")
    return len(header), [header.index(name) for name in wanted]


def _encoding(path: Path) -> str:
    """The old folders are Latin-1; copies re-encoded as UTF-8 go around too. Reads the file once."""
    try:
        path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8-sig"


def _items(
    rows: RowFile, columns: int, parse: Callable[[list[str]], PutItem], file: str
) -> dict[str, PutItem]:
    items: dict[str, PutItem] = {}
    for line, text, row in rows.rows(columns):
        try:
            item = parse(row)
            if item.item_id in items:
                raise BadValue(f"duplicate item: {item.item_id!r} is in {file} already")
            items[item.item_id] = item
        except BadValue as bad:
            rows.reject(line, str(bad), text)
    return items


def _film(id_: str, title: str, genres: Iterable[str], released: int | None = None) -> PutItem:
    item_id, year = checked_id(id_, "item"), released
    bare = title.strip()
    if found := _YEAR.search(bare):
        year = int(found[1])
        bare = bare[: found.start()] or bare
    if not bare:
        raise BadValue("empty title: every item needs one")
    if len(bare) > MAX_TITLE_CHARS:
        raise BadValue(f"title too long: {len(bare)} characters, at most {MAX_TITLE_CHARS} are allowed")
    if not is_label(bare, MAX_TITLE_CHARS):
        raise BadValue(f"bad title: {bare!r} holds control characters")
    tags = dict.fromkeys(g for genre in genres if (g := genre.strip().lower()) not in _NO_GENRE)
    return PutItem(item_id, bare, tuple(tag for tag in tags if is_label(tag, MAX_TAG_CHARS))[:MAX_TAGS], year)


def _with_free_tags(
    rows: RowFile, columns: int, places: tuple[int, int, int], items: dict[str, PutItem]
) -> dict[str, PutItem]:
    """`items` with the tags that most users gave each; of two as frequent the first by alphabet."""
    at_user, at_item, at_tag = places
    given: defaultdict[str, Counter[str]] = defaultdict(Counter)
    seen: set[tuple[str, str, str]] = set()
    for line, text, row in rows.rows(columns):
        tag, item_id = " ".join(row[at_tag].lower().split()), row[at_item].strip()
        if item_id not in items:
            rows.reject(line, f"unknown item: {item_id!r} is not in movies.csv", text)
        elif not tag:
            rows.reject(line, "empty tag: there is no text in it", text)
        elif not is_label(tag, MAX_TAG_CHARS):
            continue  # a sentence rather than a tag, and nothing wrong with the file
        elif (key := (row[at_user], item_id, tag)) not in seen:
            seen.add(key)
            given[item_id][tag] += 1
    tagged = dict(items)
    for item_id, counts in given.items():
        item = items[item_id]
        new = sorted((t for t in counts if t not in item.tags), key=lambda t: (-counts[t], t))
        tags = (item.tags + tuple(new[:MAX_FREE_TAGS]))[:MAX_TAGS]
        tagged[item_id] = PutItem(item.item_id, item.title, tags, item.year, item.text)
    return tagged


def _users(rows: RowFile, parse: Callable[[list[str]], PutUser]) -> dict[str, PutUser]:
    users: dict[str, PutUser] = {}
    for line, text, row in rows.rows(5):
        try:
            user = parse(row)
            if user.user_id in users:
                raise BadValue(f"duplicate user: {user.user_id!r} is in {rows.name} already")
            users[user.user_id] = user
        except BadValue as bad:
            rows.reject(line, str(bad), text)
    return users


def _user(id_: str, age: str, gender: str, occupation: str) -> PutUser:
    user_id = checked_id(id_, "user")
    if not age.isdecimal() or int(age) > 120:
        raise BadValue(f"bad age: {age!r} is not within 0 to 120")
    if gender not in ("F", "M"):
        raise BadValue(f"bad gender: {gender!r} is neither F nor M")
    if len(occupation) > MAX_TITLE_CHARS:
        raise BadValue(
            f"occupation too long: {len(occupation)} characters, at most {MAX_TITLE_CHARS} are allowed"
        )
    group = next(label for lowest, label in _AGE_GROUPS if int(age) >= lowest)
    return PutUser(user_id, {"age_group": group, "gender": gender, "occupation": occupation.strip()})


def _ratings(
    rows: RowFile, columns: int, fields: RatingFields, items: dict[str, PutItem], items_file: str
) -> RatingColumns:
    known = {item_id: place for place, item_id in enumerate(items)}
    return read_ratings(rows, columns, fields, Scale(), known, items_file)
