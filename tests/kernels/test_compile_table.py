"""Ahead-of-time compilation: one configuration per kernel, dtype and architecture holds what the hardware offers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from repro.kernels.bench import compile_all as bench_compile
from repro.kernels.bench import compile_table, roofline
from repro.kernels.bench.compile_table import Compiled, Entry, entries
from repro.kernels.bench.timing import Budget

pytestmark = pytest.mark.kernels

Record = dict[str, Any]
GOOD = Compiled(
    launch="projection", module="projection", dtype="bf16", precision="bf16", card="H100", arch="sm_90",
    configuration="BT=64 warps=4 stages=2", default=True, registers=128, spills=0, shared=1 << 16,
    shared_limit=227 << 10, matrix=8, wide=4, multiplies=True, seconds=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def table() -> Iterator[list[Record]]:
    """Every entry in its default configuration, compiled once, in processes where nothing is interpreted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield list(bench_compile.in_children(everything=False, budget=Budget(600.0)))


@pytest.mark.parametrize("entry", entries(), ids=lambda e: f"{e.module}-{e.dtype}-{e.precision}-{e.card}")
def test_the_default_configuration_holds_what_the_hardware_offers(entry: Entry, table: list[Record]) -> None:
    rows = [row for row in table if all(row.get(key) == value for key, value in vars(entry).items())]
    assert rows, f"nothing was compiled: {[row for row in table if 'status' in row]}"
    for row in rows:
        assert row["problems"] == [], row
        assert row["default"]


def test_predictions_are_rooflines_of_declared_rates(table: list[Record]) -> None:
    (row,) = (r for r in table if (r["launch"], r["card"], r["dtype"]) == ("top2_logits", "A100", "bf16"))
    assert row["flop"] == 2 * 1024 * 512 * 48262
    assert row["predicted_us"] == pytest.approx(row["flop"] / 312e12 * 1e6)
    assert row["bound"] == "compute"
    assert f"{row['predicted_us']:.1f} us (compute)" in bench_compile.line_of(row)
    assert "PREDICTED" in compile_table.PREDICTED


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, []),
        ({"spills": 16}, ["spills 16"]),
        ({"shared": (227 << 10) + 1}, ["shared memory 232449 of 232448"]),
        ({"matrix": 0}, ["no matrix instructions"]),
        ({"wide": 0}, ["no 128-bit loads"]),
        ({"matrix": 0, "precision": "ieee", "dtype": "fp32"}, []),
        ({"matrix": 0, "precision": "ieee", "dtype": "fp32", "arch": "gfx942"}, ["no matrix instructions"]),
        ({"matrix": 0, "multiplies": False}, []),
    ],
)
def test_a_gate_has_its_reason(change: dict[str, Any], problem: list[str]) -> None:
    assert replace(GOOD, **change).problems() == problem


def test_instructions_are_recognised() -> None:
    wide = ("LDG.E.128 R4, desc[UR4][R2.64]", "LDGSTS.E.BYPASS.128 [R5], desc[UR4][R2.64], P0", "UTMALDG.2D [UR8]",
            "buffer_load_dwordx4 v[0:3], v4, s[0:3], 0", "global_load_dwordx4 v[0:3], v4, s[0:1]")  # fmt: skip
    narrow = ("LDG.E.64 R4", "LDS.128 R4, [R2]", "STG.E.128 [R2]", "buffer_load_dwordx2 v[0:1]", "global_load_dword v0")
    assert all(compile_table.wide_loads(line) == 1 for line in wide)
    assert not any(compile_table.wide_loads(line) for line in narrow)
    matrix = ("HMMA.16816.F32 R4, R8", "HGMMA.64x128x16.F32.BF16 R24", "v_mfma_f32_32x32x8_bf16_1k a[0:15], v[0:1]")
    assert all(compile_table.matrix_instructions(line) == 1 for line in matrix)
    assert not any(compile_table.matrix_instructions(line) for line in ("FFMA R1, R2, R3, R4", "v_fma_f32 v0, v1"))


def test_what_does_not_exist_is_not_compiled() -> None:
    pairs = {(entry.card, entry.precision) for entry in entries()}
    assert ("MI300X", "tf32x3") not in pairs
    assert {("A100", "tf32x3"), ("H100", "tf32x3"), ("MI300X", "ieee"), ("MI300X", "bf16")} <= pairs
    assert {card.name: card.shared >> 10 for card in roofline.CARDS} == {"A100": 163, "H100": 227, "MI300X": 64}


def test_a_budget_that_ends_says_what_is_missing() -> None:
    records = list(bench_compile.in_children(everything=True, budget=Budget(0.05), processes=1))
    assert records[-1]["status"] == "skipped: the budget ended before the rest was compiled"
    assert bench_compile.line_of(records[-1]).startswith("compile table skipped")


def test_without_triton_the_table_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_compile, "find_spec", lambda name: None)
    (record,) = bench_compile.in_children(everything=False, budget=Budget(1.0))
    assert record["status"] == "unavailable: the package triton is not installed"
