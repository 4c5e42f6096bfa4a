"""The start-up self-check: what would be computed wrongly is refused by name, and what is accepted is right in full."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import repro.model.forward
import repro.model.linear
from repro.errors import Exit, ReproError
from repro.model.decoder import Model, Rotary
from repro.model.folder import read_folder
from repro.model.forward import logits, trace
from repro.model.load import load
from repro.model.original import Original, Seen
from repro.model.selfcheck import check_against_original
from tests import toys
from tests.runs import cli
from tests.scenes import model, prompts

TOKENS = torch.from_numpy(prompts(2, 64, seed=3))
DIFFERS = "differs from the original model's"


def _apart(ours: Model, module: Any) -> float:
    """How far logits are from the original's, up to a constant per position, in float64.

    There the originals' rotary angles alone stay float32, which makes up to 2e-5. In float32 Gemma's large stream is
    rounded to 1e-4 on some processors.
    """
    with torch.no_grad():
        moved = logits(ours, trace(ours, TOKENS).final) - module.double()(TOKENS).logits
    return float((moved - moved.mean(-1, keepdim=True)).abs().max())


def refusal(path: Path) -> str:
    """What loading a folder says when it refuses it, with exit code 4."""
    with pytest.raises(ReproError) as caught:
        load(read_folder(path))
    assert caught.value.code == Exit.UNAVAILABLE
    assert str(path) in caught.value.message
    return caught.value.message


def made(path: Path, kind: str, **changes: Any) -> tuple[Path, Any]:
    """A Hugging Face model of some kind, Llama's sizes unless it has its own names for them, in a folder."""
    import transformers

    sizes = toys.LLAMA_SIZES | {"bos_token_id": 0, "eos_token_id": 0}
    if kind in ("GPT2", "GPTBigCode"):
        names = {"n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_embd": "hidden_size"}
        names |= {name: name for name in ("vocab_size", "bos_token_id", "eos_token_id")}
        sizes = {ours: sizes[theirs] for ours, theirs in names.items()} | {"n_positions": 64}
    if kind == "GPTNeo":
        sizes = {"num_layers": 3, "num_heads": 4, "hidden_size": 32, "vocab_size": 61, "max_position_embeddings": 64}
        sizes |= {"attention_types": [[["global", "local", "global"], 1]], "bos_token_id": 0, "eos_token_id": 0}
    if kind in ("GPTNeoX", "OPT"):
        sizes = {key: value for key, value in sizes.items() if key not in ("num_key_value_heads", "intermediate_size")}
    config = getattr(transformers, f"{kind}Config")(**(sizes | changes))
    named = kind.removesuffix("Text")
    module = getattr(transformers, f"{named}ForCausalLM" if named != "GPT2" else "GPT2LMHeadModel")(config)
    return toys.save_hugging_face(module, path), module.eval()


