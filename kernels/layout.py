"""How tensors lie in memory where kernels read them fastest; no kernel is loaded to know."""

from torch import Tensor

# Rows that begin at multiples of so many elements are read in vectors of 128 bits, whatever the dtype.
ALIGNMENT = 16


def aligned(W_U: Tensor) -> Tensor:
    """Return W_U [d_model, vocab] with rows that start at multiples of ALIGNMENT elements: a copy, unless it lies so.

    Done once, when a model meets the kernels: 48,262 columns would else be read one or two at a time.
    Agreement: tests/kernels/test_top2_logits.py.
    """
    if 1 in W_U.stride() and max(W_U.stride()) % ALIGNMENT == 0:
        return W_U
    D, V = W_U.shape
    padded = W_U.new_zeros((D, -(-V // ALIGNMENT) * ALIGNMENT))
    padded[:, :V] = W_U
    return padded[:, :V]


def readable(W_U: Tensor) -> int:
    """Return how many columns may be read: a multiple of ALIGNMENT if memory holds that many, else the vocabulary."""
    (D, V), padded = W_U.shape, -(-W_U.shape[1] // ALIGNMENT) * ALIGNMENT
    end = W_U.storage_offset() + (D - 1) * W_U.stride(0) + (padded - 1) * W_U.stride(1)
    return padded if end < W_U.untyped_storage().nbytes() // W_U.element_size() else V
