"""Raw weights become the processed ones that direct logit attribution is defined on.

Norms are folded into what reads through them, those after attention and MLP into W_O and W_out, value biases into b_O,
scales of the embedding into W_E, of what is added to the stream into W_O and W_out, of single layers' scores into W_Q,
and of logits into W_U; what LayerNorm models write to the stream is centred, and so is every unembedding. Computed in
float64, whatever the type of the weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from repro.errors import listing, unavailable
from repro.model.casting import cast
from repro.model.decoder import Block, Model, Rotary
from repro.model.folder import Folder, Shape
from repro.model.native_keys import SIZES
from repro.model.original import Original

_SIZE_KEYS = [name for size in ("n_heads", "n_kv_heads", "d_head", "d_model") for name in SIZES[size]]
_BIAS_KEYS = ("attention_bias", "mlp_bias", "use_bias")
_NORMS = ("ln1", "ln1_post", "ln2", "ln2_post", "q_norm", "k_norm")
Affine = tuple[Tensor, Tensor]
"""A matrix [in, out] and a bias [out]; or a norm's weight and bias [in]."""
_NO_WEIGHT = 1e-15
"""Stands for a weight of zero in a norm after attention or MLP, whose scale could not be found again otherwise."""


def process(folder: Folder, original: Original, dtype: torch.dtype) -> tuple[Model, list[Tensor]]:
    """Return the processed model in `dtype` of an original one, and each layer's value bias [H K] folded into its b_O.

    Raises ReproError (exit 4) where matrices are not of the sizes in config.json.
    Agreement: tests/model/test_model.py, tests/model/test_architectures.py.
    """
    bridge, shape = original.bridge, folder.shape
    cfg = bridge.cfg
    center = str(cfg.normalization_type).upper().startswith("LN")
    offset = 1.0 if getattr(cfg, "rmsnorm_uses_offset", False) else 0.0
    factors = [_softmax_scale(_module(block.attn), shape) for block in bridge.blocks]
    blocks: list[Block] = []
    value_biases: list[Tensor] = []
    for layer, (block, factor) in enumerate(zip(bridge.blocks, factors, strict=True)):
        made, value_bias = _block(folder, block._modules, center, offset, factor / factors[0], original.scales.residual)
        made = replace(made, rotated=layer not in original.unrotated, window=original.windows.get(layer))
        blocks.append(cast(made, dtype))
        value_biases.append(value_bias.to(dtype))
    W_U, b_U = _read_through(_norm(bridge.ln_final, shape.d_model, offset), _affine(bridge.unembed), center)
    W_E, W_pos = _embeddings(bridge, shape, original.rotary, center)
    multiplier, of_logits = original.scales.embedding, original.scales.logits
    looked_up = float(getattr(_module(bridge.embed), "embed_scale", 1.0)) * multiplier
    model = Model(
        shape=replace(shape, d_mlp=blocks[0].W_in.shape[1]),
        center=center,
        eps=_epsilon(folder, bridge),
        act=cfg.act_fn,
        softmax_scale=factors[0],
        W_E=W_E.mul_(multiplier),
        W_pos=W_pos,
        rotary=original.rotary,
        blocks=tuple(blocks),
        W_U=W_U.sub_(W_U.mean(1, keepdim=True)).mul_(of_logits),  # in place: the largest matrix
        b_U=(b_U - b_U.mean()) * of_logits,
        parallel=bool(getattr(cfg, "parallel_attn_mlp", False)),
        rotary_local=original.rotary_local,
        pre_norm="ln1" in bridge.blocks[0]._modules,
        score_cap=original.score_cap,
        logit_cap=original.logit_cap,
        scales=replace(original.scales, embedding=looked_up),
    )
    return cast(model, dtype), value_biases


