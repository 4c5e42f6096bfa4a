"""Small models with roles and prompts, each with its oracle's clean pass: what the property tests look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial, reduce
from operator import or_
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from repro.kernels.select import provider
from repro.measures.base import Context, Measure
from repro.measures.batch import Batch, Engine
from repro.measures.directions import Directions
from repro.measures.roles import ExampleTokens, Roles
from repro.model.casting import cast
from repro.model.decoder import Model
from repro.model.folder import read_folder
from repro.model.load import load
from tests import oracle, toys

# Two norms, learned and rotary positions (both pairings), grouped heads, tied embeddings, gated MLPs, parallel blocks,
# query and key norms of one head or of all, norms after attention and MLP, windows, caps, 2 to 4 layers.
ROLES = {
    "native": Roles("L0H1", ("L2H0", "L2H3")),
    "gpt2": Roles("L1H2", ("L2H1",)),
    "llama": Roles("L0H3", ("L1H0", "L1H1", "L1H3")),
    "rotary": Roles("L0H2", ("L1H0", "L1H2")),
    "wide": Roles("L1H4", ("L2H0", "L2H4")),
    "lopsided": Roles("L0H2", ("L1H0", "L1H1")),
    "pythia": Roles("L0H1", ("L1H0", "L1H3")),
    "qwen3": Roles("L0H0", ("L1H2",)),
    "gemma2": Roles("L0H1", ("L2H0", "L2H3")),
    "gemma3": Roles("L0H1", ("L1H0", "L1H3")),
    "olmo2": Roles("L0H0", ("L1H2",)),
}
KINDS = tuple(ROLES)
NORMED_AFTER = ("gemma2", "gemma3", "olmo2")
"""Those in which what the heads of a layer write goes through one norm, so that each changes what the others add."""
MAKERS: dict[str, Callable[[Path], Path]] = {
    "native": toys.make_native,
    "gpt2": toys.make_gpt2,
    "llama": toys.make_llama,
    "rotary": lambda folder: toys.make_native(folder, **toys.ROTARY),
    "wide": lambda folder: toys.make_native(folder, **toys.WIDE),
    **{name: partial(toys.make_kind, name=name) for name in ("pythia", "qwen3", "gemma2", "gemma3", "olmo2")},
}


@cache
def model(kind: str) -> Model:
    """The toy model of a kind, processed and checked, in float64."""
    if kind == "lopsided":
        return lopsided(model("native"))
    with TemporaryDirectory() as root:
        # Prompts as long as the context: windows are reached.
        return load(read_folder(MAKERS[kind](Path(root) / kind)), "float64", prompts=prompts(1, 64))


def lopsided(given: Model) -> Model:
    """A LayerNorm model whose weights have large means over d_model.

    Processing centres every writing and reading weight, after which subtracting a mean changes nothing: whether it is
    subtracted where it must be shows only on a model like this one.
    """
    value_columns = slice(-given.shape.n_kv_heads * given.shape.d_head, None)
    blocks = []
    for block in given.blocks:
        packed = block.W_QKV.clone()
        packed[:, value_columns] += torch.linspace(-1, 2, packed[:, value_columns].shape[1]).double()
        W_V = packed[:, value_columns].unflatten(1, (given.shape.n_kv_heads, -1)).transpose(0, 1)
        blocks.append(replace(block, W_QKV=packed, W_V=W_V, W_O=block.W_O + 0.2, b_O=block.b_O + 0.5))
    W_U = given.W_U + torch.linspace(-1, 1, given.shape.d_vocab).double()
    return replace(given, blocks=tuple(blocks), W_E=given.W_E + 0.3, W_U=W_U)


@dataclass(frozen=True)
class Scene:
    """A model with roles and prompts."""

    model: Model
    roles: Roles
    tokens: np.ndarray
    examples: tuple[ExampleTokens, ...] = ()

    @property
    def context(self) -> Context:
        """What experiments are declared on."""
        n_prompts, n_positions = self.tokens.shape
        return Context(self.model.shape, n_prompts, n_positions, replace(self.roles, examples=self.examples))

    @cached_property
    def clean(self) -> oracle.Run:
        """The oracle's clean pass."""
        return oracle.forward(self.model, self.tokens)

    @cached_property
    def writer(self) -> np.ndarray:
        """What the writer wrote, by the oracle: [B, P, D]."""
        return oracle.written(self.clean, self.roles.writer)

    def engine(self, kernels: str = "torch") -> Engine:
        """The model and a provider's kernels."""
        return Engine(self.model, provider(kernels, "cpu"))

    def prepared(self, experiment: Measure, kernels: str = "torch") -> dict[str, Any]:
        """What the experiment computes before the pass, as a run does it."""
        with torch.inference_mode():
            return experiment.prepare(self.context, self.engine(kernels), self.tokens)

    def compute(
        self,
        experiment: Measure,
        kernels: str = "torch",
        micro_batch: int | None = None,
        beside: Iterable[Measure] = (),
    ) -> dict[str, np.ndarray]:
        """An experiment's raw arrays over all prompts.

        micro_batch: prompts that go through the model together; beside: experiments that share the pass.
        """
        prepared, size = self.prepared(experiment, kernels), micro_batch or len(self.tokens)
        asked = reduce(or_, (other.asks for other in beside), experiment.asks)
        starts = range(0, len(self.tokens), size)
        with torch.inference_mode():
            batches = (self.batch(first, first + size, asked, kernels) for first in starts)
            parts = [experiment.compute(self.context, prepared, batch) for batch in batches]
        layout = experiment.layout(self.context)
        axes = {name: layout.variable(name).dims.index("prompt") for name in parts[0]}
        return {name: torch.cat([part[name] for part in parts], axis).numpy() for name, axis in axes.items()}

    def batch(self, first: int, stop: int, asked: Directions, kernels: str = "torch") -> Batch:
        """Some of the prompts on their way through the model."""
        rows = torch.from_numpy(self.tokens[first:stop])
        return Batch(self.engine(kernels), rows, first, self.roles, asked)

    def with_model(self, changed: Model) -> Scene:
        """The same scene on another model."""
        return replace(self, model=changed)


