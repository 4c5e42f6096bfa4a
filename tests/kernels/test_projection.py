"""Projection: every provider against float64, an independent Gram form, and what a projection must obey."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from repro.kernels import fused, outputs, reference, select, tiled
from repro.kernels.errors import KernelError, ShapeError, UnsupportedError
from repro.kernels.launch import precision
from tests.kernel_helpers import (
    ALONE,
    PRECISION,
    PROVIDERS,
    SHAPES,
    WHOLE_CONTEXT,
    Shape,
    agree,
    apart,
    as_accurate,
    kernels,
    poisoned,
    projection_arguments,
    randn,
    shapes_to,
    wide,
)

PROJECTIONS = (*PROVIDERS, ALONE)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "dtype"), PROJECTIONS)
def test_agrees_with_float64(name: str, dtype: torch.dtype, shape: Shape) -> None:
    arguments = projection_arguments(shape, dtype)
    vectors = {"v": arguments["of"][:2], "of": arguments["of"]}
    with poisoned():
        got = kernels(name).projection(**arguments)
        onto = kernels(name).projection_onto_vectors(**vectors)
    agree(got, reference.projection(**wide(arguments)), PRECISION[dtype])
    agree(onto, reference.projection_onto_vectors(**wide(vectors)), PRECISION[dtype])
    if dtype == torch.float32:
        as_accurate(got, reference.projection(**arguments), reference.projection(**wide(arguments)))


@pytest.mark.parametrize(("name", "dtype"), PROJECTIONS)
def test_agrees_over_a_whole_context(name: str, dtype: torch.dtype) -> None:
    arguments = projection_arguments(WHOLE_CONTEXT, dtype)
    with poisoned():
        got = kernels(name).projection(**arguments)
    agree(got, reference.projection(**wide(arguments)), PRECISION[dtype])


def test_reference_equals_the_gram_form() -> None:
    """<a, z W_O> = <a W_O^T, z> and |z W_O|^2 = z (W_O W_O^T) z^T: an oracle that never forms head outputs."""
    arguments = projection_arguments(Shape(B=2, P=5, H=3, K=7, D=11, S=4), torch.float64)
    z, W_O, of = arguments.values()
    gram = W_O @ W_O.transpose(1, 2)
    read = torch.stack([of @ W_O[h].T for h in range(len(W_O))], dim=1)
    num = (read * z.permute(2, 0, 1, 3)).sum(-1)
    norm2 = torch.stack([((z[:, :, h] @ gram[h]) * z[:, :, h]).sum(-1) for h in range(len(W_O))])
    agree(reference.projection(z, W_O, of), (num, norm2), "ieee")


@pytest.mark.parametrize(("name", "dtype"), PROJECTIONS)
def test_a_head_that_wrote_nothing_has_no_ratio(name: str, dtype: torch.dtype) -> None:
    arguments = projection_arguments(SHAPES[1], dtype)
    arguments["z"][:, 3] = 0
    with poisoned():
        num, norm2 = kernels(name).projection(**arguments)
    assert num[..., 3].eq(0).all()
    assert norm2[..., 3].eq(0).all()
    assert (num / norm2)[..., 3].isnan().all()
    assert (num / norm2)[..., :3].isfinite().all()


@pytest.mark.parametrize(("name", "dtype"), PROJECTIONS)
def test_ratio_of_a_vector_on_itself_is_one_and_changes_sign_with_it(name: str, dtype: torch.dtype) -> None:
    v = randn(2, 17, 96, dtype=dtype)
    num, norm2 = kernels(name).projection_onto_vectors(v=v[None], of=torch.stack([v, -v]))
    ones = torch.ones(1, 2, 17).double()
    agree((num[0] / norm2, num[1] / norm2), (ones, -ones), "ieee")


@pytest.mark.parametrize(("name", "dtype"), PROJECTIONS)
def test_linear_in_the_component(name: str, dtype: torch.dtype) -> None:
    arguments = projection_arguments(SHAPES[1], torch.float32) | {
        "of": randn(2, 2, 63, 96, dtype=torch.float32).round()
    }
    a, b = arguments["of"]
    stacked = {**arguments, "of": torch.stack([a, b, 2 * a - b])}
    num, _ = kernels(name).projection(**{key: tensor.to(dtype) for key, tensor in stacked.items()})
    agree((num[2],), (2 * num[0].double() - num[1].double(),), "tf32x3")


@pytest.mark.parametrize(("name", "dtype"), PROJECTIONS)
def test_strides_do_not_matter(name: str, dtype: torch.dtype) -> None:
    arguments = projection_arguments(SHAPES[1], dtype)
    moved = {key: apart(tensor) for key, tensor in arguments.items()}
    turned = {key: tensor.transpose(-1, -2).contiguous().transpose(-1, -2) for key, tensor in arguments.items()}
    true = kernels(name).projection(**arguments)
    for other in (moved, turned):
        agree(kernels(name).projection(**other), tuple(tensor.double() for tensor in true), "ieee")


@settings(deadline=None)
@given(shapes_to(70))
def test_tiles_of_any_shape_are_the_reference(shape: Shape) -> None:
    arguments = projection_arguments(shape, torch.float64)
    with poisoned():
        agree(tiled.projection(**arguments), reference.projection(**arguments), "ieee")


def test_heads_that_exceed_a_tile_are_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = projection_arguments(SHAPES[2], torch.float32)
    monkeypatch.setattr(tiled, "TILE_BYTES", 1)
    with poisoned(), fused.torch_alone():
        agree(tiled.projection(**arguments), reference.projection(**wide(arguments)), "ieee")


@pytest.mark.parametrize("corrupted", ["z", "W_O", "of"])
@pytest.mark.parametrize(("name", "dtype"), PROJECTIONS)
def test_a_corrupted_call_is_noticed(name: str, dtype: torch.dtype, corrupted: str) -> None:
    """Negative control: one flipped sign, in one place of one argument, fails the comparison."""
    arguments = projection_arguments(SHAPES[1], dtype)
    true = reference.projection(**wide(arguments))
    spoilt = arguments[corrupted].clone()
    spoilt.view(-1, spoilt.shape[-1])[5] *= -1
    with pytest.raises(AssertionError):
        agree(kernels(name).projection(**{**arguments, corrupted: spoilt}), true, PRECISION[dtype])


def test_an_unwritten_lane_is_noticed() -> None:
    """Negative control of the poison: a result that nobody writes is not accepted."""
    with poisoned():
        unwritten = outputs.empty((3,), torch.float32, torch.device("cpu"))
    with pytest.raises(AssertionError):
        agree((unwritten,), (torch.zeros(3).double(),), "bf16")


@pytest.mark.parametrize("name", ["reference", "torch", pytest.param("triton", marks=pytest.mark.kernels)])
def test_shapes_that_do_not_fit_name_both(name: str) -> None:
    z, W_O, of = projection_arguments(Shape(P=7, H=2, K=32, D=64), torch.float32).values()
    with pytest.raises(
        ShapeError, match=r"W_O\[H, K, D\] is \[2, 16, 64\], but z\[B, P, H, K\] is \[1, 7, 2, 32\]: K is 16"
    ):
        kernels(name).projection(z, W_O[:, :16], of)
    with pytest.raises(ShapeError, match="z needs 4 dimensions"):
        kernels(name).projection(z[0], W_O, of)
    with pytest.raises(ShapeError, match="P must be at least 1"):
        kernels(name).projection(z[:, :0], W_O, of)
    with pytest.raises(
        ShapeError, match=r"of\[S, B, P, D\] is \[1, 1, 6, 64\], but v\[M, B, P, D\] is \[1, 1, 7, 64\]"
    ):
        kernels(name).projection_onto_vectors(of[:1], of[:, :, :6])
    with pytest.raises(KernelError, match="on one device"):
        kernels(name).projection(z, W_O, of.to("meta"))


def test_providers_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match="no provider 'cuda'; there are reference, torch, triton"):
        select.provider("cuda", "cpu")
    with pytest.raises(UnsupportedError, match="not supported on mps"):
        select.provider("torch", "mps:0")
    with pytest.raises(UnsupportedError, match="'torch' has no precision 'tf32x3'"):
        select.provider("torch", "cpu", "tf32x3")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="'triton' was asked for, but the package triton is not installed"):
        select.provider("triton", "cuda")


@pytest.mark.kernels
def test_triton_on_a_cpu_needs_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    knobs = pytest.importorskip("triton.knobs")
    monkeypatch.setattr(knobs.runtime, "interpret", False)
    with pytest.raises(UnsupportedError, match="needs a GPU, or Triton's interpreter"):
        select.provider("triton", "cpu")


def _refusal(device: str = "cpu", asked: str = "ieee", **tensors: Tensor) -> str:
    with pytest.raises(UnsupportedError) as refused:
        precision.check("projection", torch.device(device), asked, **tensors)
    return str(refused.value)


def test_precisions_that_do_not_exist_are_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    single, half, brain = (torch.ones(1, dtype=dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16))
    assert "take float32, float16, bfloat16, but z is float64" in _refusal(z=torch.ones(1).double())
    assert "share a dtype on Triton, but z is float32, W_O is float16" in _refusal(z=single, W_O=half)
    assert "no precision 'tf32x3' for float16; there is 'ieee'" in _refusal(asked="tf32x3", z=half)
    assert "no bfloat16 on interpreter" in _refusal(z=brain)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "no tf32x3 on hip: AMD's tensor cores have no such mode" in _refusal("cuda", "tf32x3", z=single)
    assert precision.check("projection", torch.device("cuda"), "ieee", z=brain) == "hip"
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "no bfloat16 on cuda<80" in _refusal("cuda", z=brain)
    assert "no tf32 on cuda<80" in _refusal("cuda", "tf32", z=single)
    assert precision.preferred("cuda") == "ieee"
    for capability, tiles in (((8, 6), "cuda80"), ((9, 0), "cuda")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert precision.check("projection", torch.device("cuda"), "tf32x3", z=single) == tiles
        assert precision.preferred("cuda:0") == "tf32x3"
    assert precision.preferred("cpu") == "ieee"


@pytest.mark.kernels
def test_declared_precision_reaches_the_kernel() -> None:
    arguments = projection_arguments(SHAPES[0], torch.float32)
    split = kernels("triton", "tf32x3")
    agree(split.projection(**arguments), reference.projection(**wide(arguments)), "tf32x3")
    agree(
        split.projection_onto_vectors(arguments["of"][:1], arguments["of"]),
        reference.projection_onto_vectors(arguments["of"][:1].double(), arguments["of"].double()),
        "tf32x3",
    )
    with pytest.raises(UnsupportedError, match="no precision 'bf16'"):
        kernels("triton", "bf16").projection(**arguments)
