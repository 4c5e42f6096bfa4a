"""Untrained twins beside a scan: of the model's own architecture, told in the answer, and able to claim something."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import repro
from repro.measures.path_shares import PathShares
from repro.model.decoder import Model
from repro.model.folder import read_folder
from repro.model.forward import trace
from repro.model.load import load
from repro.scan import record
from repro.scan.controls import SETTINGS, calibrated, present_writer
from repro.scan.twin import SCALES, SEED, Twin, claimed, twins_line, untrained_twins
from repro.scan.untrained import twin
from tests import scenes, toys
from tests.runs import Run

NONE = Twin("of an initialiser", SEED, (), True)


@pytest.fixture(autouse=True)
def single(one_thread: None) -> None:
    """Small products are slower on two threads than on one."""


def rms(weights: torch.Tensor) -> float:
    return float(weights.square().mean().sqrt())


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_a_model_at_hand_has_a_twin_of_its_architecture(kind: str) -> None:
    given = scenes.model(kind)
    drawn, other = twin(given, 0, 0.1), twin(given, 1, 0.1)
    for name in ("shape", "center", "eps", "act", "softmax_scale", "parallel", "rotary", "scales"):
        assert getattr(drawn, name) is getattr(given, name)
    for mine, its in zip(drawn.blocks, given.blocks, strict=True):
        for name in vars(its):
            assert getattr(getattr(mine, name), "shape", None) == getattr(getattr(its, name), "shape", None)
        assert mine.rotated == its.rotated
        assert not any(getattr(mine, name).any() for name in ("b_QKV", "b_O", "b_in", "b_out"))
        assert rms(mine.W_in) == pytest.approx(0.1, rel=0.1)
        assert not torch.equal(mine.W_in, its.W_in)
        if mine.q_norm is not None:
            assert torch.equal(mine.q_norm, torch.ones_like(mine.q_norm))
    assert torch.equal(drawn.blocks[0].W_in, twin(given, 0, 0.1).blocks[0].W_in)
    assert not torch.equal(drawn.blocks[0].W_in, other.blocks[0].W_in)
    tokens = torch.from_numpy(scenes.prompts(2, 9))
    assert torch.isfinite(trace(drawn, tokens).final).all()


@pytest.mark.parametrize("kind", ["native", "llama"])
def test_a_twin_at_the_trained_scale_has_the_size_of_every_matrix(kind: str) -> None:
    given = scenes.model(kind)
    drawn = twin(given, 0, None)
    for mine, its in zip((drawn, *drawn.blocks), (given, *given.blocks), strict=True):
        for name in ("W_E", "W_QKV", "W_O", "W_in", "W_out"):
            if hasattr(its, name):
                assert rms(getattr(mine, name)) == pytest.approx(rms(getattr(its, name)), rel=0.15)
    if given.center:
        assert drawn.blocks[0].W_out.mean(-1).abs().max() < 1e-6
        assert rms(twin(given, 0, 0.1).blocks[0].W_out) == pytest.approx(0.1 / 6**0.5, rel=0.1)


def without(model: Model) -> Model:
    """The model with a dead dimension of what attention and MLP write: a weight of zero, as it is kept."""
    blocks = []
    for block in model.blocks:
        assert block.attn_post is not None
        assert block.mlp_post is not None
        dead = torch.ones_like(block.attn_post)
        dead[3] = 1e-15
        made = replace(block, W_O=block.W_O * dead, W_out=block.W_out * dead)
        blocks.append(replace(made, attn_post=block.attn_post * dead, mlp_post=block.mlp_post * dead))
    return replace(model, blocks=tuple(blocks))


def smallest_write(model: Model) -> float:
    """The smallest root mean square, over heads and MLPs, of what one of them writes."""
    seen = trace(model, torch.from_numpy(scenes.prompts(2, 9)))
    heads = [
        torch.einsum("bphk,hkd->hbpd", one.z, block.W_O)
        for one, block in zip(seen.attention, model.blocks, strict=True)
    ]
    written = [*(head for layer in heads for head in layer), *seen.mlp_out]
    return min(rms(out) for out in written)


@pytest.mark.parametrize("kind", scenes.NORMED_AFTER)
@pytest.mark.parametrize("scale", [0.1, None])
def test_every_head_and_mlp_of_a_twin_writes_although_a_norm_follows_it(kind: str, scale: float | None) -> None:
    given = without(scenes.model(kind))
    drawn = twin(given, 0, scale)
    assert smallest_write(given) > 0.01
    assert smallest_write(drawn) > 0.01
    assert all(
        torch.equal(part, torch.ones_like(part))
        for b in drawn.blocks
        for part in (b.attn_post, b.mlp_post)
        if part is not None
    )
    plain = scenes.model(kind).blocks[0]
    if scale is None and plain.mlp_post is not None:
        assert rms(drawn.blocks[0].W_out) == pytest.approx(rms(plain.W_out / plain.mlp_post), rel=0.15)
    # Divided by the trained weights, which it does not contain, nearly all that it writes is gone.
    trained = zip(drawn.blocks, given.blocks, strict=True)
    kept = [replace(mine, attn_post=its.attn_post, mlp_post=its.mlp_post) for mine, its in trained]
    assert smallest_write(replace(drawn, blocks=tuple(kept))) < 1e-9


def toy(name: str, folder: Path) -> Model:
    """One of the architectures, loaded."""
    return load(read_folder(toys.make_kind(folder, name)), "float64", prompts=scenes.prompts(1, 40))


def test_a_twin_keeps_what_the_original_multiplies_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, config = toys.ARCHITECTURES["granite"]
    monkeypatch.setitem(toys.ARCHITECTURES, "granite", (kind, config | {"initializer_range": 0.05}))
    given = toy("granite", tmp_path / "granite")
    drawn = twin(given, 0, 0.1)
    sizes = {name: rms(getattr(drawn, name)) for name in ("W_E", "W_U")}
    sizes |= {name: rms(getattr(drawn.blocks[1], name)) for name in ("W_O", "W_out", "W_in")}
    expected = {"W_E": 0.3, "W_U": 0.1 / 4, "W_O": 0.04, "W_out": 0.04, "W_in": 0.1}
    assert sizes == {name: pytest.approx(size, rel=0.15) for name, size in expected.items()}
    assert given.scales.initial == 0.05
    gemma = toy("gemma", tmp_path / "gemma")
    assert rms(twin(gemma, 0, 0.1).W_E) == pytest.approx(0.1 * gemma.shape.d_model**0.5, rel=0.15)
    by_layer = toy("gpt2, scores scaled by layer", tmp_path / "gpt2")
    width = by_layer.shape.n_heads * by_layer.shape.d_head
    for layer, block in enumerate(twin(by_layer, 0, 0.1).blocks):
        assert rms(block.W_QKV[:, :width]) == pytest.approx(0.1 / (layer + 1), rel=0.15)
        assert rms(block.W_QKV[:, width : 2 * width]) == pytest.approx(0.1, rel=0.15)


def test_queries_keys_and_values_have_the_size_of_their_own() -> None:
    given = scenes.model("llama")
    block, K = given.blocks[0], given.shape.d_head
    sizes = (given.shape.n_heads * K, given.shape.n_kv_heads * K, given.shape.n_kv_heads * K)
    parts = [part * factor for part, factor in zip(block.W_QKV.split(sizes, 1), (1, 5, 25), strict=True)]
    drawn = twin(scenes.changed_block(given, 0, W_QKV=torch.cat(parts, 1)), 0, None).blocks[0]
    for mine, its in zip(drawn.W_QKV.split(sizes, 1), parts, strict=True):
        assert rms(mine) == pytest.approx(rms(its), rel=0.15)
    assert torch.equal(drawn.W_V.transpose(0, 1).flatten(1), drawn.W_QKV[:, -sizes[2] :])


def test_the_first_twin_is_as_wide_as_the_models_own_initialiser(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[float] = []

    def seen(model: Model, *given: Any) -> Twin:
        widths.append(rms(model.blocks[0].W_in))
        return NONE

    monkeypatch.setattr("repro.scan.twin.claimed", seen)
    given = scenes.model("native")
    for model in (given, replace(given, scales=replace(given.scales, initial=0.3))):
        untrained_twins(model, scenes.prompts(2, 9), PathShares(measure="path_shares"))
    assert widths == [
        pytest.approx(size, rel=0.1) for size in (0.02, rms(given.blocks[0].W_in), 0.3, rms(given.blocks[0].W_in))
    ]


def test_a_twin_with_a_planted_eraser_claims_it_and_one_without_does_not() -> None:
    """The negative control of the negative control."""
    setting = next(setting for setting in SETTINGS if setting.name == "planted head")
    model, tokens = setting.drawn(2)
    measure = PathShares(measure="path_shares", stride=4, decoys=32)
    none = claimed(twin(model, 7, 0.02), tokens, measure, "of an initialiser", 7)
    assert none == Twin("of an initialiser", 7, (), True)
    erased = calibrated(setting, model, tokens, writer := present_writer(setting, model, tokens))
    one = claimed(erased, tokens, measure, "planted", 0)
    assert (writer, "L2H1") in [claim[:2] for claim in one.claims]
    assert twins_line([none, one]).startswith("untrained twins: ")
    assert f"at the scale planted ({one.claims[0][0]} by {one.claims[0][1]}, -0." in twins_line([none, one])
    few = claimed(erased, tokens[:4], measure, "planted", 0)
    assert twins_line([few]) == "untrained twins: too few prompts to claim anything"


def test_a_scan_in_memory_tells_of_its_twins() -> None:
    arguments: dict[str, Any] = {"tokens": scenes.prompts(14, 20), "stride": 4, "decoys": 8, "draws": 0}
    found = repro.scan(scenes.model("native"), **arguments, confirm=False, controls=True)
    assert [drawn.scale for drawn in found.twins] == list(SCALES)
    assert twins_line(found.twins) in str(found)
    assert "untrained twins" not in str(repro.scan(scenes.model("native"), **arguments, confirm=False))


def test_the_command_prints_them_keeps_them_and_looks_once(
    finished: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished("native").copy(tmp_path)
    looked: list[np.ndarray] = []

    def twins(model: Model, tokens: np.ndarray, measure: PathShares, **more: Any) -> tuple[Twin, ...]:
        looked.append(tokens)
        real = untrained_twins(model, tokens, measure, **more)
        return (NONE, replace(real[1], claims=(("L0H1", "MLP1", -0.2),)))

    assert json.loads(run.cli("scan", "--json").out)["untrained_twins"] is None
    monkeypatch.setattr("repro.stages.answer.untrained_twins", twins)
    said = run.cli("scan", "--controls")
    assert said.code == 0, said.text
    path = run.result("scan")
    assert [drawn.seed for drawn in (record.load(path) or pytest.fail("nothing kept")).twins] == [SEED, SEED]
    (told,) = [row for row in said.out.splitlines() if "untrained twins: " in row]
    few = "untrained twins: too few prompts to claim anything"  # eight of them, of a model with 171 pairs
    assert told.endswith(few)
    assert [len(tokens) for tokens in looked] == [8]
    again = run.cli("scan", "--json", "--controls")
    assert len(looked) == 1
    assert few in again.err
    document = json.loads(again.out)
    assert [row["scale"] for row in document["untrained_twins"]] == list(SCALES)
    assert document["untrained_twins"][1]["claims"] == [["L0H1", "MLP1", -0.2]]
