"""What the nodes of a model wrote at a few positions, side by side: the heads' outputs, then vectors."""

import torch
from torch import Tensor


def form(z: Tensor, W_O: Tensor, vectors: Tensor, scratch: Tensor) -> Tensor:
    """Return nodes [node, pos, d_model], heads before vectors, in the front of scratch that is used again and again.

    z [pos, head, d_head]; W_O [head, d_head, d_model], of scratch's dtype; vectors [vector, pos, d_model].
    """
    (T, H, _), (M, _, D) = z.shape, vectors.shape
    nodes = scratch[: (H + M) * T * D].view(H + M, T, D)
    torch.bmm(z.transpose(0, 1).to(scratch.dtype), W_O, out=nodes[:H])
    nodes[H:] = vectors
    return nodes
