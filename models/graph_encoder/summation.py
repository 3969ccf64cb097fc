"""Adding up a whole graph: two sparse products, on the CPU or on a GPU."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import scipy.sparse as sp

from models.graph_encoder.numerics import Float64, Matrix, dense

log = logging.getLogger(__name__)


def add_up(weights: Matrix, sources: Float64, messages: Callable[[Float64], Float64], device: str) -> Float64:
    """What items get from their users, float64 [items, D]: weights^T messages(weights sources).

    In float64 on every device, for from here on the sums are followed rating by rating. Where the memory of a
    GPU does not suffice, the CPU does it, with a warning. O(entries of `weights` * D).

    Args:
        weights: [users, items].
        sources: [items, D].
        messages: from what users gather, [users, D], to what they send back; may overwrite its argument.
        device: where the products run, as torch names it.
    """
    gathered = _product(weights, sources, device)
    return _product(weights.T, messages(gathered), device)


def _product(matrix: Any, factor: Float64, device: str) -> Float64:
    """`matrix` of any of scipy's formats."""
    if device != "cpu":
        import torch  # not at the top: it takes seconds, and on a CPU nothing here needs it

        try:
            return sparse_product(sp.csr_matrix(matrix), factor, device)
        except torch.OutOfMemoryError as error:
            log.warning("a graph does not fit into the memory of %s; the CPU adds it up: %s", device, error)
        finally:
            torch.cuda.empty_cache()  # the next graph is added up much later, if at all
    return dense(matrix @ factor)


def sparse_product(matrix: Matrix, factor: Float64, device: str) -> Float64:
    """float64 [rows, D] of a sparse matrix and a dense factor [columns, D], computed on the device."""
    import torch

    with warnings.catch_warnings():
        # torch says once per process that its CSR support is in beta.
        warnings.simplefilter("ignore")
        there = torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr),
            torch.from_numpy(matrix.indices),
            torch.from_numpy(matrix.data),
            size=matrix.shape,
        ).to(device)
    product: Float64 = (there @ torch.from_numpy(factor).to(device)).cpu().numpy()
    return product
