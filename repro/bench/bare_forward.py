"""The bare forward pass, which the whole paper is measured against: `python -m repro bench --end-to-end`."""

from __future__ import annotations

import time
from math import prod
from statistics import median

import torch
from torch import Tensor

from repro.model.decoder import Model
from repro.model.forward import logits, trace


class Bare:
    """The bare forward pass, a few prompts at a time, with what it is compared with timed in between."""

    def __init__(self, model: Model, tokens: Tensor, together: int) -> None:
        """Take processed weights `model`, tokens [B, P], and prompts `together` at a time; run the first once."""
        self.model = model
        self.tokens = tokens
        self.together = together
        self.prompts = 0
        self.seconds: list[float] = []
        self.unembedded: list[float] = []
        self.products: dict[tuple[int, int, int], list[float]] = {}
        self._final(slice(together))

    def _final(self, rows: slice) -> Tensor:
        with torch.inference_mode():
            return trace(self.model, self.tokens[rows]).final

    def over(self, rows: range, unembed: bool = False) -> None:
        """Time some prompts; after every few the products, and with `unembed` one more prompt up to its logits."""
        for first in rows[:: self.together]:
            several = slice(first, min(first + self.together, rows.stop))
            begun = time.perf_counter()
            self._final(several)
            self.seconds.append(time.perf_counter() - begun)
            self.prompts += several.stop - first
            self._multiply()
            if unembed:
                self.unembed(first)

    def unembed(self, row: int) -> None:
        """Time one prompt up to its logits."""
        begun = time.perf_counter()
        with torch.inference_mode():
            logits(self.model, self._final(slice(row, row + 1)))
        self.unembedded.append(time.perf_counter() - begun)

    def _multiply(self) -> None:
        """Time plain products of a layer's four shapes: into QKV, out of the heads, into and out of the MLP."""
        s, P = self.model.shape, min(self.together, len(self.tokens)) * self.tokens.shape[1]
        wide, narrow = (s.n_heads + 2 * s.n_kv_heads) * s.d_head, s.n_heads * s.d_head
        for size in ((P, s.d_model, wide), (P, narrow, s.d_model), (P, s.d_model, s.d_mlp), (P, s.d_mlp, s.d_model)):
            a, b = torch.rand(size[:2]), torch.rand(size[1:])
            torch.mm(a, b)
            begun = time.perf_counter()
            torch.mm(a, b)
            self.products.setdefault(size, []).append(time.perf_counter() - begun)

    def rates(self) -> dict[str, float]:
        """Return FLOP per second: of the forward; of its four products together, weighted by FLOP; of the largest."""
        flop = {size: 2.0 * prod(size) for size in self.products}
        seconds = {size: median(times) for size, times in self.products.items()}
        largest = max(flop, key=lambda size: flop[size])
        length = self.tokens.shape[1]
        forward = self.model.shape.flop_per_token(length) * length * self.prompts
        return {
            "bare_flop_per_s": forward / sum(self.seconds),
            "products_flop_per_s": sum(flop.values()) / sum(seconds.values()),
            "matmul_flop_per_s": flop[largest] / seconds[largest],
        }
