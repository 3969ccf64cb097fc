"""The network against the equations of `parameters.py`, written out once more in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from models.graph_encoder.network import EdgeList, FeatureRows, LinearEncoderNetwork
from models.graph_encoder.objective import full_softmax_loss, sampled_softmax_loss
from models.graph_encoder.parameters import EdgeWeights, LinearParameters

U, N, F, G, D = 7, 9, 6, 4, 3


class Case:
    """A small graph with an unrated item, a user without ratings and an edge that weighs nothing."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.a = ((rng.random((U, N)) < 0.5) * rng.uniform(0.5, 2, (U, N))).astype(np.float32)
        self.a[2], self.a[:, 4] = 0, 0
        users, items = self.a.nonzero()
        self.users = np.append(users, 0).astype(np.int64)
        self.items = np.append(items, 4).astype(np.int64)
        self.weights = np.append(self.a[users, items], 0).astype(np.float32)
        self.f = (rng.random((N, F)) * (rng.random((N, F)) < 0.5)).astype(np.float32)
        self.g = (rng.random((U, G)) * (rng.random((U, G)) < 0.5)).astype(np.float32)
        self.network = LinearEncoderNetwork(N, F, G, D, seed=seed)
        with torch.no_grad():
            for tensor in self.network.parameters():
                tensor.copy_(torch.from_numpy(rng.normal(size=tensor.shape).astype(np.float32)))

    def edges(self, order: np.ndarray | None = None) -> EdgeList:
        order = np.arange(len(self.users)) if order is None else order
        return EdgeList(self.users[order], self.items[order], self.weights[order], U, N)

    def features(self) -> tuple[FeatureRows, FeatureRows]:
        return FeatureRows(sp.csr_matrix(self.f)), FeatureRows(sp.csr_matrix(self.g))

    def run(self, **options: object) -> list[np.ndarray]:
        with torch.no_grad():
            results = self.network(self.edges().matrices(), *self.features(), **options)
        return [tensor.numpy() for tensor in results]


