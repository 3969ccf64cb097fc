"""Tables of one's own: a delimited file of ratings and, if wanted, one of items; options name the columns."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from graph.datasets.ratings import BadValue, RatingFields, Scale, checked_id, read_ratings
from graph.datasets.records import Progress, Records, no_progress
from graph.datasets.rejects import Rejects
from graph.datasets.rows import Form, RowFile
from graph.errors import InvalidInput
from graph.schema import (
    MAX_TAG_CHARS,
    MAX_TAGS,
    MAX_TEXT_CHARS,
    MAX_TITLE_CHARS,
    RATING_HIGH,
    RATING_LOW,
    PutItem,
    is_label,
)


@dataclass(frozen=True, slots=True)
class TableOptions:
    r"""Files and the names of their columns; a column of None is not there.

    Without `rating_column` the rows are implicit feedback: each pair of user and item counts as the highest
    rating. `scale` is the (low, high) of the ratings file, mapped linearly onto 0.5..5.0; None means that
    they are on it already. Without `items` an item is created for every id rated, with the id as its title.
    The delimiter is one character; a tab may also be written as a backslash and a t. Raises InvalidInput
    otherwise.
    """

    ratings: Path
    items: Path | None = None
    delimiter: str = ","
    encoding: str = "utf-8"
    user_column: str = "user_id"
    item_column: str = "item_id"
    rating_column: str | None = "rating"
    timestamp_column: str | None = None
    scale: tuple[float, float] | None = None
    item_id_column: str = "item_id"
    title_column: str = "title"
    tags_column: str | None = None
    tag_separator: str = "|"
    year_column: str | None = None
    text_column: str | None = None

    def __post_init__(self) -> None:
        delimiter = self.delimiter.replace("\\t", "\t")
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise InvalidInput(
                f"{self.delimiter!r} cannot be a delimiter: one character is", param="delimiter"
            )
        if not self.tag_separator:
            raise InvalidInput(
                "the tag separator is empty: name at least one character", param="tag_separator"
            )

    @property
    def form(self) -> Form:
        # Spreadsheets put a byte order mark in front; "utf-8-sig" takes files with and without.
        plain = self.encoding.lower().replace("_", "-") in ("utf-8", "utf8")
        encoding = "utf-8-sig" if plain else self.encoding
        return Form(self.delimiter.replace("\\t", "\t"), encoding, quoted=True, multiline=True)


class TableDataset:
    """Ratings and items read as `TableOptions` say."""

    def __init__(self, options: TableOptions) -> None:
        self.options = options
        self._scale = Scale(*(options.scale or (RATING_LOW, RATING_HIGH)))

    @property
    def name(self) -> str:
        return f"table {self.options.ratings}"

    def load(self, rejects: Rejects, progress: Progress = no_progress) -> Records:
        """See `graph.datasets.records.Dataset.load`."""
        options, items, read = self.options, None, 0
        if options.items is not None:
            with RowFile(options.items, rejects, options.form, progress) as rows:
                items = _items(rows, options)
                read = rows.count
        with RowFile(options.ratings, rejects, options.form, progress) as rows:
            header = rows.header()
            fields = RatingFields(
                _place(rows, header, options.user_column),
                _place(rows, header, options.item_column),
                _optional_place(rows, header, options.rating_column),
                _optional_place(rows, header, options.timestamp_column),
            )
            ratings = read_ratings(
                rows,
                len(header),
                fields,
                self._scale,
                None if items is None else {item_id: place for place, item_id in enumerate(items)},
                options.items.name if options.items is not None else "",
                unix_seconds,
            )
            read += rows.count
        puts = [PutItem(id_, id_) for id_ in ratings.item_ids] if items is None else list(items.values())
        return Records(tuple(puts), (), ratings, rows_read=read)


def unix_seconds(text: str) -> int:
    """Seconds from a number or an ISO 8601 time (UTC unless it says otherwise); 0 from nothing.

    Raises ValueError or OverflowError for any other text.
    """
    text = text.strip()
    if text.isdecimal():
        return int(text)
    if not text:
        return 0
    try:
        return int(float(text))
    except ValueError:
        when = datetime.fromisoformat(text)
        return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())


def _items(rows: RowFile, options: TableOptions) -> dict[str, PutItem]:
    header = rows.header()
    at_id = _place(rows, header, options.item_id_column)
    at_title = _place(rows, header, options.title_column)
    at_tags = _optional_place(rows, header, options.tags_column)
    at_year = _optional_place(rows, header, options.year_column)
    at_text = _optional_place(rows, header, options.text_column)
    items: dict[str, PutItem] = {}
    for line, raw, row in rows.rows(len(header)):
        try:
            item = PutItem(
                checked_id(row[at_id], "item"),
                _title(row[at_title]),
                () if at_tags is None else _tags(row[at_tags], options.tag_separator),
                None if at_year is None else _year(row[at_year]),
                "" if at_text is None else _text(row[at_text]),
            )
            if item.item_id in items:
                raise BadValue(f"duplicate item: {item.item_id!r} is in {rows.name} already")
            items[item.item_id] = item
        except BadValue as bad:
            rows.reject(line, str(bad), raw)
    return items


def _place(rows: RowFile, header: list[str], column: str) -> int:
    if column not in header:
        raise InvalidInput(
            f"{rows.name} has no column {column!r}; its columns are {', '.join(map(repr, header))}",
            param="column",
        )
    return header.index(column)


def _optional_place(rows: RowFile, header: list[str], column: str | None) -> int | None:
    return None if column is None else _place(rows, header, column)


def _title(text: str) -> str:
    title = " ".join(text.split())
    if not title:
        raise BadValue("empty title: every item needs one")
    if len(title) > MAX_TITLE_CHARS:
        raise BadValue(f"title too long: {len(title)} characters, at most {MAX_TITLE_CHARS} are allowed")
    if not is_label(title, MAX_TITLE_CHARS):
        raise BadValue(f"bad title: {title!r} holds control characters")
    return title


def _text(text: str) -> str:
    if len(text) > MAX_TEXT_CHARS:
        raise BadValue(f"text too long: {len(text)} characters, at most {MAX_TEXT_CHARS} are allowed")
    return text.strip()


def _tags(text: str, separator: str) -> tuple[str, ...]:
    """Lower case, each once, at most MAX_TAGS; a tag that cannot be one is left out rather than its item."""
    tags = dict.fromkeys(" ".join(tag.lower().split()) for tag in text.split(separator))
    return tuple(tag for tag in tags if is_label(tag, MAX_TAG_CHARS))[:MAX_TAGS]


def _year(text: str) -> int | None:
    """A year; spreadsheets write 1997 as "1997.0", and old books are from before the year 1."""
    if not text.strip():
        return None
    try:
        year = float(text)
    except ValueError:
        raise BadValue(f"bad year: {text!r} is no number") from None
    if not (-9999 <= year <= 9999 and year == int(year)):
        raise BadValue(f"bad year: {text!r} is no year")
    return int(year)
