"""A decoder with processed weights, and what its attention saw: the data that everything else reads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from repro.model.folder import Shape


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding: tables [n_ctx, rotated/2] and which dimensions pair up."""

    cos: Tensor
    sin: Tensor
    adjacent: bool
    """Pairs (2i, 2i+1) where true, (i, i + half) where false."""


@dataclass(frozen=True)
class Scales:
    """By what the original multiplies, which weights here contain, and how wide its weights are drawn at first."""

    embedding: float = 1.0
    """What is looked up in W_E: the root of D in Gemma, a multiplier in Granite."""
    residual: float = 1.0
    """What attention and MLP add to the stream (Granite)."""
    logits: float = 1.0
    """What the unembedding gives (Cohere, Granite)."""
    initial: float = 0.02
    """Standard deviation of its initialiser: `initializer_range` of a Hugging Face configuration, else 0.02."""


@dataclass(frozen=True)
class Block:
    """Processed weights of one layer. H heads, G key/value heads, K = d_head, D = d_model, M = d_mlp.

    The products of the forward are computed in the type of W_QKV; W_V and W_O are those that measures read.
    """

    W_QKV: Tensor  # [D, (H + 2G) K]
    b_QKV: Tensor  # [(H + 2G) K]
    W_V: Tensor  # [G, D, K]
    W_O: Tensor  # [H, K, D]
    b_O: Tensor  # [D]
    W_in: Tensor  # [D, M]
    b_in: Tensor  # [M]
    W_gate: Tensor | None  # [D, M]
    b_gate: Tensor | None  # [M]
    W_out: Tensor  # [M, D]
    b_out: Tensor  # [D]
    q_norm: Tensor | None = None  # [K] or [H, K]
    k_norm: Tensor | None = None  # [K] or [G, K]
    """Weights of RMS norms of queries and keys before rotation: of every one, or of all heads at once."""
    rotated: bool = True
    """Whether queries and keys of this layer are rotated, if the model has rotary positions."""
    window: int | None = None
    """Positions back to which the heads read, their own included; None: all."""
    attn_post: Tensor | None = None  # [D]
    mlp_post: Tensor | None = None  # [D]
    """Weights of RMS norms of what attention and MLP write, which W_O and W_out contain."""
    score_factor: float = 1.0
    """Of the scores of this layer beyond `softmax_scale`, which W_Q or, where there is one, q_norm contains."""


@dataclass(frozen=True)
class Model:
    """A decoder with processed weights."""

    shape: Shape
    center: bool
    """LayerNorm subtracts the mean; RMSNorm does not."""
    eps: float
    act: str
    softmax_scale: float
    W_E: Tensor  # [V, D]
    W_pos: Tensor | None  # [n_ctx, D]
    rotary: Rotary | None
    blocks: tuple[Block, ...]
    W_U: Tensor  # [D, V]
    b_U: Tensor  # [V]
    parallel: bool = False
    """Attention and MLP of a layer both read resid_pre; else the MLP reads resid_mid."""
    rotary_local: Rotary | None = None
    """Rotary positions of layers with a window, where they have their own."""
    pre_norm: bool = True
    """Attention and MLP read the stream through a norm; else as it is."""
    score_cap: float | None = None
    """Scores s of attention become cap tanh(s / cap)."""
    logit_cap: float | None = None
    """The original's logits are cap tanh(l / cap) of what is the logit l here, the order the same."""
    scales: Scales = Scales()
    longest: int | None = None
    """Positions up to which it was compared with the original; None: what binds anywhere in its context was refused."""

    def mlp_site(self, layer: int) -> int:
        """Return which site the MLP of a layer reads."""
        return 2 * layer if self.parallel else 2 * layer + 1

    def rotary_of(self, layer: int) -> Rotary | None:
        """Return the tables by which queries and keys of a layer are rotated, if they are."""
        block = self.blocks[layer]
        local = self.rotary_local if block.window is not None else None
        return (local or self.rotary) if block.rotated else None


@dataclass(frozen=True)
class Attention:
    """What the heads of one layer saw and wrote: q [B,P,H,K], k and v [B,P,G,K] (q and k rotated), z [B,P,H,K].

    z W_O is what a head adds to the stream: z is a mix of values times gain [B,P], one over the scale of the norm
    after attention, 1 where there is none.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    z: Tensor
    gain: Tensor
