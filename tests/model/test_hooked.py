"""Checkpoints as `torch.save(HookedTransformer.state_dict())` left them: buffers, fewer outputs, folded norms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from repro.errors import Exit, ReproError
from repro.kernels.select import provider
from repro.measures.batch import Engine
from repro.model.decoder import Model
from repro.model.folder import read_folder
from repro.model.forward import logits, trace
from repro.model.load import load
from tests import oracle, toys
from tests.scenes import assert_close, prompts

TOKENS = prompts(2, 40, seed=7)


def hooked(path: Path, more: dict[str, Tensor], **changes: Any) -> Path:
    """A folder with the checkpoint of a native toy as HookedTransformer saves it: one `.pth`, with further tensors."""
    folder = toys.make_native(path, **changes)
    state = load_file(folder / "model.safetensors")
    torch.save({**state, **more}, folder / "toy_final.pth")
    (folder / "model.safetensors").unlink()
    return folder


def buffers(ignore: float, layers: int = 3, n_ctx: int = 64) -> dict[str, Tensor]:
    """The causal mask and the score of what it hides, of every layer."""
    mask = torch.tril(torch.ones(n_ctx, n_ctx)).bool()
    at = [f"blocks.{layer}.attn" for layer in range(layers)]
    return {f"{name}.mask": mask for name in at} | {f"{name}.IGNORE": torch.tensor(ignore) for name in at}


def assert_same(ours: Model, theirs: Model) -> None:
    """The same weights in both."""
    for name, tensor in vars(theirs.blocks[-1]).items():
        other = getattr(ours.blocks[-1], name)
        assert torch.equal(other, tensor) if isinstance(tensor, Tensor) else other == tensor
    assert torch.equal(ours.W_U, theirs.W_U)
    assert torch.equal(ours.W_E, theirs.W_E)


@pytest.mark.parametrize("ignore", [-1e5, -torch.inf], ids=["-1e5", "-inf"])
def test_a_state_dict_with_its_buffers_is_the_model_without_them(ignore: float, tmp_path: Path) -> None:
    with_buffers = load(read_folder(hooked(tmp_path / "hooked", buffers(ignore))), "float64", prompts=TOKENS)
    assert_same(with_buffers, load(read_folder(toys.make_native(tmp_path / "plain")), "float64"))


def test_other_infinite_tensors_are_still_refused(tmp_path: Path) -> None:
    folder = hooked(tmp_path / "hooked", buffers(-torch.inf) | {"blocks.1.ln1.b": torch.full((32,), -torch.inf)})
    with pytest.raises(ReproError, match=r"weights of blocks\.1\.ln1\.b are not finite"):
        load(read_folder(folder))


def tables(base: float, n_ctx: int = 64, rotated: int = 6) -> dict[str, Tensor]:
    """Rotary tables as HookedTransformer holds them, neighbours sharing an angle."""
    angles = torch.arange(n_ctx)[:, None] / base ** (torch.arange(0, rotated, 2) / rotated)
    angles = angles.repeat_interleave(2, 1)
    return {f"blocks.{x}.attn.rotary_{f}": getattr(angles, f)() for x in range(2) for f in ("sin", "cos")}


def test_rotary_tables_must_be_those_of_the_configuration(tmp_path: Path) -> None:
    right = load(read_folder(hooked(tmp_path / "right", tables(100), **toys.ROTARY)), "float64")
    assert_same(right, load(read_folder(toys.make_native(tmp_path / "plain", **toys.ROTARY)), "float64"))
    with pytest.raises(ReproError, match=r"blocks\.0\.attn\.rotary_sin in the weights is not the table of the rotary"):
        load(read_folder(hooked(tmp_path / "wrong", tables(101), **toys.ROTARY)))


def fewer(folder: Path, outputs: int) -> Path:
    """The folder with only the first tokens predicted."""
    state = torch.load(folder / "toy_final.pth")
    state["unembed.W_U"], state["unembed.b_U"] = state["unembed.W_U"][:, :outputs], state["unembed.b_U"][:outputs]
    torch.save(state, folder / "toy_final.pth")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"d_vocab_out": outputs}))
    return folder


def test_a_model_that_predicts_fewer_tokens_than_it_reads(tmp_path: Path) -> None:
    ours = load(read_folder(fewer(hooked(tmp_path / "hooked", buffers(-1e5)), 50)), "float64", prompts=TOKENS)
    whole = load(read_folder(toys.make_native(tmp_path / "plain")), "float64")
    assert (ours.W_E.shape[0], ours.W_U.shape[1], ours.b_U.shape[0]) == (61, 50, 50)
    found, expected = (logits(each, trace(each, torch.from_numpy(TOKENS)).final)[..., :50] for each in (ours, whole))
    apart = found - expected
    assert_close(apart, apart.mean(-1, keepdim=True).expand_as(apart))
    engine = Engine(ours, provider("torch", "cpu"))
    assert torch.equal(engine.unembedding_rows(torch.tensor([[0, 49]]))[0, 1], ours.W_U[:, 49])
    with pytest.raises(ReproError, match="token id 50 has no logit: the model predicts only the first 50 tokens") as no:
        engine.unembedding_rows(torch.tensor([3, 50]))
    assert no.value.code == Exit.FAILED


@pytest.mark.parametrize("changes", [{"d_mlp": 32}, toys.ROTARY | {"d_mlp": 24}], ids=["plain", "gated"])
def test_a_square_mlp_is_read_the_right_way_round(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = toys.make_native(tmp_path / "square", **changes)
    ours, raw = load(read_folder(folder), "float64", prompts=TOKENS), load_file(folder / "model.safetensors")
    assert ours.shape.d_mlp == ours.shape.d_model
    for layer, block in enumerate(ours.blocks):
        folded = raw[f"blocks.{layer}.ln2.w"].double()[:, None] * raw[f"blocks.{layer}.mlp.W_in"].double()
        assert_close(block.W_in, folded - folded.mean(0) if ours.center else folded, within=1e-12)
    seen = oracle.forward(ours, TOKENS)
    assert_close(trace(ours, torch.from_numpy(TOKENS)).sites, seen.sites)


@pytest.mark.parametrize("kind", ["LNPre", "RMSPre"])
def test_a_checkpoint_whose_norms_are_folded_already(kind: str, tmp_path: Path) -> None:
    """HookedTransformer saves processed weights without norms and says so in the configuration."""
    changes = {} if kind == "LNPre" else toys.ROTARY
    folder = toys.make_native(tmp_path / "folded", **changes)
    state = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if ".ln" not in name}
    state = {name: tensor for name, tensor in state.items() if not name.startswith("ln_final")}
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "toy_final.pth")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"normalization": kind}))
    ours = load(read_folder(folder), "float64", prompts=TOKENS)
    W_in = state["blocks.0.mlp.W_in"].double()
    assert_close(ours.blocks[0].W_in, W_in - W_in.mean(0) if kind == "LNPre" else W_in, within=1e-12)
    assert np.isfinite(ours.W_U.numpy()).all()