def equations(
    p: LinearParameters, a: np.ndarray, f: np.ndarray, g: np.ndarray, kept: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64 users, items and bias, one node at a time."""
    known = np.ones(N) if kept is None else kept.astype(float)
    q = known[:, None] * p.id_source + f @ p.feature_source
    y = known[:, None] * p.id_target + f @ p.feature_target
    e, w = p.degree_exponent, p.mix.astype(float)
    d_u, d_i = a.sum(1, dtype=float), a.sum(0, dtype=float)
    u1 = np.array([a[u] @ q / d_u[u] if d_u[u] else np.zeros(D) for u in range(U)])
    i1 = np.zeros((N, D))
    for j in range(N):
        s = sum((a[u, j] * d_u[u] ** -(1 - e) * u1[u] for u in range(U) if a[u, j]), np.zeros(D))
        i1[j] = d_i[j] ** -e * s if d_i[j] else 0
    z = w[0] * q + w[1] * i1 + w[2] * y
    users = np.array([a[u] @ z / d_u[u] if d_u[u] else np.zeros(D) for u in range(U)]) + g @ p.user_attributes
    return (
        users,
        w[3] * y + w[4] * known[:, None] * i1,
        known * p.id_bias + f @ p.feature_bias,
    )


def parameters(network: LinearEncoderNetwork) -> LinearParameters:
    return network.to_parameters([str(n) for n in range(N)], EdgeWeights(), {"kind": "test"})


@pytest.mark.parametrize("drop", [False, True])
def test_forward_is_the_equations(drop: bool) -> None:
    case = Case()
    kept = np.arange(N) % 3 > 0 if drop else None
    found = case.run(kept_ids=None if kept is None else torch.from_numpy(kept))
    for mine, expected in zip(
        found, equations(parameters(case.network), case.a, case.f, case.g, kept), strict=True
    ):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)


def test_dense_columns_are_as_good_as_sparse_ones() -> None:
    case = Case()
    whole, user_features = case.features()
    split = FeatureRows(sp.csr_matrix(case.f[:, :4]), dense=case.f[:, 4:])
    assert split.shape == whole.shape
    torch.testing.assert_close(split.mean_squares(), whole.mean_squares())
    gradients = []
    for features in (whole, split):
        case.network.zero_grad()
        users, items, bias = case.network(case.edges().matrices(), features, user_features)
        (users @ items.T + bias).tanh().sum().backward()
        gradients.append([tensor.grad.clone() for tensor in case.network.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_order_of_edges_does_not_matter() -> None:
    case = Case()
    before = case.run()
    order = np.random.default_rng(5).permutation(len(case.users))
    with torch.no_grad():
        after = case.network(case.edges(order).matrices(), *case.features())
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-6)


def test_hidden_edges_are_as_if_they_were_not_there() -> None:
    case = Case()
    edges = case.edges()
    visible = torch.arange(len(edges)) % 3 > 0
    shown = visible.numpy()
    fewer = EdgeList(
        edges.user_rows.numpy()[shown], edges.item_rows.numpy()[shown], edges.weights.numpy()[shown], U, N
    )
    with torch.no_grad():
        hidden = case.network(edges.matrices(visible), *case.features())
        absent = case.network(fewer.matrices(), *case.features())
    for one, other in zip(hidden, absent, strict=True):
        torch.testing.assert_close(one, other)


def test_items_never_read_attributes_of_users() -> None:
    case = Case()
    _, items, bias = case.run()
    case.g += 1
    _, other_items, other_bias = case.run()
    np.testing.assert_array_equal(items, other_items)
    np.testing.assert_array_equal(bias, other_bias)


def test_gradients_reach_every_parameter_and_are_right() -> None:
    case = Case()
    item_features, user_features = case.features()
    matrices = case.edges().matrices()

    def loss() -> torch.Tensor:
        users, items, bias = case.network(matrices, item_features, user_features)
        return (users @ items.T + bias).tanh().sum()

    case.network.zero_grad()
    loss().backward()
    step = 1e-2
    for name, tensor in case.network.named_parameters():
        flat = tensor.data.view(-1)
        place = len(flat) // 2
        value = float(flat[place])
        flat[place] = value + step
        above = float(loss().detach())
        flat[place] = value - step
        below = float(loss().detach())
        flat[place] = value
        assert tensor.grad is not None, name
        assert float(tensor.grad.view(-1)[place]) == pytest.approx(
            (above - below) / 2 / step, rel=0.05, abs=0.02
        )


def test_parameters_survive_a_round_trip() -> None:
    case = Case()
    before = parameters(case.network)
    after = parameters(LinearEncoderNetwork.from_parameters(before))
    for name, _ in case.network.named_parameters():
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    assert before.dim == D and before.item_ids == after.item_ids


def test_an_id_table_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="id table"):
        Case().network.to_parameters(["only one"], EdgeWeights(), {})


# ------------------------------------------------------------------------------------------------- losses


def scores_and_pairs() -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    tensors = [torch.from_numpy(rng.normal(size=shape)) for shape in ((U, D), (N, D), (N,))]
    kind = torch.from_numpy(rng.integers(0, 3, (U, N)))
    kind[3] = 1  # a user who has seen everything
    return [t.requires_grad_() for t in tensors], kind == 1, kind == 2


def test_full_softmax_is_the_plain_formula_with_its_gradient() -> None:
    tensors, visible, targets = scores_and_pairs()
    users, items, bias = tensors
    logits = (users @ items.T + bias).masked_fill(visible, -1e9)
    weights = torch.linspace(0.5, 2, U, dtype=torch.float64)
    each = weights[:, None].expand(U, N)[targets]
    expected = -(logits.log_softmax(1)[targets] * each).sum() / each.sum()
    wanted = torch.autograd.grad(expected, tensors)
    found = full_softmax_loss(
        *tensors, visible.nonzero(as_tuple=True), targets.nonzero(as_tuple=True), weights
    )
    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(found, tensors), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_sampling_every_item_once_is_the_softmax_against_all_negatives() -> None:
    tensors, visible, targets = scores_and_pairs()
    users, items, bias = tensors
    logits = users @ items.T + bias
    rows, columns = targets.nonzero(as_tuple=True)
    negatives = logits.masked_fill(visible | targets, -torch.inf).exp().sum(1)
    own = logits[rows, columns]
    weights = torch.linspace(0.5, 2, U, dtype=torch.float64)
    expected = ((negatives[rows] + own.exp()).log() - own) @ weights[rows] / weights[rows].sum()
    found = sampled_softmax_loss(
        *tensors,
        (visible | targets).nonzero(as_tuple=True),
        (rows, columns),
        weights,
        torch.arange(N),
        torch.zeros(N),
    )
    torch.testing.assert_close(found, expected)
