"""Paths: every later head's and MLP's output, split by which node's writing it reads.

With the clean run's attention patterns A, norm scales and MLP gates held, a component is linear in the stream, so what
it writes is a sum over everything that was written before it. For a writer w, output h_w, and a later component c:

    head c of layer n:   path_{w->c}[t] = sum_i A^c[t, i] LN_n(h_w)[i] W_V^c W_O^c
    MLP:                 path_{w->c}[t] = (g[t] * (LN_n(h_w)[t] W_in)) W_out,   g = act(u) / u,  u = LN_n(x) W_in + b_in
    gated MLP:           g = act(LN_n(x) W_gate + b_gate)

with LN_n(v) = (v - mean(v)) / scale_n, scale_n of the clean stream that c reads; RMSNorm removes no mean. Where a norm
follows c, its scale of the clean run divides the path at t; its weights are in W_O and W_out. The sum over all summands
of the stream, and c's own bias term, is c's clean output. What is kept of a path is its inner product with
the writer, <path_{w->c}[t], h_w[t]>. No vector of width D is formed for it: for an MLP it is
sum_m g_m (LN_n(h_w) W_in)_m (h_w W_out^T)_m, for a head a product of two vectors of width d_head.
Agreement: tests/model/test_paths.py.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import torch
from torch import Tensor

from repro.labels import step_of, writers
from repro.model.attention import pattern_of
from repro.model.decoder import Model
from repro.model.forward import Trace, mlp_gain, read, read_scale
from repro.model.linear import linear, secant

TOGETHER = 32
"""Writers whose hidden activations in an MLP are formed together."""


def centred(model: Model, x: Tensor) -> Tensor:
    """Return what the norm reads of x [..., D]: without its mean for LayerNorm, as it is for RMSNorm."""
    return x - x.mean(-1, keepdim=True) if model.center else x


def sampled(n_positions: int, stride: int) -> Tensor:
    """Return the positions that are looked at: position 0, a stratum of its own, then 1, 1 + stride, 1 + 2 stride, …"""
    return torch.cat((torch.zeros(1, dtype=torch.long), torch.arange(1, n_positions, stride)))


@dataclass(frozen=True)
class Written:
    """What the nodes of one prompt wrote. N writers in the order of `repro.labels.writers`, T sampled positions."""

    labels: tuple[str, ...]
    steps: Tensor
    """When each writes: [N]; a component of step s reads what was written at steps before s."""
    vectors: Tensor
    """Everything but the heads, at all positions: [V, P, D]."""
    z: Tensor
    """The heads' z at all positions: [P, L H, K]."""
    at: Tensor
    """Every writer's output at the sampled positions: [N, T, D]."""
    heads: Tensor
    """Which of the N are heads, in the order of z: [L H]."""
    others: Tensor
    """Which of the N are the vectors: [V]."""


def written(model: Model, trace: Trace, tokens: Tensor, row: int, positions: Tensor) -> Written:
    """Return what the nodes of one row of a clean pass wrote. tokens: [B, P]; positions: the sampled ones [T]."""
    labels = writers(model.shape.n_layers, model.shape.n_heads, model.W_pos is not None)
    P = tokens.shape[1]
    embedded = [torch.nn.functional.embedding(tokens[row], model.W_E)]
    embedded += [] if model.W_pos is None else [model.W_pos[:P]]
    vectors = centred(model, torch.stack([*embedded, *(out[row] for out in trace.mlp_out)]))
    device = vectors.device
    is_head = torch.tensor([label.startswith("L") for label in labels], device=device)
    heads, others = is_head.nonzero().flatten(), (~is_head).nonzero().flatten()
    W_O = torch.cat([centred(model, block.W_O) for block in model.blocks])
    at = vectors.new_empty((len(labels), len(positions), vectors.shape[-1]))
    at[heads] = torch.einsum("thk,hkd->htd", trace.z[row, positions], W_O)
    at[others] = vectors[:, positions]
    steps = torch.tensor([step_of(label) for label in labels], device=device)
    return Written(tuple(labels), steps, vectors, trace.z[row], at, heads, others)


@dataclass(frozen=True)
class Decoys:
    """Decoy writers: what heads and MLPs write, turned by fixed random rotations Q that know no weight.

    They have a real node's norms and its course over positions, and no relation to what any component reads: so every
    node of the model may serve, later ones, too, and all components have the same. The embeddings may not: their vector
    changes with every position, where a head writes along few directions, so that their shares spread much less than
    those of real writers do (repro/scan/controls.py). First come R_h decoys made of heads, then R_v made of MLPs.
    """

    heads: Tensor
    """Whose z: [R_h]."""
    head_maps: Tensor
    """W_O Q: [R_h, K, D]."""
    vectors: Tensor
    """Which of the vectors: [R_v]."""
    vector_maps: Tensor
    """Q: [R_v, D, D]."""

    @property
    def count(self) -> int:
        """Return R, how many there are."""
        return len(self.heads) + len(self.vectors)

    def at(self, nodes: Written, positions: Tensor | slice = slice(None)) -> Tensor:
        """Return the decoys at some positions: [R, T, D]."""
        z, x = nodes.z[positions][:, self.heads].transpose(0, 1), nodes.vectors[self.vectors][:, positions]
        return torch.cat((z @ self.head_maps, x @ self.vector_maps))


