"""What applying changes to a view changed, for models that maintain state over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graph.adjacency import Int64
from graph.schema import Item, Pointer, TextVector, User

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class RatingDeltas:
    """Ratings before and after one apply; NaN stands for no rating. At most one record per pair."""

    user_rows: Int64  # [k], ascending
    item_rows: Int64  # [k]
    old: Float32  # [k]
    new: Float32  # [k]

    def __len__(self) -> int:
        return len(self.user_rows)


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """What one `GraphView.apply` changed, for models that maintain state over the view."""

    from_version: int
    to_version: int
    ratings: RatingDeltas
    users: Sequence[tuple[User | None, User]]  # (before, after); `after.deleted` for a removal
    items: Sequence[tuple[Item | None, Item]]
    pointers: Sequence[Pointer]
    text_vectors: Sequence[TextVector] = ()
