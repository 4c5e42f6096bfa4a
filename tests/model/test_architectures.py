"""Architectures in float64 against transformers' own modules: sites, heads, patterns, patches, logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from repro.kernels.select import provider
from repro.labels import heads_of
from repro.measures.batch import Batch, Engine
from repro.measures.directions import Directions
from repro.measures.patched import patched_run
from repro.measures.roles import Roles
from repro.model.decoder import Model
from repro.model.folder import read_folder
from repro.model.forward import logits, trace
from repro.model.load import load
from repro.process import quiet
from tests import toys
from tests.scenes import prompts

NAMES = tuple(toys.ARCHITECTURES)
TOKENS = torch.from_numpy(prompts(2, 40, seed=11))
WITHIN = 2e-5  # transformers computes norms, softmax and rotary tables in float32 whatever the type of the weights

# Where each kind keeps its layers; of a layer what first reads the stream, value matrix, output matrix and last matrix
# of the MLP; then what writes to the stream, where these do not.
PLACES: dict[str, tuple[str, ...]] = {
    "gpt_neox": ("gpt_neox.layers", "input_layernorm", "", "attention.dense", "mlp.dense_4h_to_h"),
    "gptj": ("transformer.h", "ln_1", "attn.v_proj", "attn.out_proj", "mlp.fc_out"),
    "gpt2": ("transformer.h", "ln_1", "", "attn.c_proj", "mlp.c_proj"),
    "opt": ("model.decoder.layers", "self_attn_layer_norm", "self_attn.v_proj", "self_attn.out_proj", "fc2"),
    "phi": ("model.layers", "input_layernorm", "self_attn.v_proj", "self_attn.dense", "mlp.fc2"),
    "phi3": ("model.layers", "input_layernorm", "", "self_attn.o_proj", "mlp.down_proj"),
    "starcoder2": ("model.layers", "input_layernorm", "self_attn.v_proj", "self_attn.o_proj", "mlp.c_proj"),
}
AFTER = (
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.down_proj",
    "post_attention_layernorm",
    "post_feedforward_layernorm",
)
ONLY_AFTER = ("olmo2", "olmo3", "exaone4")
PLACES |= dict.fromkeys(("gemma2", "gemma3_text"), ("model.layers", "input_layernorm", *AFTER))
PLACES |= dict.fromkeys(ONLY_AFTER, ("model.layers", "self_attn.q_proj", *AFTER))
LLAMA: tuple[str, ...] = ("model.layers", "input_layernorm", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
JOINT = ("pythia", "phi-3", *(name for name in NAMES if name.startswith("gpt2")))
"""Those that keep queries, keys and values in one matrix, so that their values have no input of their own."""
FINAL = ("gpt_neox.final_layer_norm", "transformer.ln_f", "model.decoder.final_layer_norm", "model.final_layernorm")


@dataclass(frozen=True)
class Case:
    """A model as loaded here, and the original in float64."""

    ours: Model
    original: Any

    def place(self, layer: int, part: int) -> Any:
        """One of the parts of a layer, by its number in PLACES."""
        names = PLACES.get(self.original.config.model_type, LLAMA)
        names = (*names, *names[3:5]) if len(names) == 5 else names
        return self.original.get_submodule(f"{names[0]}.{layer}.{names[part]}")

    @property
    def times(self) -> float:
        """What the original multiplies all that attention and MLP write by."""
        return float(getattr(self.original.config, "residual_multiplier", 1))

    @property
    def final_norm(self) -> nn.Module:
        """The norm before the unembedding."""
        present = dict(self.original.named_modules())
        return present[next((name for name in FINAL if name in present), "model.norm")]

    def moved(self, x: Tensor) -> Tensor:
        """What processing leaves of something that is written to the stream."""
        return x - x.mean(-1, keepdim=True) if self.ours.center else x


@cache
def case(name: str) -> Case:
    """One of the architectures, loaded with a prompt as in a run."""
    from transformers import AutoModelForCausalLM

    with TemporaryDirectory() as root, quiet():
        path = toys.make_kind(Path(root) / "model", name)
        ours = load(read_folder(path), "float64", prompts=TOKENS.numpy())
        original = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager").eval()
    return Case(ours, original)


@dataclass
class Pass:
    """One pass of the original: what each layer reads and its parts write, patterns, logits."""

    pre: list[Tensor]
    z: list[Tensor]
    raw: list[Tensor]
    attention: list[Tensor]
    mlp: list[Tensor]
    patterns: list[Tensor]
    logits: Tensor


def run(
    shown: Case,
    edits: dict[nn.Module, Callable[[Tensor], Tensor]] | None = None,
    held: dict[nn.Module, Tensor] | None = None,
) -> Pass:
    """A pass of the original with hooks of its own modules.

    edits: of what a module reads; held: by what it multiplies that, and does nothing else.
    """
    seen = Pass([], [], [], [], [], [], torch.zeros(()))
    B, P = TOKENS.shape

    def reads(module: nn.Module, into: list[Tensor]) -> Any:
        return module.register_forward_pre_hook(lambda _, given: into.append(given[0].reshape(B, P, -1)))

    def writes(module: nn.Module, into: list[Tensor]) -> Any:
        return module.register_forward_hook(lambda _, given, out: into.append(out.reshape(B, P, -1)))

    hooks = [
        module.register_forward_pre_hook(lambda _, given, edit=edit: (edit(given[0]), *given[1:]))
        for module, edit in (edits or {}).items()
    ]
    hooks += [
        module.register_forward_hook(lambda _, given, out, factor=factor: given[0] * factor)
        for module, factor in (held or {}).items()
    ]
    for layer in range(shown.ours.shape.n_layers):
        hooks += [reads(shown.place(layer, 1), seen.pre), reads(shown.place(layer, 3), seen.z)]
        hooks += [writes(shown.place(layer, 3), seen.raw)]
        hooks += [writes(shown.place(layer, 5), seen.attention), writes(shown.place(layer, 6), seen.mlp)]
    hooks.append(reads(shown.final_norm, seen.pre))
    with torch.no_grad():
        out = shown.original(TOKENS, output_attentions=True, use_cache=False)
    for hook in hooks:
        hook.remove()
    seen.attention, seen.mlp = ([shown.times * part for part in parts] for parts in (seen.attention, seen.mlp))
    seen.patterns, seen.logits = list(out.attentions), out.logits
    return seen


@cache
def clean(name: str) -> Pass:
    """The original's own pass."""
    return run(case(name))