def make_decoys(model: Model, count: int, seed: int) -> Decoys:
    """Return `count` decoys for every component, the same for equal seeds and shapes."""
    L, H, K, D = (getattr(model.shape, name) for name in ("n_layers", "n_heads", "d_head", "d_model"))
    embeddings, device = 1 if model.W_pos is None else 2, model.W_E.device
    generator = torch.Generator().manual_seed(seed)
    heads, head_maps, vectors, vector_maps = [], [], [], []
    for chosen in torch.randint(0, L * (H + 1), (count,), generator=generator).tolist():
        q, r = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))
        turn = centred(model, (q * torch.sign(torch.diagonal(r))).to(model.W_E))
        layer, place = divmod(chosen, H + 1)  # the heads of a layer, then its MLP
        if place < H:
            heads.append(layer * H + place)
            head_maps.append(model.blocks[layer].W_O[place] @ turn)
        else:
            vectors.append(embeddings + layer)
            vector_maps.append(turn)
    return Decoys(
        torch.tensor(heads, dtype=torch.long, device=device),
        torch.stack(head_maps) if heads else model.W_E.new_empty((0, K, D)),
        torch.tensor(vectors, dtype=torch.long, device=device),
        torch.stack(vector_maps) if vectors else model.W_E.new_empty((0, D, D)),
    )


@dataclass(frozen=True)
class Dots:
    """Inner products of one prompt, summed over the sampled positions of each stratum: position 0, and the rest.

    N writers and R decoys, with N components; NaN where a component does not read a writer.
    """

    path: Tensor
    """<path_{w->c}, h_w>: [2, N + R, N]."""
    clean: Tensor
    """<c, h_w>: [2, N + R, N]."""
    norm2: Tensor
    """|h_w|²: [2, N + R, N]; of a decoy it depends on which set the component uses."""


def strata(x: Tensor) -> Tensor:
    """Return the values at position 0 and the sums over the other sampled positions: [2, ...] of x [..., T]."""
    return torch.stack((x[..., 0], x[..., 1:].sum(-1)))


def path_dots(
    model: Model,
    trace: Trace,
    nodes: Written,
    row: int,
    positions: Tensor,
    decoys: Decoys,
    into: Set[str] | None = None,
) -> Dots:
    """Return the inner products of all paths and clean outputs with their writers, for one prompt.

    row: which prompt of the clean pass; positions: the sampled ones [T], of which the first is position 0; into: the
    components that are wanted, NaN for others that share no layer's heads with them; None: all.
    Agreement with the paths formed as vectors: tests/model/test_paths.py.
    """
    N, R, H = len(nodes.labels), decoys.count, model.shape.n_heads
    path, clean, norm2 = (nodes.at.new_full((2, N + R, N), torch.nan) for _ in range(3))
    every = torch.cat((nodes.at, decoys.at(nodes, positions)))
    turned = torch.arange(N, N + R, device=every.device)
    of_heads, of_vectors = turned.split((len(decoys.heads), len(decoys.vectors)))
    embeddings = len(nodes.vectors) - model.shape.n_layers
    for layer in range(model.shape.n_layers):
        first = nodes.labels.index(f"L{layer}H0")
        heads, others = nodes.heads[: layer * H], nodes.others[: embeddings + layer]
        into_mlp = (nodes.steps <= model.mlp_site(layer)).nonzero().flatten()
        for writing, columns in (
            (torch.cat((heads, of_heads, others, of_vectors)), torch.arange(first, first + H)),
            (torch.cat((into_mlp, turned)), torch.arange(first + H, first + H + 1)),
        ):
            if into is not None and not into & {nodes.labels[column] for column in columns.tolist()}:
                continue
            if len(columns) == 1:
                dots = _mlp_dots(model, layer, trace.sites[model.mlp_site(layer), row, positions], every[writing])
            else:
                dots = _head_dots(model, trace, nodes, row, positions, layer, decoys, every[writing])
            path[:, writing[:, None], columns] = strata(dots)
            rows = writing.sort().values[:, None]  # a product's last bits depend on the order of its rows
            at = every[rows[:, 0]]
            clean[:, rows, columns] = strata(torch.einsum("wtd,ctd->wct", at, nodes.at[columns]))
            norm2[:, rows, columns] = strata(at.square().sum(-1))[:, :, None]
    return Dots(path, clean, norm2)