@cache
def scene(kind: str) -> Scene:
    """The standard scene of a kind: 3 prompts of 11 tokens, BOS first."""
    return Scene(model(kind), ROLES[kind], prompts(3, 11))


def prompts(n: int, length: int, seed: int = 5) -> np.ndarray:
    """Random token ids [n, length], int64, that start with BOS = 0."""
    tokens = np.random.default_rng(seed).integers(1, toys.VOCAB, (n, length))
    tokens[:, 0] = 0
    return tokens


def changed_block(given: Model, layer: int, **parts: Any) -> Model:
    """The model with some tensors of one layer replaced."""
    blocks = list(given.blocks)
    blocks[layer] = replace(blocks[layer], **parts)
    return replace(given, blocks=tuple(blocks))


def scaled_head(given: Model, label: str, factor: float) -> Model:
    """The model with one head's output multiplied by a factor; 0 silences it."""
    layer, head = (int(part) for part in label[1:].split("H"))
    W_O = given.blocks[layer].W_O.clone()
    W_O[head] *= factor
    return changed_block(given, layer, W_O=W_O)


def single_precision(given: Model) -> Model:
    """The model in float32, the type of a default run."""
    return cast(given, torch.float32, "cpu")


def is_close(ours: Any, theirs: Any, within: float = 1e-9) -> bool:
    """Whether two arrays agree, NaN with NaN; both sides compute in float64, in another order."""
    return np.allclose(np.asarray(ours), np.asarray(theirs), rtol=within, atol=within, equal_nan=True)


def assert_close(ours: Any, theirs: Any, within: float = 1e-9) -> None:
    """The same as an assertion that shows what differs."""
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=within, atol=within)
