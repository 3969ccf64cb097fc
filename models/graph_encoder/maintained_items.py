"""Item tables over a live graph that follow its ratings exactly, without ever being computed in full again.

What every kind of encoder shares: users hold nothing that items depend on. A user's message m_u is made from
the weighted sum of q over what the user likes, and an item keeps S_j = sum_u a_uj m_u. A rating (u, i) hence
touches the rows of N(u) and i alone (push), and a user's vector is gathered from N(u) when asked for (pull):
O(d_u * D), whatever the degree of the item. What a message is, and what is made of the sums, is up to the
kind of encoder.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from graph.delta import Delta, RatingDeltas
from graph.schema import Item
from graph.view import GraphView
from models.graph_encoder.features import FeatureExtractor
from models.graph_encoder.item_rows import ItemRows
from models.graph_encoder.item_tables import changed_items
from models.graph_encoder.numerics import Matrix, dense, power, row_sums
from models.graph_encoder.parameters import EncoderParameters
from models.graph_encoder.summation import add_up

Float32: TypeAlias = npt.NDArray[np.float32]
Float64: TypeAlias = npt.NDArray[np.float64]
Int32: TypeAlias = npt.NDArray[np.int32]
Int64: TypeAlias = npt.NDArray[np.int64]


class MaintainedItems(ItemRows):
    """Source, target and bias of every item row of one `GraphView`, at `version`; see `EncoderState`.

    Not thread-safe: whoever owns the view serialises writes against reads. Arrays handed out are views, valid
    until the next `apply`.
    """

    def __init__(
        self,
        parameters: EncoderParameters,
        extractor: FeatureExtractor,
        view: GraphView,
        degree_exponent: float,
        device: str,
    ) -> None:
        """Add up all ratings, O(ratings * D), on `device`; all that follows is on the CPU.

        An item's sum is scaled by its degree to `degree_exponent`.
        """
        super().__init__(parameters, extractor, view)
        self._degree_exponent = degree_exponent
        self._levels = np.array(parameters.edge_weights.levels, np.float32)
        self._weights = np.array((0.0, *parameters.edge_weights.weights), np.float32)
        self._attributes: dict[int, Float32] = {}
        self._add_up(view, device)

    # ---------------------------------------------------------------------------------- up to the kind

    @classmethod
    @abstractmethod
    def _over(cls, parameters: EncoderParameters, extractor: FeatureExtractor, view: GraphView) -> Self:
        """A new state of this kind."""

    @abstractmethod
    def _messages(self, sums: Float64, totals: Float64) -> Float64:
        """Messages [k, D] of users with these weighted sums of q [k, D] and totals of weights [k].

        Zero where the total is; may overwrite `sums`.
        """

    @abstractmethod
    def _derive(self, rows: Int64, aggregated: Float32) -> tuple[Float32, Float32]:
        """Source and target [k, D] of rows [k] from their scaled sums [k, D], which may be overwritten."""

    # ------------------------------------------------------------------------------------------- reading

    def weights(self, values: Float32) -> Float32:
        """Edge weights a(value), float32 [n]; NaN weighs 0."""
        # NaN sorts behind every level, so it needs a look of its own.
        return np.where(
            values == values, self._weights[self._levels.searchsorted(values, "right")], np.float32(0)
        )

    def seen(self, user_row: int) -> tuple[Int32, Float32]:
        """Item rows a user rated and their edge weights, zero weights included. O(d_u)."""
        rated = self._view.ratings_of(user_row)
        return rated.item_rows, self._weigh(rated.values)

    @property
    def nbytes(self) -> int:
        """Bytes held by the item tables, slack included, and by users' cached attribute vectors."""
        return super().nbytes + sum(vector.nbytes for vector in self._attributes.values())

    def deviation(self, view: GraphView) -> float:
        """Greatest difference to a rebuild, relative to each table's greatest magnitude. O(ratings * D)."""
        fresh = self._over(self.parameters, self.extractor, view)
        worst = 0.0
        for name in ("_sums", "_degree", "_q", "_source", "_target", "_bias"):
            mine, theirs = getattr(self, name)[: self._rows], getattr(fresh, name)[: fresh._rows]
            if mine.shape != theirs.shape:
                return float("inf")
            if mine.size:
                scale = max(float(np.abs(theirs).max()), 1e-30)
                worst = max(worst, float(np.abs(mine.astype(np.float64) - theirs).max()) / scale)
        return worst

    # ------------------------------------------------------------------------------------------- writing

    def apply(self, delta: Delta, view: GraphView) -> None:
        """Bring the state to `view.version`; call right after the `view.apply` that returned `delta`.

        O(d_u * D) per user whose ratings changed. A changed feature row of a rated item, be it for another
        text vector, costs the edges of the users who rated it. Raises ValueError when a delta was left out.
        """
        if delta.from_version != self.version:
            raise ValueError(f"delta starts at version {delta.from_version}, the state is at {self.version}")
        self._view, self.version = view, view.version
        self._ensure_rows(len(view.item_degrees))
        for _, user in delta.users:
            self._attributes.pop(user.row, None)
        # Features of items that no sum contains can change at once, and ratings of the same delta need them.
        items = changed_items(delta, view, self.extractor)
        liked = [item for item in items if self._liked[item.row]]
        if len(liked) < len(items):
            self._put_items([item for item in items if not self._liked[item.row]])
        self._apply_ratings(delta.ratings)
        if liked:
            self._put_liked_items(liked)

    def _apply_ratings(self, ratings: RatingDeltas) -> None:
        if len(ratings) == 1:
            old, new = self._weigh_one(ratings.old.item()), self._weigh_one(ratings.new.item())
            if old != new:
                self._apply_one(ratings.user_rows.item(), ratings.item_rows.item(), old, new)
        elif len(ratings):
            old_weights = self.weights(ratings.old).astype(np.float64)
            new_weights = self.weights(ratings.new).astype(np.float64)
            moved = np.flatnonzero(old_weights != new_weights)
            if len(moved):
                self._apply_many(
                    ratings.user_rows[moved], ratings.item_rows[moved], old_weights[moved], new_weights[moved]
                )

    def _apply_one(self, user_row: int, item_row: int, old: float, new: float) -> None:
        """One weight a_ui goes from `old` to `new`; the view already holds `new`."""
        rated = self._view.ratings_of(user_row)
        rows, now = rated.item_rows, self._weigh(rated.values)
        if not now.all():
            liked = now.nonzero()[0]
            rows, now = rows[liked], now[liked]
        if new == 0:
            rows = np.append(rows, np.int32(item_row))
        touched = rows.astype(np.int64)
        weights = np.zeros((2, len(touched)))  # before, after
        weights[:, : len(now)] = now
        place = int((touched == item_row).argmax())
        weights[0, place] = old
        messages = weights @ self._q.take(touched, axis=0).astype(np.float64)  # [2, D]
        before, after = weights.sum(axis=1).tolist()
        messages = self._exchange(messages, before, after)
        sums = self._sums.take(touched, axis=0)
        sums += weights.T @ messages
        self._liked[item_row] += int(new > 0) - int(old > 0)
        if self._liked[item_row]:
            degree = self._degree[item_row] + (new - old)
            self._degree[item_row], self._scale[item_row] = degree, degree**self._degree_exponent
        else:
            # What rounding left of a sum without addends would be blown up by the next d^-p.
            sums[place] = self._degree[item_row] = self._scale[item_row] = 0.0
        self._sums[touched] = sums
        self._refresh(touched, sums)

    def _exchange(self, sums: Float64, before: float, after: float) -> Float64:
        """What is taken away and what is added, [2, D], when a user's sums [2, D] and total change.

        May overwrite `sums`.
        """
        messages = self._messages(sums, np.array([before, after]))
        messages[0] *= -1
        return messages

    def _apply_many(self, user_rows: Int64, item_rows: Int64, old: Float64, new: Float64) -> None:
        """Several weights change, each pair once; a user's changes are taken together.

        With C = old - new at the changed pairs and A the weights now, the weights before are A + C, hence
        S += A' (m_new - m_old) - C' m_old.
        """
        users, user_of = np.unique(user_rows, return_inverse=True)
        now, items = self._weights_of(users, item_rows)
        places = np.searchsorted(items, item_rows)
        change = sp.csr_matrix((old - new, (user_of, places)), shape=now.shape)
        q = self._q[items].astype(np.float64)
        after = dense(now @ q)
        before = after + dense(change @ q)
        total_after = row_sums(now)
        total_before = total_after + np.bincount(user_of, old - new, len(users))
        appeared = (new > 0).astype(np.int64) - (old > 0)
        liked_before = np.diff(now.indptr) - np.bincount(user_of, appeared, len(users)).round()
        # Rounding must not leave a total that a negative power blows up.
        total_before[liked_before == 0] = 0.0
        after = self._messages(after, total_after)
        before = self._messages(before, total_before)
        self._sums[items] += dense(now.T @ (after - before) - change.T @ before)
        self._degree[items] += np.bincount(places, new - old, len(items))
        self._liked[items] += np.bincount(places, appeared, len(items)).round().astype(np.int32)
        empty = items[self._liked[items] == 0]
        self._sums[empty] = 0.0
        self._degree[empty] = 0.0
        self._scale[items] = power(self._degree[items], self._degree_exponent)
        self._refresh(items, self._sums[items])

    def _put_items(self, items: Sequence[Item]) -> None:
        """Follow created, changed and deleted items; their sums are of no concern here."""
        live = [item for item in items if not item.deleted]
        self._write_features(live)
        gone = np.array([item.row for item in items if item.deleted], np.int64)
        for name in ("_q", "_bias", *self._FEATURE_TABLES):
            getattr(self, name)[gone] = 0
        rows = np.array([item.row for item in items], np.int64)
        self._refresh(rows, self._sums[rows])

    def _put_liked_items(self, items: Sequence[Item]) -> None:
        """The same for items with ratings, whose q the messages of all who like them are made from."""
        rows = np.array([item.row for item in items], np.int64)
        before = self._q[rows].astype(np.float64)
        self._put_items(items)
        moves = self._q[rows] - before
        moved = np.flatnonzero(moves.any(axis=1) & (self._liked[rows] > 0))
        if len(moved) == 0:
            return
        raters = np.unique(np.concatenate([self._likers(row) for row in rows[moved].tolist()]))
        weights, touched = self._weights_of(raters.astype(np.int64))
        columns = weights[:, np.searchsorted(touched, rows[moved])]
        self._sums[touched] += self._moved_sums(weights, touched, columns, moves[moved])
        self._refresh(touched, self._sums[touched])

    def _moved_sums(self, weights: Matrix, touched: Int64, columns: Matrix, moves: Float64) -> Float64:
        """What is added to the sums of `touched` [t], [t, D], when the q of some of them moved.

        Args:
            weights: [users, t], of all who like a moved item.
            touched: rows; `_q` already is what it is after the move.
            columns: [users, m], those of the moved items.
            moves: [m, D], of their q.
        """
        after = dense(weights @ self._q[touched].astype(np.float64))
        before = after - dense(columns @ moves)
        totals = row_sums(weights)
        return dense(weights.T @ (self._messages(after, totals) - self._messages(before, totals)))

    def _refresh(self, rows: Int64, sums: Float64) -> None:
        """Derive source and target of `rows` from their sums [len(rows), D]."""
        aggregated = sums.astype(np.float32)
        aggregated *= self._scale[rows].astype(np.float32)[:, None]
        self._source[rows], self._target[rows] = self._derive(rows, aggregated)
        self._changed[rows] = self.version

    # -------------------------------------------------------------------------------------- building blocks

    def _weigh(self, values: Float32) -> Float32:
        """`weights` for values known not to be NaN."""
        return self._weights[self._levels.searchsorted(values, "right")]

    def _weigh_one(self, value: float) -> float:
        return (
            0.0
            if value != value
            else float(self._weights[self._levels.searchsorted(np.float32(value), "right")])
        )

    def _weights_of(
        self, user_rows: Int64, also: npt.NDArray[np.integer] | None = None
    ) -> tuple[Matrix, Int64]:
        """Positive weights of some users, [users, columns], and the item row of each column, ascending.

        Columns are the items those users like, and the rows in `also`.
        """
        indptr, keys, values = self._view.ratings_of_many(user_rows)
        weights = self._weigh(values).astype(np.float64)
        users = np.repeat(np.arange(len(user_rows)), np.diff(indptr))
        liked = weights > 0
        users, keys, weights = users[liked], keys[liked], weights[liked]
        items = np.unique(keys if also is None else np.concatenate([keys, also])).astype(np.int64)
        shape = (len(user_rows), len(items))
        return sp.csr_matrix((weights, (users, np.searchsorted(items, keys))), shape=shape), items

    def _likers(self, item_row: int) -> Int32:
        rated = self._view.raters_of(item_row)
        return rated.user_rows[self._weigh(rated.values) > 0]

    def _session(
        self, item_rows: Sequence[int] | Int64, values: Sequence[float] | Float32
    ) -> tuple[Int64, Float64]:
        """Item rows [n] of a session, each once, and their edge weights [n]; of repeated rows the last.

        Raises IndexError for a row never given out.
        """
        last = dict(
            zip(np.asarray(item_rows, np.int64).tolist(), np.asarray(values, np.float32), strict=True)
        )
        rows = np.fromiter(last, np.int64, len(last))
        if len(rows) and not 0 <= rows.min() <= rows.max() < self._rows:
            raise IndexError(f"item rows of a session must lie in 0..{self._rows - 1}")
        return rows, self.weights(np.array(list(last.values()), np.float32)).astype(np.float64)

    def _attribute_vector(self, user_row: int) -> Float32 | None:
        """g_u @ user_attributes, or None for a user without attributes. Kept until the user changes."""
        found = self._attributes.get(user_row)
        if found is None:
            user = self._view.user_at(user_row)
            if user is None or not user.attributes or not len(self.parameters.user_attributes):
                return None
            found = np.asarray(self.extractor.user_features([user]) @ self.parameters.user_attributes)[0]
            self._attributes[user_row] = found
        return found

    def _add_attributes(self, vectors: Float32, user_rows: Int64) -> None:
        """Add each user's part of the attributes to its vector, in place."""
        for n, row in enumerate(user_rows.tolist()):
            own = self._attribute_vector(row)
            if own is not None:
                vectors[n] += own

    def _add_up(self, view: GraphView, device: str) -> None:
        edges = view.edges()
        weights = self._weigh(edges.values).astype(np.float64)
        liked = np.flatnonzero(weights)
        users, items, weights = edges.user_rows[liked], edges.item_rows[liked], weights[liked]
        num_users = int(users[-1]) + 1 if len(users) else 0
        matrix = sp.csr_matrix((weights, (users, items)), shape=(num_users, self._rows))
        totals = row_sums(matrix)
        self._sums[: self._rows] = add_up(
            matrix,
            self._q[: self._rows].astype(np.float64),
            lambda gathered: self._messages(gathered, totals),
            device,
        )
        self._degree[: self._rows] = np.bincount(items, weights, self._rows)
        self._liked[: self._rows] = np.bincount(items, minlength=self._rows)
        self._scale[: self._rows] = power(self.degree, self._degree_exponent)
        everything = np.arange(self._rows)
        self._refresh(everything, self._sums[: self._rows])