def factor(name: str, layer: int) -> Tensor:
    """What becomes of what the heads write, on its way to the stream: [B, P, D]; 1 without a norm or a multiplier."""
    return clean(name).attention[layer] / clean(name).raw[layer]


def assert_near(ours: Tensor, theirs: Tensor, within: float = WITHIN) -> None:
    """Equal to a fraction of the largest value."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == torch.float64
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < within


@pytest.mark.parametrize("name", NAMES)
def test_every_site_is_the_originals(name: str) -> None:
    shown, seen = case(name), clean(name)
    passed = trace(shown.ours, TOKENS)
    for layer in range(shown.ours.shape.n_layers):
        assert_near(passed.sites[2 * layer], shown.moved(seen.pre[layer]))
        assert_near(passed.sites[2 * layer + 1], shown.moved(seen.pre[layer] + seen.attention[layer]))
        assert_near(passed.mlp_out[layer], shown.moved(seen.mlp[layer]))
    assert_near(passed.final, shown.moved(seen.pre[-1]))
    if shown.ours.parallel:  # and the MLP does not see what attention wrote: reading it gives something else
        assert (shown.moved(seen.mlp[0]) - trace(flipped(shown.ours), TOKENS).mlp_out[0]).abs().max() > 1e-2


def flipped(given: Model) -> Model:
    """The same weights in sequential blocks where they are parallel, and the other way round."""
    return replace(given, parallel=not given.parallel)


@pytest.mark.parametrize("name", NAMES)
def test_every_heads_output_is_the_originals_but_for_its_value_bias(name: str) -> None:
    shown, seen = case(name), clean(name)
    H, K = shown.ours.shape.n_heads, shown.ours.shape.d_head
    for layer, block in enumerate(shown.ours.blocks):
        module = shown.place(layer, 3)
        weight = module.weight if type(module).__name__ == "Conv1D" else module.weight.T
        raw = torch.einsum("bphk,hkd->bphd", seen.z[layer].unflatten(2, (H, K)), weight.detach().unflatten(0, (H, K)))
        raw = raw * factor(name, layer)[:, :, None]
        ours = torch.einsum("bphk,hkd->bphd", trace(shown.ours, TOKENS).attention[layer].z, block.W_O)
        apart = shown.moved(raw) - ours
        constant = apart[:1, :1].expand_as(apart)
        assert float((apart - constant).abs().max() / ours.abs().max()) < WITHIN
        # What is constant is in b_O, beside the original's own bias.
        bias = torch.zeros(weight.shape[1]).double() if module.bias is None else shown.moved(module.bias.detach())
        assert_near(block.b_O + 1, constant[0, 0].sum(0) + bias + 1)


@pytest.mark.parametrize("name", NAMES)
def test_patterns_are_the_originals(name: str) -> None:
    shown, seen = case(name), clean(name)
    share, P = shown.ours.shape.n_heads // shown.ours.shape.n_kv_heads, TOKENS.shape[1]
    for layer, attention in enumerate(trace(shown.ours, TOKENS).attention):
        keys = attention.k.repeat_interleave(share, 2)
        scores = torch.einsum("bthk,bihk->bhti", attention.q, keys) * shown.ours.softmax_scale
        cap, window = getattr(shown.original.config, "attn_logit_softcapping", None), shown.ours.blocks[layer].window
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        hidden = torch.ones(P, P).triu(1) + torch.ones(P, P).tril(-(window or P))
        pattern = scores.masked_fill(hidden.bool(), -torch.inf).softmax(-1)
        assert_near(pattern, seen.patterns[layer].double())


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_originals_but_for_a_constant_per_position(name: str) -> None:
    shown, seen = case(name), clean(name)
    ours = logits(shown.ours, trace(shown.ours, TOKENS).final)
    cap = shown.ours.logit_cap
    if cap is not None:  # the original's are those before the cap, which changes no order
        assert_near(ours.argsort(-1)[..., -2:].double(), seen.logits.argsort(-1)[..., -2:].double())
        assert float((ours - ours.mean() - seen.logits + seen.logits.mean()).abs().max()) > 1e-2
        seen = replace(seen, logits=cap * (seen.logits / cap).atanh())
    assert_near(ours - ours.mean(-1, keepdim=True), seen.logits - seen.logits.mean(-1, keepdim=True))


def batch(shown: Case, writer: str) -> Batch:
    """The prompts on their way through the model, as measures see them."""
    eraser, asked = f"L{shown.ours.shape.n_layers - 1}H0", Directions(directions=("writer",))
    return Batch(Engine(shown.ours, provider("torch", "cpu")), TOKENS, 0, Roles(writer, (eraser,)), asked)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in JOINT])
def test_a_patched_value_input_is_what_the_original_does_with_it(name: str) -> None:
    """The writer taken out of what the values of a layer read, in the original itself: every later site is ours."""
    shown, layer = case(name), 1
    patched = batch(shown, "L0H2")
    norm = shown.place(layer, 1)
    kind = shown.original.config.model_type
    weight = norm.weight.detach() + (1.0 if kind.startswith("gemma") else 0.0) if shown.ours.pre_norm else 1.0
    removed = shown.moved(patched.writer) / patched.scale(layer)[..., None] * weight
    # The scale of a norm after attention is that of the clean run, as every scale of the layer is.
    held = {shown.place(layer, 5): factor(name, layer)} if shown.ours.blocks[layer].attn_post is not None else None
    after = run(shown, {shown.place(layer, 2): lambda value_input: value_input - removed}, held)
    sites = patched_run(patched, heads_of(layer, shown.ours.shape.n_heads)).sites
    assert_near(sites[0], shown.moved(after.pre[layer] + after.attention[layer]))
    assert_near(sites[-1], shown.moved(after.pre[-1]))
    assert float((after.pre[-1] - clean(name).pre[-1]).abs().max()) > 1e-2


def test_the_scene_is_one_of_awkward_shapes() -> None:
    models = {name: case(name).ours for name in NAMES}
    kinds = {name: case(name).original.config.model_type for name in NAMES}
    assert {name for name in NAMES if not PLACES.get(kinds[name], LLAMA)[2]} == set(JOINT)
    assert {name for name in NAMES if models[name].blocks[0].attn_post is not None} == {"gemma2", "gemma3", *ONLY_AFTER}
    assert {name for name in NAMES if not models[name].pre_norm} == set(ONLY_AFTER)
    assert {name for name in NAMES if models[name].rotary_local is not None} == {"gemma3", "olmo3"}
    reached = {name for name in NAMES if any((block.window or 99) < TOKENS.shape[1] for block in models[name].blocks)}
    assert reached == {"gemma2", "gemma3", "olmo3", "exaone4", "mistral, window reached"}
    shapes = {name: case(name).ours.shape for name in NAMES}
    assert shapes["qwen3"].n_heads * shapes["qwen3"].d_head != shapes["qwen3"].d_model
    assert {name for name in NAMES if case(name).ours.parallel} == {"pythia", "gpt-j", "phi"}
    assert {name for name in NAMES if case(name).ours.blocks[0].q_norm is not None} == {"qwen3", "gemma3", *ONLY_AFTER}
    assert all(shapes[name].d_mlp == shapes[name].d_model for name in NAMES if "square" in name)
    assert np.isclose(case("gpt2, unscaled scores").ours.softmax_scale, 1)