def held_pattern(model: Model, trace: Trace, layer: int, row: int, positions: Tensor) -> Tensor:
    """Return the pattern over the clean scale of what is read, times the gain of the norm after it: [H, T, P].

    It takes values of a writer, W_V applied to it without its mean, to the z that it is a part of.
    """
    seen = trace.attention[layer]
    A = pattern_of(model, layer, seen, row, positions) / read_scale(model, trace.sites[2 * layer, row])
    return A.mul_(seen.gain[row, positions][:, None])


def gates(model: Model, layer: int, resid: Tensor) -> Tensor:
    """Return the held gate g of each hidden unit of an MLP that reads `resid` [T, D]: [T, M].

    Where a norm follows the MLP, its gain is held with it and is a part of g.
    """
    block, x = model.blocks[layer], read(model, resid)
    if block.W_gate is not None and block.b_gate is not None:
        g = linear(x, block.W_gate, block.b_gate, model.act).to(x.dtype)
    else:
        g = secant(model.act, linear(x, block.W_in, block.b_in).to(x.dtype))
    return g if block.mlp_post is None else g * mlp_gain(model, layer, resid)[:, None]


def mlp_path_onto(model: Model, layer: int, resid: Tensor, writer: Tensor, onto: Tensor) -> Tensor:
    """Return <path_{w->MLP}, onto> at every position, the gates of the clean stream held: [B, P].

    resid: what the MLP reads in the clean run; writer, onto: [B, P, D]. No path is formed as a vector:
    sum_m g_m (LN_n(h_w) W_in)_m (onto W_out^T)_m, prompt by prompt. Agreement: tests/measures/test_patched.py.
    """
    block, rows = model.blocks[layer], []
    W_in, W_out = block.W_in.to(writer.dtype), block.W_out.to(writer.dtype)
    for mid, h, direction in zip(resid, writer, onto, strict=True):
        seen = centred(model, h) / read_scale(model, mid)[:, None]
        rows.append((gates(model, layer, mid) * (seen @ W_in) * (direction @ W_out.T)).sum(-1))
    return torch.stack(rows)


def _head_dots(
    model: Model, trace: Trace, nodes: Written, row: int, positions: Tensor, layer: int, decoys: Decoys, at: Tensor
) -> Tensor:
    """Return <vcomp_{w->c}, h_w> for the heads c of a layer: [w, H, T].

    at [w, T, D]: heads that are read, decoys made of heads, vectors that are read, decoys made of vectors. Values of
    heads that write are z (W_O W_V), the two matrices multiplied first: D / d_head times less work.
    """
    shape, block = model.shape, model.blocks[layer]
    n_heads, n_vectors = layer * shape.n_heads, len(nodes.vectors) - shape.n_layers + layer
    z = torch.cat((nodes.z[:, :n_heads], nodes.z[:, decoys.heads]), 1).transpose(0, 1).contiguous()  # [w_h, P, K]
    maps = torch.cat((*(centred(model, earlier.W_O) for earlier in model.blocks[:layer]), decoys.head_maps))
    vectors, turned = nodes.vectors[:n_vectors], nodes.vectors[decoys.vectors]
    A = held_pattern(model, trace, layer, row, positions)
    onto = torch.einsum("wtd,hkd->hwtk", at, block.W_O)
    per = shape.n_heads // shape.n_kv_heads
    dots = []
    for group, W_V in enumerate(block.W_V):
        values = torch.cat((z @ (maps @ W_V), vectors @ W_V, turned @ (decoys.vector_maps @ W_V)))  # [w, P, K]
        heads = range(group * per, (group + 1) * per)
        dots += [(A[head] @ values).mul_(onto[head]).sum(-1) for head in heads]  # A V: [w, T, K]
    return torch.stack(dots, 1)


def _mlp_dots(model: Model, layer: int, mid: Tensor, at: Tensor) -> Tensor:
    """Return <path_{w->MLP}, h_w> [w, 1, T] of writers and decoys `at` [w, T, D]; mid: what the MLP reads [T, D]."""
    block = model.blocks[layer]
    g = gates(model, layer, mid) / read_scale(model, mid)[:, None]
    # Products of the forward may be in bf16; what is measured of them is not.
    W_in, W_out, parts = block.W_in.to(at.dtype), block.W_out.to(at.dtype), []
    for some in at.split(TOGETHER):
        hidden = (some @ W_in).mul_(some @ W_out.T)  # [w, T, M]
        parts.append(torch.einsum("wtm,tm->wt", hidden, g))
    return torch.cat(parts)[:, None]
