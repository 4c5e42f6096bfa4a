"""Launches: built once for all tensors that lie alike, tuned only where asked, compiled with every argument."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from repro.kernels.launch import tuning
from repro.kernels.launch.launch import Argument, Launch, row_of
from repro.kernels.registry import KERNELS

CANDIDATES = ({"BT": 64}, {"BT": 32}, {"BT": 16})


class Builder:
    """A kernel that takes `best` milliseconds less the nearer its block is to it, and how often it was asked."""

    def __init__(self) -> None:
        self.built: list[int] = []
        self.timed: list[int] = []

    def choose(self, name: str, *tensors: torch.Tensor, extra: tuple[Any, ...] = (), timed: bool = True) -> Launch:
        """The launch for some tensors."""
        named: Mapping[str, Argument] = {f"x{i}_ptr": tensor for i, tensor in enumerate(tensors)}

        def build(blocks: tuning.Blocks) -> Launch:
            self.built.append(blocks["BT"])
            return Launch(fn=None, arguments={**named, "n": 7}, constexprs=blocks, grid=(1,))

        def time(launch: Launch) -> float:
            self.timed.append(launch.constexprs["BT"])
            return abs(launch.constexprs["BT"] - 32)

        return tuning.choose(name, named, extra, CANDIDATES, build, time if timed else None)


def test_tuning_is_lazy_and_remembered() -> None:
    """Nothing is timed unless asked for; then every candidate once per key, and the fastest is kept."""
    one, x = Builder(), torch.zeros(2)
    assert one.choose("lazy", x).constexprs == {"BT": 64}
    assert one.timed == []
    with tuning.tuning():
        assert one.choose("lazy", x).constexprs == {"BT": 32}
        assert one.choose("lazy", x).constexprs == {"BT": 32}
        assert one.timed == [64, 32, 16]
        other = one.choose("lazy 2", x, timed=False)
        assert other.constexprs == {"BT": 64}, "launches on a CPU are never timed"
    assert one.choose("lazy", x).constexprs == {"BT": 64}
    with tuning.candidate(1):
        assert one.choose("lazy", x).constexprs == {"BT": 32}
    with tuning.candidate(9):
        assert one.choose("lazy", x).constexprs == {"BT": 16}


def test_a_launch_is_built_once_for_tensors_that_lie_alike() -> None:
    one = Builder()
    x, y, wide = torch.zeros(2, 4), torch.ones(2, 4), torch.zeros(2, 8)[:, :4]
    first, second = one.choose("alike", x), one.choose("alike", y)
    assert one.built == [64]
    assert first.arguments["x0_ptr"] is x
    assert second.arguments["x0_ptr"] is y
    assert list(second.arguments) == ["x0_ptr", "n"], "the order is the kernel's"
    for other in (wide, x.half(), torch.zeros(3, 4), x.to("meta")):
        one.choose("alike", other)
    one.choose("alike", x, extra=("tf32x3",))
    one.choose("another", x)
    assert len(one.built) == 7
    held = [value for launch in tuning._built.values() for value in launch.arguments.values()]
    assert not any(isinstance(value, torch.Tensor) for value in held), "none is kept alive"


def test_a_table_has_a_row_for_older_cards_where_they_differ() -> None:
    table = {("cuda", "half"): "new", ("cuda80", "half"): "old", ("cuda", "ieee"): "both", ("cuda", "tf32x3"): "split"}
    assert row_of(table, "cuda80", torch.bfloat16, "ieee") == "old"
    assert row_of(table, "cuda", torch.float16, "ieee") == "new"
    assert row_of(table, "cuda80", torch.float32, "ieee") == "both"
    assert row_of(table, "cuda", torch.float32, "tf32") == "split"


@pytest.mark.kernels
@pytest.mark.parametrize(("vendor", "asked"), [("cuda", "ieee"), ("cuda80", "tf32x3"), ("hip", "ieee")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_compiler_is_given_every_argument(vendor: str, asked: str, dtype: torch.dtype) -> None:
    shape = dict(zip("BPHGKDSMWTVC", (1, 100, 3, 1, 80, 64, 9, 5, 2, 100, 1001, 2), strict=True))
    modules = {entry.triton: entry.module("triton") for entry in KERNELS.values()}
    groups = [module.launches(dtype, shape, vendor, asked) for module in modules.values()]
    launches = {name: launch for group in groups for name, launch in group.items()}
    assert {name.split(".")[0] for name in launches} == set(KERNELS)
    for launch in launches.values():
        spec = launch.compile_spec()
        assert list(spec.signature) == list(spec.fn.arg_names) == [*launch.arguments, *_constants(launch)]
        constants = {name for name, kind in spec.signature.items() if kind == "constexpr"}
        assert constants == set(spec.constexprs)
        assert spec.num_warps in (4, 8)
        assert (0,) in spec.attrs, "pointers are aligned"


def _constants(launch: Launch) -> list[str]:
    """Constants in the order of the kernel's arguments."""
    return [name for name in launch.fn.arg_names if name in launch.constexprs and name not in launch.arguments]