def _block(
    folder: Folder, parts: dict[str, Any], center: bool, offset: float, score_factor: float, residual_scale: float
) -> tuple[Block, Tensor]:
    """Return one layer, processed, and the value bias [H K] that is folded into its b_O.

    score_factor: of its attention scores, beyond the factor that all layers share; residual_scale: of what it adds to
    the stream.
    """
    shape, attn, ff = folder.shape, parts["attn"]._modules, parts["mlp"]._modules
    none = torch.ones(shape.d_model).double(), torch.zeros(shape.d_model).double()  # OLMo 2 reads without norms
    ln1 = _norm(parts["ln1"], shape.d_model, offset) if "ln1" in parts else none
    post = (_post(parts, name, shape.d_model, offset) for name in ("ln1_post", "ln2_post"))
    attn_post, mlp_post = (None if weights is None else weights * residual_scale for weights in post)
    # GPT-J and Phi have one norm, which attention and MLP both read through.
    ln2 = _norm(parts["ln2"], shape.d_model, offset) if "ln2" in parts else ln1
    (W_Q, b_Q), (W_K, b_K), (W_V, b_V) = (_read_through(ln1, _affine(attn[x]), center) for x in "qkv")
    W_O, b_O = _affine(attn["o"])
    _refuse_sizes(
        folder, {"query": (W_Q, shape.n_heads), "key": (W_K, shape.n_kv_heads), "value": (W_V, shape.n_kv_heads)}
    )
    share = shape.n_heads // shape.n_kv_heads
    value_bias = b_V.view(shape.n_kv_heads, shape.d_head).repeat_interleave(share, 0).flatten()
    # A pattern sums to 1 over the positions it reads: what every value contains is written once.
    W_O, b_O = _written((W_O, b_O + value_bias @ W_O), center, attn_post, residual_scale)
    W_in, b_in = _read_through(ln2, _affine(ff["in"]), center)
    gate = _read_through(ln2, _affine(ff["gate"]), center) if "gate" in ff else (None, None)
    W_out, b_out = _written(_affine(ff["out"]), center, mlp_post, residual_scale)
    _refuse_biases(folder, {"attention": (attn_post, b_O), "MLP": (mlp_post, b_out)})
    q_norm, k_norm = (_norm(attn[x], shape.d_head, offset)[0] if x in attn else None for x in ("q_norm", "k_norm"))
    if q_norm is not None and k_norm is not None and q_norm.numel() > shape.d_head:
        q_norm, k_norm = (weights.unflatten(0, (-1, shape.d_head)) for weights in (q_norm, k_norm))
    if q_norm is None:
        W_Q, b_Q = W_Q * score_factor, b_Q * score_factor
    else:
        q_norm = q_norm * score_factor
    made = Block(
        W_QKV=torch.cat((W_Q, W_K, W_V), 1),
        b_QKV=torch.cat((b_Q, b_K, torch.zeros_like(b_V))),
        W_V=W_V.unflatten(1, (shape.n_kv_heads, shape.d_head)).transpose(0, 1),
        W_O=W_O.unflatten(0, (shape.n_heads, shape.d_head)),
        b_O=b_O,
        W_in=W_in,
        b_in=b_in,
        W_gate=gate[0],
        b_gate=gate[1],
        W_out=W_out,
        b_out=b_out,
        q_norm=q_norm,
        k_norm=k_norm,
        attn_post=attn_post,
        mlp_post=mlp_post,
        score_factor=score_factor,
    )
    return made, value_bias


def _epsilon(folder: Folder, bridge: Any) -> float:
    """Return what the norms add to the variance, from their own attributes: configurations name it in many ways."""
    parts = [part for block in bridge.blocks for of in (block, block.attn) for part in of._modules.items()]
    norms = [bridge.ln_final, *(part for name, part in parts if name in _NORMS)]
    found = set()
    for norm in map(_module, norms):
        own = getattr(norm, "eps", getattr(norm, "variance_epsilon", None))
        found.add(float(bridge.cfg.eps if own is None else own))
    if len(found) > 1:
        named = " and ".join(f"{eps:g}" for eps in sorted(found))
        raise unavailable(f"{folder.path}: not supported: norms that add different eps, {named}")
    return found.pop()


def _module(part: Any) -> Any:
    """Return the original's own module behind a part of the bridge."""
    return getattr(part, "original_component", None) or part


def _affine(part: Any) -> Affine:
    """Return a linear part's matrix [in, out] and bias [out]; Conv1D stores the matrix so, Linear transposed."""
    module = _module(part)
    weight = module.weight.detach().double()
    # Told by its kind and never by its shape: a square matrix has the same either way.
    matrix = weight if type(module).__name__ == "Conv1D" else weight.T
    bias = getattr(part, "bias", None) if getattr(module, "bias", None) is None else module.bias
    return matrix, torch.zeros(matrix.shape[1]).double() if bias is None else bias.detach().double()


