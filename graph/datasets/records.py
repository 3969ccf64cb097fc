"""The shape every data source is brought into, and the import that writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from graph.datasets.rejects import Rejects
from graph.errors import InvalidInput
from graph.schema import (
    MAX_ROWS_PER_WRITE,
    Operation,
    PutItem,
    PutMemory,
    PutRating,
    PutRelation,
    PutUser,
    WriteRequest,
    WriteResult,
)

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called as (stage, done, total): bytes while "reading <file>", operations while "writing"."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Report to nobody."""


@dataclass(frozen=True, slots=True, eq=False)
class RatingColumns:
    """Ratings as columns: 16 bytes each, where 25 million operation objects would take gigabytes."""

    user_ids: Sequence[str]
    item_ids: Sequence[str]
    users: npt.NDArray[np.int32]  # [n] places in user_ids
    items: npt.NDArray[np.int32]  # [n] places in item_ids
    values: npt.NDArray[np.float32]  # [n] RATING_LOW..RATING_HIGH
    timestamps: npt.NDArray[np.uint32]  # [n] Unix seconds, 0 = unknown

    def __len__(self) -> int:
        return len(self.values)

    def operations(self, start: int, stop: int) -> tuple[PutRating, ...]:
        """Ratings `start` to `stop`, in file order."""
        part = slice(start, stop)
        user_ids, item_ids = self.user_ids, self.item_ids
        return tuple(
            PutRating(user_ids[u], item_ids[i], value, timestamp)
            for u, i, value, timestamp in zip(
                self.users[part].tolist(),
                self.items[part].tolist(),
                self.values[part].tolist(),
                self.timestamps[part].tolist(),
                strict=True,
            )
        )


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """What a source holds after its bad rows are gone.

    `users` lists those with attributes only; writing a rating creates the others, and a PutUser without
    attributes would wipe those a client has set.
    """

    items: Sequence[PutItem]
    users: Sequence[PutUser]
    ratings: RatingColumns
    memories: Sequence[PutMemory] = ()
    rows_read: int = 0  # rows of the source files, rejected ones included
    relations: Sequence[PutRelation] = ()

    def __len__(self) -> int:
        """Operations in all batches together."""
        nodes = len(self.items) + len(self.users) + len(self.memories)
        return nodes + len(self.ratings) + len(self.relations)

    def batches(self, size: int = MAX_ROWS_PER_WRITE) -> Iterator[tuple[Operation, ...]]:
        """Operations of one kind, at most `size` at a time; the same at every call.

        In the order of what needs what: items, users, ratings, memories, relations.
        """
        yield from _cut(self.items, size)
        yield from _cut(self.users, size)
        for start in range(0, len(self.ratings), size):
            yield self.ratings.operations(start, start + size)
        yield from _cut(self.memories, size)
        yield from _cut(self.relations, size)


class Dataset(Protocol):
    """A source of records."""

    @property
    def name(self) -> str:
        """What a person would call it, for messages."""
        ...

    def load(self, rejects: Rejects, progress: Progress = no_progress) -> Records:
        """Parse and check the whole source; bad rows go to `rejects`. Loading again gives the same records.

        Raises InvalidInput when the source as a whole cannot be read (no such file, columns missing).
        """
        ...


@dataclass(frozen=True, slots=True)
class ImportSummary:
    """What came of an import. `read == kept + rejected`, in rows of the source."""

    read: int
    kept: int
    rejected: int
    items: int
    users: int  # with attributes of their own
    ratings: int
    memories: int
    relations: int
    changed: int  # rows of the store that differ from before
    unchanged: int  # operations that found the store as they would have left it
    version: int | None  # of the last write; None when there was nothing to write


def run_import(
    dataset: Dataset,
    write: Callable[[WriteRequest], WriteResult],
    rejects: Rejects | None = None,
    strict: bool = False,
    progress: Progress = no_progress,
) -> ImportSummary:
    """Load `dataset` and write it, one request for every MAX_ROWS_PER_WRITE operations.

    The source is checked to its end before the first write, so `strict` refuses all or nothing. An import
    that breaks off later can be run again: what is there already does not change.

    Raises InvalidInput for a source that cannot be read and, when `strict`, for any rejected row.
    """
    with rejects if rejects is not None else Rejects() as refused:
        records = dataset.load(refused, progress)
    if strict and refused.count:
        raise InvalidInput(_refusal(dataset, refused), param="strict")
    total, done, changed, unchanged = len(records), 0, 0, 0
    version: int | None = None
    progress("writing", 0, total)
    for operations in records.batches():
        result = write(WriteRequest(operations))
        done += len(operations)
        changed += result.changed
        # A rating may also create its user, so `changed` can exceed the operations.
        unchanged += max(0, len(operations) - result.changed)
        version = result.version
        progress("writing", done, total)
    return ImportSummary(
        read=records.rows_read,
        kept=records.rows_read - refused.count,
        rejected=refused.count,
        items=len(records.items),
        users=len(records.users),
        ratings=len(records.ratings),
        memories=len(records.memories),
        relations=len(records.relations),
        changed=changed,
        unchanged=unchanged,
        version=version,
    )


def _refusal(dataset: Dataset, refused: Rejects) -> str:
    rows = "1 bad row" if refused.count == 1 else f"{refused.count} bad rows"
    where = f"; all are listed in {refused.path}" if refused.path is not None else ""
    return (
        f"{dataset.name} has {rows}, so nothing was imported; the first is {refused.examples[0]}{where}. "
        "Correct them, or import without --strict to leave them out"
    )


def _cut(operations: Sequence[Operation], size: int) -> Iterator[tuple[Operation, ...]]:
    for start in range(0, len(operations), size):
        yield tuple(operations[start : start + size])