WINDOWED = "not supported: sliding_window = {} in config.json, an attention window, with prompts of any length: "
GEMMA: dict[str, Any] = {"head_dim": 8, "query_pre_attn_scalar": 8}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "sliding window": ("Mistral", {"sliding_window": 8}, WINDOWED.format(8)),
    # Wider than the check's probe is long: the configuration, and not a difference of numbers, tells.
    "wide window": ("Mistral", {"sliding_window": 40}, WINDOWED.format(40)),
    "some windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1},
        WINDOWED.format(40),
    ),
    "biases before a norm": (
        "Gemma2",
        GEMMA | {"attention_bias": True},
        "not supported: attention_bias = True in config",
    ),
    "a cap of zero": ("Gemma2", GEMMA | {"attn_logit_softcapping": 0.0}, "not supported: attn_logit_softcapping = 0.0"),
    "a cap below zero": (
        "Gemma2",
        GEMMA | {"final_logit_softcapping": -3.0},
        "not supported: final_logit_softcapping = -3",
    ),
    "a cap that the original ignores": (
        "Gemma3Text",
        GEMMA | {"attn_logit_softcapping": 5.0},
        "not supported: attn_logit_softcapping = 5.0 (transformers' own model ignores it)",
    ),
    "experts": (
        "Mixtral",
        {"num_local_experts": 2},
        "model_type = 'mixtral' in config.json (experts in place of an MLP)",
    ),
    "rotary that depends on the length": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
        "not supported: rope_parameters.rope_type = 'dynamic' in config.json",
    ),
    "projected embeddings and post-norms": (
        "OPT",
        {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
        "not supported: do_layer_norm_before = False, word_embed_proj_dim = 16 in config.json",
    ),
    "no final norm": ("OPT", {"_remove_final_layer_norm": True}, "not supported: _remove_final_layer_norm = True"),
    "norms of queries": ("StableLm", {"qk_layernorm": True}, "not supported: qk_layernorm = True"),
    "clipped queries": ("Olmo", {"clip_qkv": 8.0}, "not supported: clip_qkv = 8.0"),
    "no rotary": ("Falcon", {"alibi": True}, "not supported: model_type = 'falcon'"),
    "an activation": ("GPT2", {"activation_function": "tanh"}, "not supported: activation_function = 'tanh' (gelu, "),
    "local attention": ("GPTNeo", {"window_size": 40}, "not supported: window_size = 40 in config.json, an attention"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_computed_wrongly_is_refused_by_name(name: str, tmp_path: Path) -> None:
    kind, changes, named = REFUSED[name]
    assert named in refusal(made(tmp_path / "model", kind, **changes)[0])


ACCEPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "no window": ("Mistral", {"sliding_window": None}),
    "query, key and value biases": ("Qwen2", {}),
    "all biases, another eps, stretched rotary": (
        "Llama",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
        },
    ),
    "heads narrower than their share": ("Llama", {"head_dim": 6}),
    "another activation and eps": ("GPT2", {"activation_function": "relu", "layer_norm_epsilon": 1e-3}),
    "sequential blocks": ("GPTNeoX", {"use_parallel_residual": False}),
    "multipliers": ("Granite", {"residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 3.0}),
    "norms after attention, of queries over all heads": ("Olmo2", {}),
    "a window as long as the context": ("Mistral", {"sliding_window": 64}),
    "scaled logits, parallel, interleaved rotary": ("Cohere", {"logit_scale": 0.0625}),
    "scaled scores and logits": ("Granite", {"attention_multiplier": 0.2, "logits_scaling": 4.0}),
    "parallel with one norm": ("StableLm", {"use_parallel_residual": True, "partial_rotary_factor": 0.5}),
    "norms without weights": ("Olmo", {}),
    "joint gate": ("Glm", {"head_dim": 8, "pad_token_id": 0}),
    "interleaved rotary": ("Ernie4_5", {"head_dim": 8}),
    "some layers without rotation": ("SmolLM3", {"no_rope_layers": [1, 0, 1], "pad_token_id": 0}),
    "rotation in windowed layers only": (
        "Cohere2",
        {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "a shared key/value head": ("GPTBigCode", {}),
    "unscaled scores, windows that are not reached": ("GPTNeo", {"window_size": 64}),
    "squared activation": ("Nemotron", {}),
    "an eps of its own name": ("Starcoder2", {"norm_epsilon": 1e-2}),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_accepted_is_right_over_the_whole_context(name: str, tmp_path: Path) -> None:
    kind, changes = ACCEPTED[name]
    path, module = made(tmp_path / "model", kind, **changes)
    assert _apart(load(read_folder(path), "float64"), module) < 1e-4


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a toy's folder that may be damaged."""

    def copy(kind: str) -> Path:
        return Path(shutil.copytree(folders[kind], tmp_path / kind))

    return copy


def changed(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """The folder with a change made to its weights."""
    state = load_file(path / "model.safetensors")
    change(state)
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    return path


UP = {
    "native": "blocks.0.mlp.W_in",
    "gpt2": "transformer.h.0.mlp.c_fc.weight",
    "llama": "model.layers.0.mlp.up_proj.weight",
}
BEYOND = {kind: name.replace("0", "7") for kind, name in UP.items()}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", UP)
def test_weights_that_are_not_finite_are_named(kind: str, value: float, copied: Callable[[str], Path]) -> None:
    path = changed(copied(kind), lambda state: state[UP[kind]].view(-1)[5:6].fill_(value))
    assert f"weights of {UP[kind]} are not finite (NaN or infinite)" in refusal(path)


@pytest.mark.parametrize("kind", UP)
def test_missing_weights_are_refused_and_never_made_up(kind: str, copied: Callable[[str], Path]) -> None:
    said = refusal(changed(copied(kind), lambda state: state.pop(UP[kind])))
    assert "the weights do not fit config.json: missing " + UP[kind] in said


@pytest.mark.parametrize("kind", UP)
def test_weights_of_another_shape_are_refused(kind: str, copied: Callable[[str], Path]) -> None:
    said = refusal(changed(copied(kind), lambda state: state.update({UP[kind]: state[UP[kind]][:-1].contiguous()})))
    assert ("mismatched " + UP[kind] in said) or ("in the weights is [31, 48]" in said and kind == "native")


@pytest.mark.parametrize("kind", UP)
def test_weights_of_a_layer_that_the_configuration_lacks_are_refused(kind: str, copied: Callable[[str], Path]) -> None:
    said = refusal(changed(copied(kind), lambda state: state.update({BEYOND[kind]: state[UP[kind]].clone()})))
    assert "the weights do not fit config.json: unexpected " + BEYOND[kind] in said


@pytest.mark.parametrize("kind", UP)
@pytest.mark.parametrize(
    ("kept", "why"),
    [(slice(-1000), "cut off, "), (slice(8, None), "not a safetensors file"), (slice(0), "an empty file")],
    ids=["cut off", "no header", "empty"],
)
def test_unreadable_weights_are_refused(kind: str, kept: slice, why: str, copied: Callable[[str], Path]) -> None:
    path = copied(kind)
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[kept])
    said = refusal(path)
    assert f"model.safetensors: {why}" in said


def test_a_pth_file_that_runs_code_is_refused(copied: Callable[[str], Path]) -> None:
    path = copied("native")
    (path / "model.safetensors").unlink()
    torch.save({"embed.W_E": Path("/"), "large": torch.zeros(50_000)}, path / "some_final.pth")
    assert "some_final.pth: holds more than tensors; refused" in refusal(path)


def wrong_scale(model: Any, x: torch.Tensor) -> torch.Tensor:
    """A norm's denominator without the mean square's root being taken of a centred stream."""
    return torch.sqrt(x.square().mean(-1) + 2 * model.eps + 0.1)


MISCOMPUTED: dict[str, tuple[str, dict[str, Any], str]] = {
    "activation": ("native", {"ACTIVATIONS": {"gelu": F.relu}}, "MLP0"),
    "tanh for erf": ("native", {"ACTIVATIONS": {"gelu": lambda x: F.gelu(x, approximate="tanh")}}, "MLP0"),
    "norm": ("gpt2", {"normed": lambda model, x: F.layer_norm(x, x.shape[-1:], eps=0.1)}, "z of layer 0"),
    "scale": ("llama", {"norm_scale": wrong_scale}, "ln1 scale of layer 0"),
    "no rotation": ("llama", {"rotate": lambda rotary, x: x}, "z of layer 0"),
    "positions": ("gpt2", {"embed": lambda model, tokens: model.W_E[tokens]}, "resid_pre0"),
    "no output bias": (
        "native",
        {"attn_out": lambda model, layer, z: torch.einsum("bphk,hkd->bpd", z, model.blocks[layer].W_O)},
        "the attention of layer 0",
    ),
}


@pytest.mark.parametrize("name", MISCOMPUTED)
def test_a_pass_that_computes_something_else_is_caught(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, wrong, quantity = MISCOMPUTED[name]
    assert load(read_folder(folders[kind])).shape.n_layers == 3
    for attribute, value in wrong.items():
        monkeypatch.setattr(repro.model.linear if attribute == "ACTIVATIONS" else repro.model.forward, attribute, value)
    assert f"{folders[kind]}: {quantity} {DIFFERS}" in refusal(folders[kind])


def late(rotary: Rotary, x: torch.Tensor) -> torch.Tensor:
    """Rotation that goes wrong from position 30 on, as a window or a scaling for long texts would."""
    turned = ROTATE(rotary, x)
    return torch.cat((turned[:, :30], 0.5 * turned[:, 30:]), 1)


ROTATE = repro.model.forward.rotate


def test_what_binds_late_is_seen_on_the_subjects_own_prompt(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repro.model.forward, "rotate", late)
    folder = read_folder(folders["llama"])
    load(folder)  # the probe is too short
    load(folder, prompts=prompts(2, 30))
    with pytest.raises(ReproError, match=f"z of layer 0 {DIFFERS}"):
        load(folder, prompts=prompts(2, 31))
    answer = cli("run", "--subject", folders["llama"], "--out", tmp_path, "--prompts", "4")
    assert answer.code == Exit.UNAVAILABLE
    assert f"z of layer 0 {DIFFERS}" in answer.err
    assert not [path for path in tmp_path.rglob("*") if path.name in ("units", "COMMIT")]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Mistral", {"sliding_window": 10}),
        ("GPTNeo", {"window_size": 10}),
        ("Gemma3Text", GEMMA | {"sliding_window": 10}),
    ],
)
def test_windows_that_the_prompts_reach_are_compared_with_the_originals(
    kind: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, module = made(tmp_path / "model", kind, **changes)
    assert _apart(load(read_folder(path), "float64", prompts=prompts(2, 40)), module) < 1e-4
    # Negative control: a window that is longer by one position, or none, is refused where prompts reach it.
    for wider in (lambda _: dict.fromkeys(range(3), 11), lambda _: {}):
        monkeypatch.setattr(repro.model.original, "windows", wider)
        with pytest.raises(ReproError, match=f"z of layer [01] {DIFFERS}"):
            load(read_folder(path), prompts=prompts(2, 40))


def test_gemma_3_loads_with_the_keys_of_its_own_repositories(tmp_path: Path) -> None:
    """Those of 2025: bases of rotary positions by name, a number that says which layers have a window."""
    path = toys.make_kind(tmp_path / "model", "gemma3")
    config = json.loads((path / "config.json").read_text())
    new = load(read_folder(path), prompts=prompts(1, 40))
    old = {key: value for key, value in config.items() if key not in ("layer_types", "rope_parameters")}
    old |= {"rope_theta": 1_000_000, "rope_local_base_freq": 10_000, "rope_scaling": None, "sliding_window_pattern": 2}
    (path / "config.json").write_text(json.dumps(old | {"cache_implementation": "hybrid", "torch_dtype": "bfloat16"}))
    found = load(read_folder(path), prompts=prompts(1, 40))
    assert [block.window for block in found.blocks] == [block.window for block in new.blocks] == [5, None, 5]
    assert (trace(found, TOKENS).final == trace(new, TOKENS).final).all()
    # Negative control: another local base is another model.
    (path / "config.json").write_text(json.dumps(old | {"rope_local_base_freq": 500}))
    assert (trace(load(read_folder(path), prompts=prompts(1, 40)), TOKENS).final != trace(new, TOKENS).final).any()


def test_a_norm_after_attention_may_silence_dimensions(tmp_path: Path) -> None:
    """Weights of exactly zero, as -1 + 1 is in bf16: what is written there is nothing, and the scale is not lost."""
    path = toys.make_kind(tmp_path / "model", "gemma2")
    weights = load_file(str(path / "model.safetensors"))
    for name in weights:
        if "post_" in name:
            weights[name][::3] = -1.0
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    found = load(read_folder(path), "float64", prompts=prompts(1, 40))
    assert float(found.blocks[0].W_O[..., ::3].abs().max()) < 1e-14
    out = trace(found, TOKENS).mlp_out[1]
    assert float(out[..., ::3].abs().max()) < 1e-12 * float(out.abs().max())


def test_a_cap_of_logits_is_compared_with_the_originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that is too small for the cap to bind would not show it, nor do logits before it."""
    path, module = made(tmp_path / "model", "Gemma2", **GEMMA, sliding_window=64)
    ours = load(read_folder(path))
    assert (ours.logit_cap, ours.score_cap) == (30.0, 50.0)
    with torch.no_grad():
        scores, theirs = logits(ours, trace(ours, TOKENS).final), module(TOKENS).logits
    assert torch.equal(scores.topk(2).indices, theirs.topk(2).indices)
    process = repro.model.load.process
    for changed, said in (({"logit_cap": 29.0}, "the cap of the logits"), ({"score_cap": 1.0}, "z of layer 0")):

        def other(*given: Any, changed: dict[str, Any] = changed) -> Any:
            model, biases = process(*given)
            return replace(model, **changed), biases

        monkeypatch.setattr(repro.model.load, "process", other)
        with pytest.raises(ReproError, match=f"{said} {DIFFERS}"):
            load(read_folder(path))


def agreeing(given: Model, raw_logits: torch.Tensor) -> Original:
    """An original model that agrees with everything of a model's own pass but for what logits are given."""
    passed = trace(given, TOKENS)
    parts = {"final": passed.final}
    for layer, seen in enumerate(passed.attention):
        heads = torch.einsum("bphk,hkd->bpd", seen.z, given.blocks[layer].W_O)
        parts |= {f"resid_{at}{layer}": passed.sites[2 * layer + step] for step, at in enumerate(("pre", "mid"))}
        parts |= {f"z{layer}": seen.z.flatten(2), f"attention{layer}": heads + given.blocks[layer].b_O}
        parts[f"MLP{layer}"] = passed.mlp_out[layer]
    return Original(None, None, (Seen(TOKENS, parts, raw_logits, raw_logits),), {"seed": 0, "n_head": 4})


def test_the_logits_must_be_the_originals_but_for_a_constant(folders: dict[str, Path]) -> None:
    good, folder = model("native"), read_folder(folders["native"])
    raw = logits(good, trace(good, TOKENS).final)
    biases = [torch.zeros(())] * good.shape.n_layers
    check_against_original(folder, agreeing(good, raw + 3.0), good, biases)
    for broken, given in ((good, raw * 1.001), (good, raw.flip(-1)), (replace(good, W_U=good.W_U * torch.nan), raw)):
        said = "the vector of logits differs .* refused; not the architecture's defaults in config.json: seed = 0$"
        with pytest.raises(ReproError, match=said):
            check_against_original(folder, agreeing(good, given), broken, biases)


def test_positions_that_are_not_finite_in_the_original_are_left_out(folders: dict[str, Path]) -> None:
    good, folder = model("native"), read_folder(folders["native"])
    biases = [torch.zeros(())] * good.shape.n_layers
    overflowing = agreeing(good, logits(good, trace(good, TOKENS).final))
    parts = overflowing.seen[0].parts
    for name in parts:
        parts[name] = parts[name].index_fill(1, torch.arange(40, 64), torch.inf)
    overflowing.seen[0].logits[:, 40:] = torch.nan
    check_against_original(folder, overflowing, good, biases)
    parts["MLP1"][1, 39, 0] += 1
    with pytest.raises(ReproError, match="MLP1 differs"):
        check_against_original(folder, overflowing, good, biases)


def test_loading_says_nothing(folders: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in folders:
            load(read_folder(folders[kind]))
    assert capfd.readouterr() == ("", "")
