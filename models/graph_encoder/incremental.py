"""Exact incremental inference of the `linear` encoder over a live graph.

`LinearState` keeps, per item row, what the equations of `parameters.py` give for the graph as it is. Users
hold nothing that items depend on, so a rating (u, i) touches the rows of N(u) and i alone (push), and a
user's vector is gathered from N(u) when asked for (pull): O(d_u * D), whatever the degree of the item.
Nothing is ever recomputed in full.

A message of user u to its items is m_u = d_u^-(2-p) * sum_j a_uj q_j, and S_j = sum_u a_uj m_u.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from graph.delta import Delta, RatingDeltas
from graph.schema import Item
from graph.view import GraphView
from models.graph_encoder.features import FeatureExtractor
from models.graph_encoder.item_tables import changed_items, item_tables, text_vectors_of
from models.graph_encoder.numerics import Matrix, dense, grown, power, row_sums, segment_sums
from models.graph_encoder.parameters import LinearParameters

Float32: TypeAlias = npt.NDArray[np.float32]
Float64: TypeAlias = npt.NDArray[np.float64]
Int32: TypeAlias = npt.NDArray[np.int32]
Int64: TypeAlias = npt.NDArray[np.int64]

_GROWTH = 1.25
_FEATURE_CHUNK = 10_000


class LinearState:
    """Item tables and user vectors of one `LinearParameters` over one `GraphView`, at `version`.

    Not thread-safe: whoever owns the view serialises writes against reads. Arrays handed out are views, valid
    until the next `apply`.
    """

    def __init__(self, parameters: LinearParameters, extractor: FeatureExtractor, view: GraphView) -> None:
        """Build in full, O(ratings * D)."""
        self.parameters, self.extractor, self.version = parameters, extractor, view.version
        self._view = view
        self._id_rows = {item_id: n for n, item_id in enumerate(parameters.item_ids)}
        self._message_exponent = -(2.0 - parameters.degree_exponent)
        self._degree_exponent = -parameters.degree_exponent
        self._levels = np.array(parameters.edge_weights.levels, np.float32)
        self._weights = np.array((0.0, *parameters.edge_weights.weights), np.float32)
        self._mix = parameters.mix.astype(np.float32)
        self._w1, self._w4 = float(self._mix[1]), float(self._mix[4])
        self._attributes: dict[int, Float32] = {}
        self._build(view)

    # ------------------------------------------------------------------------------------------- reading

    @property
    def num_item_rows(self) -> int:
        return self._rows

    @property
    def source(self) -> Float32:
        """z, float32 [rows, D]; zero in rows without a live item or ratings."""
        return self._source[: self._rows]

    @property
    def target(self) -> Float32:
        """Item vectors, float32 [rows, D], not normalised; `score = user @ target + bias`."""
        return self._target[: self._rows]

    @property
    def bias(self) -> Float32:
        """float32 [rows]."""
        return self._bias[: self._rows]

    @property
    def degree(self) -> Float64:
        """Weighted degree d_i, float64 [rows]; exactly zero where no edge weighs anything."""
        return self._degree[: self._rows]

    @property
    def changed_version(self) -> Int64:
        """Version that last changed a row's source, target or bias, int64 [rows]."""
        return self._changed[: self._rows]

    def changed_since(self, version: int) -> Int64:
        """Rows whose vectors changed after `version`, ascending. O(rows)."""
        return np.flatnonzero(self.changed_version > version)

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

    def user_vector(self, user_row: int) -> Float32:
        """float32 [D], as of the view's version. O(d_u * D)."""
        rows, weights = self.seen(user_row)
        total = weights.sum()
        if total > 0:
            vector: Float32 = (weights @ self._source.take(rows, axis=0)) / total
        else:
            vector = np.zeros(self.parameters.dim, np.float32)
        own = self._attribute_vector(user_row)
        return vector if own is None else vector + own

    def user_vectors(self, user_rows: Sequence[int] | Int64) -> Float32:
        """float32 [n, D] of several users. O(sum of d_u * D)."""
        user_rows = np.asarray(user_rows, np.int64)
        indptr, items, values = self._view.ratings_of_many(user_rows)
        weights = self._weigh(values)
        matrix = sp.csr_matrix((weights, items, indptr), shape=(len(user_rows), len(self._source)))
        totals = segment_sums(weights, indptr)
        vectors = np.asarray(matrix @ self._source, np.float32)
        vectors /= np.where(totals > 0, totals, np.float32(1))[:, None]
        for n, row in enumerate(user_rows.tolist()):
            own = self._attribute_vector(row)
            if own is not None:
                vectors[n] += own
        return vectors

    def session_vector(self, item_rows: Sequence[int] | Int64, values: Sequence[float] | Float32) -> Float32:
        """The vector, float32 [D], that a new user without attributes would get from these ratings.

        The session's own message joins the sums it reads, (d_j + a_j)^-p (S_j + a_j m), without writing.
        Of repeated items the last counts. Raises IndexError for a row never given out.
        """
        last = dict(
            zip(np.asarray(item_rows, np.int64).tolist(), np.asarray(values, np.float32), strict=True)
        )
        rows = np.fromiter(last, np.int64, len(last))
        weights = self.weights(np.array(list(last.values()), np.float32)).astype(np.float64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < self._rows:
            raise IndexError(f"item rows of a session must lie in 0..{self._rows - 1}")
        total = weights.sum()
        if total == 0:
            return np.zeros(self.parameters.dim, np.float32)
        message = total**self._message_exponent * (weights @ self._q[rows].astype(np.float64))
        scale = power(self._degree[rows] + weights, self._degree_exponent)
        i1 = (self._sums[rows] + weights[:, None] * message) * scale[:, None]
        vector = weights @ (self._source_base[rows] + self._w1 * i1) / total
        return np.asarray(vector, np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes held by the item tables, slack included, and by users' cached attribute vectors."""
        tables: list[int] = [getattr(self, name).nbytes for name in self._TABLES]
        return sum(tables) + sum(vector.nbytes for vector in self._attributes.values())

    def deviation(self, view: GraphView) -> float:
        """Greatest difference to a rebuild, relative to each table's greatest magnitude. O(ratings * D)."""
        fresh = LinearState(self.parameters, self.extractor, view)
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
        messages[0] *= -(before**self._message_exponent) if before else 0.0
        messages[1] *= after**self._message_exponent if after else 0.0
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
        after = now @ q
        before = after + change @ q
        total_after = row_sums(now)
        total_before = total_after + np.bincount(user_of, old - new, len(users))
        appeared = (new > 0).astype(np.int64) - (old > 0)
        liked_before = np.diff(now.indptr) - np.bincount(user_of, appeared, len(users)).round()
        # Rounding must not leave a total that a negative power blows up.
        total_before[liked_before == 0] = 0.0
        after *= power(total_after, self._message_exponent)[:, None]
        before *= power(total_before, self._message_exponent)[:, None]
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
        for table in (self._q, self._source_base, self._target_base, self._bias):
            table[gone] = 0
        rows = np.array([item.row for item in items], np.int64)
        self._refresh(rows, self._sums[rows])

    def _put_liked_items(self, items: Sequence[Item]) -> None:
        """The same for items with ratings: a rank-1 update of the sums per item whose q moved.

        S_j += c_j dq with c_j = sum over users v of both of a_vj a_vi d_v^-(2-p).
        """
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
        factors = sp.diags_array(power(row_sums(weights), self._message_exponent))
        # Both orders are exact; which is cheaper depends on how many items moved.
        if len(moved) < self.parameters.dim:
            self._sums[touched] += (weights.T @ (factors @ columns)).toarray() @ moves[moved]
        else:
            self._sums[touched] += dense(weights.T @ (factors @ (columns @ moves[moved])))
        self._refresh(touched, self._sums[touched])

    def _refresh(self, rows: Int64, sums: Float64) -> None:
        """Derive source and target of `rows` from their sums [len(rows), D]."""
        i1 = sums.astype(np.float32)
        i1 *= self._scale[rows].astype(np.float32)[:, None]
        source, target = self._source_base.take(rows, axis=0), self._target_base.take(rows, axis=0)
        source += i1 * self._w1
        i1 *= self._w4
        target += i1
        self._source[rows], self._target[rows] = source, target
        self._changed[rows] = self.version

    def _write_features(self, items: Sequence[Item]) -> None:
        """Fill q, the constant parts of source and target, and the bias of live items."""
        for first in range(0, len(items), _FEATURE_CHUNK):
            chunk = items[first : first + _FEATURE_CHUNK]
            rows = np.array([item.row for item in chunk], np.int64)
            vectors = text_vectors_of(self._view, self.extractor, chunk)
            q, y, bias = item_tables(self.parameters, self.extractor, chunk, self._id_rows, vectors)
            self._q[rows], self._bias[rows] = q, bias
            self._source_base[rows] = self._mix[0] * q + self._mix[2] * y
            self._target_base[rows] = self._mix[3] * y

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

    def _build(self, view: GraphView) -> None:
        self._rows, dim = 0, self.parameters.dim
        self._q = np.zeros((0, dim), np.float32)
        self._source_base, self._target_base = self._q, self._q
        self._source, self._target = self._q, self._q
        self._bias = np.zeros(0, np.float32)
        self._sums = np.zeros((0, dim), np.float64)
        self._degree = np.zeros(0, np.float64)
        self._scale = np.zeros(0, np.float64)
        self._liked = np.zeros(0, np.int32)  # number of edges with a positive weight
        self._changed = np.zeros(0, np.int64)
        self._ensure_rows(len(view.item_degrees))
        self._write_features(list(view.items()))
        edges = view.edges()
        weights = self._weigh(edges.values).astype(np.float64)
        liked = np.flatnonzero(weights)
        users, items, weights = edges.user_rows[liked], edges.item_rows[liked], weights[liked]
        num_users = int(users[-1]) + 1 if len(users) else 0
        matrix = sp.csr_matrix((weights, (users, items)), shape=(num_users, self._rows))
        messages = matrix @ self._q[: self._rows].astype(np.float64)
        messages *= power(row_sums(matrix), self._message_exponent)[:, None]
        self._sums[: self._rows] = dense(matrix.T @ messages)
        self._degree[: self._rows] = np.bincount(items, weights, self._rows)
        self._liked[: self._rows] = np.bincount(items, minlength=self._rows)
        self._scale[: self._rows] = power(self.degree, self._degree_exponent)
        everything = np.arange(self._rows)
        self._refresh(everything, self._sums[: self._rows])

    def _ensure_rows(self, count: int) -> None:
        if count > len(self._q):
            size = max(count, int(len(self._q) * _GROWTH) + 16)
            for name in self._TABLES:
                setattr(self, name, grown(getattr(self, name), self._rows, size))
        # New rows of deleted or unknown items still are rows that changed: a follower must learn of them.
        self._changed[self._rows : count] = self.version
        self._rows = max(self._rows, count)

    _TABLES = (
        "_q",
        "_source_base",
        "_target_base",
        "_source",
        "_target",
        "_bias",
        "_sums",
        "_degree",
        "_scale",
        "_liked",
        "_changed",
    )