def _norm(part: Any, size: int, offset: float) -> Affine:
    """Return the weight and bias of a norm over `size` numbers; offset: what is added to the weight as stored."""
    weight, bias = (getattr(_module(part), name, None) for name in ("weight", "bias"))
    return (
        torch.ones(size).double() if weight is None else weight.detach().double() + offset,
        torch.zeros(size).double() if bias is None else bias.detach().double(),
    )


def _post(parts: dict[str, Any], name: str, size: int, offset: float) -> Tensor | None:
    """Return the weights of a norm after attention or MLP, none of them zero, or nothing if the layer has none."""
    if name not in parts:
        return None
    weights = _norm(parts[name], size, offset)[0]
    return torch.where(weights == 0, _NO_WEIGHT, weights)


def _read_through(norm: Affine, read: Affine, center: bool) -> Affine:
    """Fold a norm into what reads through it: x w + b, then W, becomes x, then w W, b W added to the bias."""
    (weight, bias), (W, b) = norm, read
    folded = weight[:, None] * W
    return folded.sub_(folded.mean(0)) if center else folded, b + bias @ W


def _written(write: Affine, center: bool, post: Tensor | None, scale: float) -> Affine:
    """Centre what is written to the stream of a LayerNorm model, every reader of which subtracts the mean.

    scale: by which it is multiplied; post: weights of the norm that it goes through, times that.
    """
    W, b = (x * (scale if post is None else post) for x in write)
    return (W - W.mean(1, keepdim=True), b - b.mean()) if center else (W, b)


def _embeddings(bridge: Any, shape: Shape, rotary: Rotary | None, center: bool) -> tuple[Tensor, Tensor | None]:
    """Return W_E and W_pos, each centred if the model is, and scaled if the original scales what it looks up."""
    tables = [bridge.embed] if rotary is not None else [bridge.embed, bridge.pos_embed]
    found = []
    for module in map(_module, tables):
        table = module.weight.detach()
        scale = torch.as_tensor(getattr(module, "embed_scale", 1.0)).to(table.dtype)
        table = table.double() * scale.double()
        found.append(table.sub_(table.mean(1, keepdim=True)) if center else table)
    if rotary is not None:
        return found[0], None
    # OPT keeps rows for positions of padding in front.
    return found[0], found[1][-shape.n_ctx :]


def _softmax_scale(attention: nn.Module, shape: Shape) -> float:
    """Return the factor of attention scores, from the original's own attribute."""
    if hasattr(attention, "scaling"):
        return float(attention.scaling)  # type: ignore[arg-type]
    for name in ("scale_attn", "scale"):  # GPT-J and TransformerLens divide
        if hasattr(attention, name):
            return 1 / float(getattr(attention, name))
    return 1.0 if type(attention).__name__ == "GPTNeoSelfAttention" else shape.d_head**-0.5


def _refuse_biases(folder: Folder, written: dict[str, tuple[Tensor | None, Tensor]]) -> None:
    """Refuse a bias in what a norm after attention or MLP reads: divided by the norm's scale it is no constant."""
    for name, (post, bias) in written.items():
        if post is not None and bias.any():
            said = listing([f"{key} = {folder.config[key]!r}" for key in _BIAS_KEYS if folder.config.get(key)])
            raise unavailable(
                f"{folder.path}: not supported: {said or 'biases'} in config.json, biases of what the norm after the "
                f"{name} reads"
            )


def _refuse_sizes(folder: Folder, read: dict[str, tuple[Tensor, int]]) -> None:
    for name, (W, heads) in read.items():
        if W.shape != (folder.shape.d_model, heads * folder.shape.d_head):
            said = listing([f"{key} = {folder.config[key]!r}" for key in _SIZE_KEYS if key in folder.config])
            raise unavailable(
                f"{folder.path}: {said} in config.json: {heads} heads of {folder.shape.d_head} dimensions that read "
                f"{folder.shape.d_model}, and the {name} matrix is {list(W.shape)}"
            )
