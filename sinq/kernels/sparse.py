"""The product with a sparse matrix of compressed rows: x Sᵀ, on any device, by torch's own sparse product.

    S[i, columns[k]] = values[k]   for row_starts[i] ≤ k < row_starts[i + 1]

Measured against a loop in Numba and `embedding_bag` on one core of a processor: for one row of x it is as fast as the loop (about 20 µs for
1 % of 1536×576, beside 75 µs for the 3-bit rest), where `embedding_bag` takes twice as long.
"""

import warnings
from functools import cache

import torch
from torch import Tensor


def product(x: Tensor, values: Tensor, columns: Tensor, row_starts: Tensor) -> Tensor:
    """x Sᵀ, (..., in_features) → (..., out_features), float32. No gradient flows through it.

    Args:
        values: (entries,), any floating dtype.
        columns: (entries,), any whole numbers.
        row_starts: int32 (out_features + 1,).
    """
    run = _operator if torch.compiler.is_compiling() else _product
    result: Tensor = run(x, values, columns, row_starts)
    return result


def _product(x: Tensor, values: Tensor, columns: Tensor, row_starts: Tensor) -> Tensor:
    _know_that_it_is_in_beta()
    rows, shape = x.detach().reshape(-1, x.shape[-1]).float(), (len(row_starts) - 1, x.shape[-1])
    sparse = torch.sparse_csr_tensor(row_starts, columns.int(), values.float(), shape, check_invariants=False)
    return (sparse @ rows.T).T.reshape(*x.shape[:-1], shape[0]).contiguous()


@cache
def _know_that_it_is_in_beta() -> None:
    """Torch says so once in a process, to the user, who can do nothing about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1))


_operator = torch.library.custom_op("sinq::sparse_product", _product, mutates_args=())
"""The same function as one node of a compiled graph, which knows no sparse tensors."""


@_operator.register_fake
def _shape(x: Tensor, values: Tensor, columns: Tensor, row_starts: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(row_starts) - 1, dtype=torch.float32)
