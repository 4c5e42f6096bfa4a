"""The model boundary: processing and activations against the library and by hand, and what a configuration may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from repro.errors import Exit, ReproError
from repro.model.casting import cast
from repro.model.folder import read_folder
from repro.model.forward import attn_out, logits, norm_scale, trace
from repro.model.load import load
from repro.process import quiet
from tests import toys
from tests.scenes import assert_close, is_close, model, prompts

KINDS = ("native", "gpt2", "llama")
ROUNDED = 1e-6  # the library rounds processed weights to float32, whatever their type
TOKENS = torch.from_numpy(prompts(2, 64, seed=2))  # the whole context, longer than the start-up check's probe


def original(path: Path) -> Any:
    """The library's own model of a folder, unprocessed: its native bridge, or Hugging Face's module."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources.native import boot
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint
    from transformers import AutoModelForCausalLM

    config = json.loads((path / "config.json").read_text())
    with quiet():
        if "model_type" in config:
            return AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
        config["normalization_type"] = config.pop("normalization")
        bridge = boot(TransformerBridgeConfig(**config, init_weights=False))
        state = convert_tl_checkpoint(load_file(path / "model.safetensors"), bridge.cfg)
        bridge.load_state_dict(state, strict=True)
        return bridge.eval()


def processed_bridge(path: Path) -> Any:
    """The library's bridge around it, processed by the library."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    module = original(path)
    with quiet(), torch.no_grad():
        bridge = module
        if not hasattr(module, "enable_compatibility_mode"):
            name = module.config.architectures[0]
            bridge = build_bridge_from_module(
                module, architecture=name, hf_config=module.config, dtype=torch.float32, model_name=name
            )
        bridge.enable_compatibility_mode(disable_warnings=True)
    return bridge


def off(ours: Any, theirs: Any) -> float:
    """Largest deviation relative to the largest value."""
    ours, theirs = torch.as_tensor(ours).detach().double(), torch.as_tensor(theirs).detach().double()
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-9))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_activations_are_the_librarys(kind: str, folders: dict[str, Path]) -> None:
    ours, theirs = load(read_folder(folders[kind])), processed_bridge(folders[kind])
    shape = ours.shape
    with torch.no_grad():
        _, cache = theirs.run_with_cache(TOKENS)
        passed = trace(ours, TOKENS)
    pairs = [
        (ours.W_E, theirs.W_E),
        (ours.W_U, theirs.W_U),
        (passed.final, cache[f"blocks.{shape.n_layers - 1}.hook_resid_post"]),
    ]
    pairs += [] if ours.W_pos is None else [(ours.W_pos, theirs.W_pos)]
    for layer, block in enumerate(ours.blocks):
        name, attn = f"blocks.{layer}", theirs.blocks[layer].attn
        widths = [shape.n_heads * shape.d_head] + 2 * [shape.n_kv_heads * shape.d_head]
        for packed, x in zip(block.W_QKV.split(widths, 1), "QKV", strict=True):
            pairs.append((packed.unflatten(1, (-1, shape.d_head)).transpose(0, 1), getattr(attn, f"W_{x}")))
        pairs += [(block.W_V, attn.W_V), (block.W_O, attn.W_O), (block.W_out, theirs.blocks[layer].mlp.W_out)]
        seen = passed.attention[layer]
        pairs += [
            (passed.sites[2 * layer], cache[f"{name}.hook_resid_pre"]),
            (passed.sites[2 * layer + 1], cache[f"{name}.hook_resid_mid"]),
            (seen.z, cache[f"{name}.attn.hook_z"].reshape(seen.z.shape)),
            (attn_out(ours, layer, seen.z), cache[f"{name}.hook_attn_out"]),
            (passed.mlp_out[layer], cache[f"{name}.hook_mlp_out"]),
            (norm_scale(ours, passed.sites[2 * layer]), cache[f"{name}.ln1.hook_scale"].squeeze(-1)),
        ]
    assert max(off(a, b) for a, b in pairs) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_original_models_up_to_a_constant_per_position(kind: str, folders: dict[str, Path]) -> None:
    ours, module = load(read_folder(folders[kind]), "float64"), original(folders[kind]).double()
    with torch.no_grad():
        raw = module(TOKENS)
        moved = logits(ours, trace(ours, TOKENS).final) - (raw if isinstance(raw, torch.Tensor) else raw.logits)
    assert float((moved - moved.mean(-1, keepdim=True)).abs().max()) < 1e-4
    assert float(moved.abs().max()) > 1e-3  # processing did centre the unembedding


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_sites_and_patterns_are_the_unprocessed_models(kind: str, folders: dict[str, Path]) -> None:
    module, ours = original(folders[kind]), load(read_folder(folders[kind]))
    with torch.no_grad():
        raw = module(TOKENS, output_hidden_states=True, output_attentions=True)
        passed = trace(ours, TOKENS)
    for layer in range(ours.shape.n_layers):  # the last hidden state comes after the final norm
        hidden = raw.hidden_states[layer]
        # Centring the writing weights takes the mean out of a LayerNorm model's stream, and leaves RMSNorm's as it is.
        expected = hidden - hidden.mean(-1, keepdim=True) if kind == "gpt2" else hidden
        assert off(passed.sites[2 * layer], expected) < 1e-5
        seen = passed.attention[layer]
        keys = seen.k.repeat_interleave(ours.shape.n_heads // ours.shape.n_kv_heads, 2)
        scores = torch.einsum("bthk,bihk->bhti", seen.q, keys) * ours.softmax_scale
        pattern = (scores + torch.full((64, 64), -torch.inf).triu(1)).softmax(-1)
        assert off(pattern, raw.attentions[layer]) < 1e-5


def by_hand(path: Path) -> dict[str, np.ndarray]:
    """A native checkpoint processed from the definitions: fold norms, fold value biases, centre what is centred."""
    w = {name: tensor.double().numpy() for name, tensor in load_file(path / "model.safetensors").items()}
    layer_norm = "ln_final.b" in w

    def centred(x: np.ndarray, axis: int) -> np.ndarray:
        return x - x.mean(axis, keepdims=True)

    def fold(norm: str, weight: str, bias: str) -> None:
        if layer_norm:
            w[bias] = w[bias] + np.tensordot(w[f"{norm}.b"], w[weight], (0, w[weight].ndim - 2))
        w[weight] = w[weight] * w[f"{norm}.w"][:, None]
        w[weight] = centred(w[weight], -2) if layer_norm else w[weight]

    for layer in range(json.loads((path / "config.json").read_text())["n_layers"]):
        at = f"blocks.{layer}"
        for x in "QKV":
            fold(f"{at}.ln1", f"{at}.attn.W_{x}", f"{at}.attn.b_{x}")
        for name in ("in", "gate") if f"{at}.mlp.W_gate" in w else ("in",):
            fold(f"{at}.ln2", f"{at}.mlp.W_{name}", f"{at}.mlp.b_{name}")
        W_O = w[f"{at}.attn.W_O"]
        values = np.repeat(w.pop(f"{at}.attn.b_V"), len(W_O) // len(w[f"{at}.attn.W_V"]), 0)
        w[f"{at}.attn.b_O"] = w[f"{at}.attn.b_O"] + np.einsum("hk,hkd->d", values, W_O)
        for name in ("attn.W_O", "attn.b_O", "mlp.W_out", "mlp.b_out") if layer_norm else ():
            w[f"{at}.{name}"] = centred(w[f"{at}.{name}"], -1)
    fold("ln_final", "unembed.W_U", "unembed.b_U")
    w["unembed.W_U"], w["unembed.b_U"] = centred(w["unembed.W_U"], 1), centred(w["unembed.b_U"], 0)
    for name in ("embed.W_E", "pos_embed.W_pos") if layer_norm else ():
        w[name] = centred(w[name], -1)
    return w


@pytest.mark.parametrize("changes", [{}, toys.ROTARY], ids=["layer_norm", "rms_norm"])
def test_processing_is_its_definition(changes: dict[str, Any], tmp_path: Path) -> None:
    path = toys.make_native(tmp_path / "model", **changes)
    ours, expected = load(read_folder(path), "float64"), by_hand(path)
    raw = load_file(path / "model.safetensors")
    assert_close(ours.W_E, expected["embed.W_E"], ROUNDED)
    assert_close(ours.W_U, expected["unembed.W_U"], ROUNDED)
    assert_close(ours.b_U, expected["unembed.b_U"], ROUNDED)
    if ours.W_pos is not None:
        assert_close(ours.W_pos, expected["pos_embed.W_pos"], ROUNDED)
    H, G, K = ours.shape.n_heads, ours.shape.n_kv_heads, ours.shape.d_head
    for layer, block in enumerate(ours.blocks):
        w = {name.removeprefix(f"blocks.{layer}."): array for name, array in expected.items()}
        packed = np.concatenate([w[f"attn.W_{x}"] for x in "QKV"]).transpose(1, 0, 2).reshape(ours.shape.d_model, -1)
        assert_close(block.W_QKV, packed, ROUNDED)
        assert_close(
            block.b_QKV, np.concatenate([w["attn.b_Q"].ravel(), w["attn.b_K"].ravel(), np.zeros(G * K)]), ROUNDED
        )
        assert_close(block.W_V, w["attn.W_V"], ROUNDED)
        assert_close(block.W_O, w["attn.W_O"], ROUNDED)
        assert_close(block.b_O, w["attn.b_O"], ROUNDED)
        assert_close(block.W_in, w["mlp.W_in"], ROUNDED)
        assert_close(block.W_out, w["mlp.W_out"], ROUNDED)
        if block.W_gate is None:
            assert_close(block.b_in, w["mlp.b_in"], ROUNDED)
            assert_close(block.b_out, w["mlp.b_out"], ROUNDED)
        else:
            assert_close(block.W_gate, w["mlp.W_gate"], ROUNDED)
        assert is_close(block.W_O, raw[f"blocks.{layer}.attn.W_O"]) == (not ours.center)
        assert not is_close(block.b_O, raw[f"blocks.{layer}.attn.b_O"])
    assert block.W_QKV.shape == (ours.shape.d_model, (H + 2 * G) * K)
    assert is_close(ours.W_E, raw["embed.W_E"]) == (not ours.center)  # tied or not, folding does not reach W_E


def test_a_pth_file_is_the_same_model(folders: dict[str, Path], tmp_path: Path) -> None:
    toys.write_prompts(tmp_path)
    (tmp_path / "config.json").write_bytes((folders["native"] / "config.json").read_bytes())
    torch.save(load_file(folders["native"] / "model.safetensors"), tmp_path / "gelu_final.pth")
    ours, theirs = (load(read_folder(path)) for path in (tmp_path, folders["native"]))
    assert torch.equal(ours.blocks[1].W_QKV, theirs.blocks[1].W_QKV)
    torch.save(
        load_file(folders["native"] / "model.safetensors") | {"embed.W_E": "no tensor"}, tmp_path / "gelu_final.pth"
    )
    assert "'embed.W_E' is not a named dense tensor" in refusal(tmp_path)


def test_precision_is_that_of_every_tensor(folders: dict[str, Path]) -> None:
    for precision, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        ours = load(read_folder(folders["llama"]), precision)
        assert ours.rotary is not None
        tensors = [ours.W_E, ours.W_U, ours.b_U, ours.rotary.cos]
        tensors += [part for block in ours.blocks for part in vars(block).values()]
        assert {part.dtype for part in tensors if isinstance(part, torch.Tensor)} == {dtype}
    assert cast(model("native"), torch.float32, "cpu").blocks[0].b_gate is None


def refusal(path: Path) -> str:
    """What loading a folder says when it refuses it, with exit code 4."""
    with pytest.raises(ReproError) as caught:
        load(read_folder(path))
    assert caught.value.code == Exit.UNAVAILABLE
    assert str(path) in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"parallel_attn_mlp": True}, "not supported: parallel_attn_mlp = True"),
        ({"use_local_attn": True}, "not supported: use_local_attn = True"),
        ({"attn_scale": 2.0}, "not supported: attn_scale = 2.0"),
        ({"attention_dir": "bidirectional"}, "not supported: attention_dir = 'bidirectional'"),
        ({"shortformer_pos": True}, "not supported: shortformer_pos = True"),
        (toys.ROTARY | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "not supported: rope_scaling = "),
        (toys.ROTARY | {"rotary_adjacent_pairs": False}, "must set rotary_adjacent_pairs = true"),
        ({"attn_scores_soft_cap": 5.0}, "not supported: attn_scores_soft_cap = 5.0"),
        ({"output_logits_soft_cap": 5.0}, "not supported: output_logits_soft_cap = 5.0"),
        ({"act_fn": "solu"}, "not supported: act_fn = 'solu'"),
        ({"positional_embedding_type": "alibi"}, "not supported: positional_embedding_type = 'alibi'"),
        ({"normalization": "none"}, "not supported: normalization = 'none'"),
        ({"normalization": None, "final_rms": True}, "not supported: normalization_type = None in config.json"),
        ({"positional_embedding_type": None}, "not supported: positional_embedding_type = None in config.json"),
        ({"final_rms": True}, "not supported: final_rms = True in config.json, another kind of final norm"),
        ({"d_vocab": 60}, "config.json says d_vocab = 60, d_model = 32, and embed.W_E in the weights is [61, 32]"),
        ({"n_heads": 8, "d_head": 4}, "blocks.0.attn.W_"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) and len(value) < 3 else None,
)
def test_a_native_configuration_that_would_be_computed_wrongly_is_refused(
    changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    weights_of = {key: value for key, value in changes.items() if key in toys.ROTARY}
    path = toys.make_native(tmp_path / "model", **(weights_of if "d_model" in changes else {}))
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))
    assert named in refusal(path)
