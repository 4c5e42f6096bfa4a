"""The parts of the benchmark: the gate, the meter, common rounds, budgets, cases, rooflines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from repro.kernels import reference
from repro.kernels.bench import cases, roofline, timing, tolerances
from repro.kernels.bench.gate import Truth
from repro.kernels.bench.memory import peak_memory
from repro.kernels.registry import KERNELS
from repro.kernels.work import Shape, Work, listed

TINY = Shape("paper", "tiny", 64, 4, 2, 16, sites=3, vocab=301, center=True, bias=True, positions=96)


class Turned:
    """A clock that a test turns: each look costs `step` seconds."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 100.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_gate_sees_each_result(kernel: str) -> None:
    inputs = cases.Case(KERNELS[kernel], TINY).inputs(torch.float32, "cpu")
    truth = Truth(kernel, inputs)
    results: list[Any] = list(listed(getattr(reference, kernel)(**inputs)))
    assert truth.check(tuple(results), "ieee").passed
    for i, result in enumerate(results):
        for spoil in (lambda x: -x, lambda x: x[..., :-1], lambda x: None, _poisoned, lambda x: x.roll(1)):
            spoilt: tuple[Tensor | None, ...] = tuple(spoil(result) if j == i else r for j, r in enumerate(results))
            assert not truth.check(spoilt, "bf16").passed


def _poisoned(x: Tensor) -> Tensor:
    """One element that nobody wrote."""
    x = x.contiguous().clone()
    x.view(-1)[0] = torch.nan if x.is_floating_point() else -1
    return x


def test_equal_logits_may_swap() -> None:
    inputs = {"resid": torch.ones(2, 3), "W_U": torch.ones(3, 5), "b_U": None, "chosen": None}
    truth = Truth("top2_logits", inputs)
    values, _, chosen = truth.results
    assert values is not None
    assert truth.check((values.float(), torch.tensor([[3, 1], [0, 4]]), chosen), "ieee").passed
    assert not truth.check((values.float(), torch.tensor([[3, 3], [0, 4]]), chosen), "ieee").passed


def test_error_ratio_and_the_table_of_tolerances() -> None:
    true = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert tolerances.error_ratio(true.float(), true) == 0
    assert tolerances.error_ratio(true * 1.01, true) == pytest.approx(0.01)
    assert tolerances.error_ratio(torch.tensor([torch.nan, 4.0]), true) == float("inf")
    assert tolerances.error_ratio(torch.ones(2), torch.zeros(2).double()) == float("inf")
    assert set(roofline.PRECISIONS) == set(tolerances.TOLERANCES)


def test_the_meter_counts_what_is_allocated() -> None:
    def call() -> Tensor:
        a, b = torch.empty(1 << 20), torch.empty(1 << 20)
        c = a + b
        del a, b
        return c.sum()

    given = torch.empty(1 << 20)
    assert 12 << 20 <= peak_memory(call, "cpu").bytes <= (12 << 20) + 4096
    assert peak_memory(lambda: given.add_(1), "cpu").bytes < 4096
    assert 4 << 20 <= peak_memory(lambda: given + 1, "cpu").bytes <= (4 << 20) + 4096
    # Allocated inside one operation, where nothing above it could see: a transposed copy.
    assert peak_memory(lambda: given.view(1024, 1024).t().contiguous()[0, 0], "cpu").bytes >= 4 << 20


def test_ratios_come_from_common_rounds() -> None:
    clock, order = Turned(), list[str]()
    noise = iter(range(1, 1000))

    def taking(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            order.append(name)
            # The machine grows slower and slower, for both alike.
            clock.now += seconds * (1 + next(noise) // 2)

        return call

    taken = timing.interleaved({"slow": taking("slow", 3.0), "fast": taking("fast", 1.0)}, 0.0, lambda: None, clock)
    assert order == ["slow", "fast", "fast", "slow"] * 2 + ["slow", "fast"]
    assert len(taken["slow"].seconds) == timing.MIN_ROUNDS
    assert taken["fast"].against(taken["slow"]).median == pytest.approx(3.0, rel=0.5)
    assert taken["slow"].against(taken["slow"]).seconds == [1.0] * timing.MIN_ROUNDS
    many = timing.interleaved({"one": taking("one", 1e-6)}, 1e9, lambda: None, clock)
    assert len(many["one"].seconds) == timing.MAX_ROUNDS


def test_percentiles_interpolate() -> None:
    samples = timing.Samples([5.0, 1.0, 2.0, 4.0, 3.0], [])
    assert (samples.p20, samples.median, samples.p80) == pytest.approx((1.8, 3.0, 4.2))


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("8m", 480), ("1h", 3600), ("2.5", 2.5)])
def test_budgets_are_read(text: str, seconds: float) -> None:
    assert timing.parse_budget(text) == seconds


def test_cases_are_declared_and_selected() -> None:
    names = [case.name for case in cases.every()]
    assert len(names) == len(set(names)) == 29
    assert [case.name for case in cases.select(None, "cpu")] == [
        f"{kernel}/{shape}" for shape in cases.CPU_SHAPES for kernel in KERNELS
    ]
    assert len(cases.select(None, "cuda")) == len(names)
    assert [case.name for case in cases.select("projection, pythia", "cpu")] == [
        *(f"projection/{shape}" for shape in cases.CPU_SHAPES),
        *(f"{name}/pythia" for name, kernel in KERNELS.items() if "pythia" in kernel.shapes),
    ]
    assert [case.name for case in cases.select("v_composition/writers", "cpu")] == ["v_composition/writers"]


def test_work_is_what_the_formulas_say() -> None:
    s = next(shape for shape in cases.SHAPES if shape.name == "paper")
    flop = {name: kernel.flop(s) for name, kernel in KERNELS.items()}
    assert flop["projection"] == 2 * 1024 * 8 * 512 * (64 + 9 + 1)
    assert flop["gram"] == flop["gram_sums"] == 2 * 1024 * 512 * (32 * 64 + 38 * 39 / 2)
    assert flop["top2_logits"] == 2 * 1024 * 512 * 48262
    assert flop["v_composition"] == 2 * 8 * (1024 * 1025 / 2) * 64 * 2 + 2 * 1024 * 8 * 512 * (64 + 64 + 2)
    case = cases.Case(KERNELS["projection_onto_vectors"], TINY)
    inputs = case.inputs(torch.float32, "cpu")
    assert case.work(inputs, reference.projection_onto_vectors(**inputs)).bytes == 4 * 96 * (64 + 3 * 64 + 3 + 1)


def test_the_floor_is_the_longer_of_arithmetic_and_traffic() -> None:
    assert roofline.floor(Work(100.0, 10.0), 50.0, 10.0) == (2.0, "compute")
    assert roofline.floor(Work(100.0, 40.0), 50.0, 10.0) == (4.0, "memory")
