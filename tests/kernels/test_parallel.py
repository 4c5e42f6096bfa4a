"""Tiles side by side: every tile once, the same bits for any number of threads, errors where they belong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from repro.kernels import reference, tiled
from repro.kernels.parallel import each
from tests.kernel_helpers import SHAPES, WHOLE_CONTEXT, Shape, agree, kernels, poisoned, projection_arguments, wide


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n} threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_tile_is_done_once(threads: int) -> None:
    seen: list[tuple[int, int, int]] = []

    def start() -> Callable[[int], None]:
        scratch = threading.get_ident()
        return lambda tile: seen.append((tile, scratch, torch.get_num_threads()))

    each(list(range(50)), start)
    assert sorted(tile for tile, _, _ in seen) == list(range(50))
    assert {inside for _, _, inside in seen} == {1}, "products inside are single-threaded"
    assert len({scratch for _, scratch, _ in seen}) <= threads
    assert torch.get_num_threads() == threads
    found: list[int] = []
    late = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    late.start()
    late.join()
    assert found == [threads], "a thread that comes later multiplies as this one does"


def test_what_a_tile_raises_is_raised_here(threads: int) -> None:
    def fails(tile: int) -> None:
        if tile == 3:
            raise ZeroDivisionError("in a tile")

    with pytest.raises(ZeroDivisionError, match="in a tile"):
        each(list(range(9)), lambda: fails)
    assert torch.get_num_threads() == threads
    each(list(range(9)), lambda: lambda tile: None)


@pytest.mark.parametrize("name", ["torch", "torch alone"])
@pytest.mark.parametrize("shape", [SHAPES[3], WHOLE_CONTEXT], ids=str)
def test_no_bit_depends_on_the_number_of_threads(threads: int, shape: Shape, name: str) -> None:
    arguments = projection_arguments(shape, torch.float32)
    vectors = {"v": arguments["of"][:2], "of": arguments["of"]}
    ours = kernels(name)
    with poisoned():
        got = *ours.projection(**arguments), *ours.projection_onto_vectors(**vectors)
    torch.set_num_threads(1)
    alone = *ours.projection(**arguments), *ours.projection_onto_vectors(**vectors)
    assert all(torch.equal(one, other) for one, other in zip(got, alone, strict=True))
    agree(got[:2], reference.projection(**wide(arguments)), "ieee")
    spoilt = arguments | {"z": -arguments["z"]}
    assert not torch.equal(ours.projection(**spoilt)[0], got[0])


@pytest.mark.parametrize("inference", [False, True])
def test_results_can_be_used_as_if_made_by_this_thread(threads: int, inference: bool) -> None:
    arguments = projection_arguments(WHOLE_CONTEXT, torch.float32)
    with torch.inference_mode(inference):
        num, norm2 = tiled.projection(**arguments)
        num /= norm2
    assert num.is_inference() == inference
    assert not num.requires_grad
