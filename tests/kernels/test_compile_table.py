"""Ahead-of-time compilation: one configuration per kernel, dtype and architecture holds what the hardware offers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from repro.kernels.bench import assembly, compile_table, roofline
from repro.kernels.bench import compile_all as bench_compile
from repro.kernels.bench.compile_table import Compiled, Entry, entries
from repro.kernels.bench.timing import Budget
from tests.runs import ROOT

pytestmark = pytest.mark.kernels

Record = dict[str, Any]
GOOD = Compiled(
    launch="projection", kernel="project_kernel", shape="paper", module="projection", dtype="bf16", precision="bf16",
    card="H100", arch="sm_90", configuration="BT=64 warps=4 stages=2", default=True, components=9, registers=128,
    spills=0, shared=1 << 16, shared_limit=227 << 10, instructions=900, loop=200, barriers=2, matrix=8, wide=4,
    narrow=0, multiplies=True, programs=64, calls=1, seconds=1.0, component_reads=1.0, formed=1.0,
)  # fmt: skip


COMPILED_HERE = ("H100/bf16", "MI300X/ieee")
"""A quarter of the table, in which both vendors' compilers have a part. All of it is in store/bench/compile.jsonl, as
`python -m repro.kernels.bench.compile_table` prints it in some minutes of one processor."""


@pytest.fixture(scope="module")
def table() -> Iterator[list[Record]]:
    """Some entries in their default configuration, compiled once, in processes where nothing is interpreted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield list(bench_compile.in_children(everything=False, budget=Budget(3600.0), only=COMPILED_HERE))


@pytest.fixture(scope="module")
def kept() -> list[Record]:
    """The table that is kept in git, without the kernels as they were before."""
    lines = (ROOT / "store" / "bench" / "compile.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row.get("record") == "compile" and row.get("version") != "before"]


def of(entry: Entry, table: list[Record]) -> list[Record]:
    """The rows of an entry."""
    return [row for row in table if all(row.get(key) == value for key, value in vars(entry).items())]


@pytest.mark.parametrize(
    "entry",
    [entry for entry in entries() if f"{entry.card}/{entry.precision}" in COMPILED_HERE],
    ids=lambda e: f"{e.module}-{e.dtype}-{e.precision}-{e.card}",
)
def test_the_default_configuration_holds_what_the_hardware_offers(entry: Entry, table: list[Record]) -> None:
    rows = of(entry, table)
    assert rows, f"nothing was compiled: {[row for row in table if 'status' in row]}"
    for row in rows:
        assert row["problems"] == [], row
        assert row["default"]


def test_the_table_that_is_kept_has_every_launch_and_no_problem(table: list[Record], kept: list[Record]) -> None:
    named = {(r["launch"], r["shape"], r["card"], r["precision"]) for r in kept}
    assert {(r["launch"], r["shape"], r["card"], r["precision"]) for r in table} <= named
    for entry in entries():
        assert of(entry, kept), entry
    assert [row for row in kept if row["problems"]] == []


def test_predictions_are_rooflines_of_declared_rates(kept: list[Record]) -> None:
    (row,) = (
        r for r in kept if (r["launch"], r["shape"], r["card"], r["dtype"]) == ("top2_logits", "paper", "A100", "bf16")
    )
    assert row["flop"] == 2 * 1024 * 512 * 48262
    assert row["tile_flop"] >= row["flop"]
    # 378 tiles of 128 tokens for 8 blocks of rows, in 32 shares of 12 tiles: 256 programs in three waves of 108.
    assert row["programs"] == 256
    bounds = {
        "memory": row["bytes"] / 2.039e12,
        "matrix": row["tile_flop"] / 312e12 * 324 / 256,
        "issue": 3 * (row["instructions"] + 12 * 16 * row["loop"]) * 8 / 4 / 1.41e9,
    }
    assert row["predicted_us"] == pytest.approx(1e6 * max(bounds.values()))
    assert bounds[row["bound"]] == max(bounds.values())
    assert f"{row['predicted_us']:.1f} us ({row['bound']})" in bench_compile.line_of(row)
    assert "PREDICTED" in compile_table.PREDICTED


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, []),
        ({"spills": 16}, ["spills 16"]),
        ({"shared": (227 << 10) + 1}, ["shared memory 232449 of 232448"]),
        ({"matrix": 0}, ["no matrix instructions"]),
        ({"wide": 0}, ["no 128-bit loads"]),
        ({"wide": 0, "multiplies": False}, []),
        ({"narrow": 2}, ["2 narrow loads in the inner loop"]),
        ({"barriers": 4}, []),
        ({"barriers": 5}, ["5 barriers in the inner loop"]),
        ({"barriers": 10, "kernel": "attend_kernel"}, []),
        ({"component_reads": 1.3}, []),
        ({"component_reads": 2.0}, ["components read 2.0 times"]),
        ({"formed": 2.0}, ["heads formed 2.0 times"]),
        ({"formed": 2.0, "components": 65}, []),
        ({"matrix": 0, "precision": "ieee", "dtype": "fp32"}, []),
        ({"matrix": 0, "precision": "ieee", "dtype": "fp32", "arch": "gfx942"}, ["no matrix instructions"]),
        ({"matrix": 0, "multiplies": False}, []),
    ],
)
def test_a_gate_has_its_reason(change: dict[str, Any], problem: list[str]) -> None:
    assert replace(GOOD, **change).problems() == problem


SASS = """
.L_x_1:
        /*0010*/                   FFMA R1, R2, R3, R1 ;
.L_x_0:
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/                   HMMA.16816.F32 R4, R8, R2, R4 ;
        /*0040*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0050*/              @!P0 BRA `(.L_x_0) ;
        /*0060*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0070*/               @P1 BRA `(.L_x_1) ;
.L_x_2:
        /*0080*/                   FADD R1, R2, R3 ;
        /*0090*/                   FADD R1, R2, R3 ;
        /*00a0*/                   FADD R1, R2, R3 ;
        /*00b0*/                   FADD R1, R2, R3 ;
        /*00c0*/                   FADD R1, R2, R3 ;
        /*00d0*/               @P1 BRA `(.L_x_2) ;
.L_x_3:
        /*00e0*/                   BRA `(.L_x_3) ;
"""
AMD = """
.LBB0_1:
	v_mfma_f32_32x32x8_bf16_1k a[0:15], v[0:1], v[2:3], a[0:15]
	s_barrier
	global_load_dwordx4 v[0:3], v4, s[0:1]
	global_load_ushort v5, v4, s[0:1]
	s_cbranch_scc1 .LBB0_1
; a comment, and a directive
	.p2align 8
	s_endpgm
"""


def test_the_inner_loop_is_found() -> None:
    """The one with matrix products, not the longer one beside it, nor the one around it."""
    loop = assembly.inner_loop(SASS)
    assert (assembly.count(loop), assembly.barriers(loop), assembly.matrix_instructions(loop)) == (4, 1, 1)
    assert assembly.barriers(SASS) == 2
    assert assembly.count(SASS) == 14
    loop = assembly.inner_loop(AMD)
    assert (assembly.count(loop), assembly.barriers(loop), assembly.wide_loads(loop)) == (5, 1, 1)
    assert assembly.narrow_loads(loop) == 1
    assert assembly.count(AMD) == 6
    assert assembly.inner_loop("no loop") == "no loop"


def test_instructions_are_recognised() -> None:
    wide = ("LDG.E.128 R4, desc[UR4][R2.64]", "LDGSTS.E.BYPASS.128 [R5], desc[UR4][R2.64], P0", "UTMALDG.2D [UR8]",
            "buffer_load_dwordx4 v[0:3], v4, s[0:3], 0", "global_load_dwordx4 v[0:3], v4, s[0:1]")  # fmt: skip
    narrow = ("LDG.E.64 R4", "LDS.128 R4, [R2]", "STG.E.128 [R2]", "buffer_load_dwordx2 v[0:1]", "global_load_dword v0")
    assert all(assembly.wide_loads(line) == 1 for line in wide)
    assert not any(assembly.wide_loads(line) for line in narrow)
    few = ("LDG.E R4, desc[UR4][R2.64]", "LDG.E.U16.CONSTANT R4", "global_load_dword v0, v1", "buffer_load_ushort v0")
    others = (*wide, "LDG.E.64 R4", "LDGDEPBAR", "LDGSTS.E [R5]", "buffer_load_dwordx2 v[0:1]", "LDS.U16 R4")
    assert all(assembly.narrow_loads(line) == 1 for line in few)
    assert not any(assembly.narrow_loads(line) for line in others)
    matrix = ("HMMA.16816.F32 R4, R8", "HGMMA.64x128x16.F32.BF16 R24", "v_mfma_f32_32x32x8_bf16_1k a[0:15], v[0:1]")
    assert all(assembly.matrix_instructions(line) == 1 for line in matrix)
    assert not any(assembly.matrix_instructions(line) for line in ("FFMA R1, R2, R3, R4", "v_fma_f32 v0, v1"))


def test_what_does_not_exist_is_not_compiled() -> None:
    pairs = {(entry.card, entry.precision) for entry in entries()}
    assert ("MI300X", "tf32x3") not in pairs
    assert {("A100", "tf32x3"), ("H100", "tf32x3"), ("MI300X", "ieee"), ("MI300X", "bf16")} <= pairs
    shared = {name: card.shared >> 10 for name, card in roofline.CARDS.items()}
    assert shared == {
        "A100": 163,
        "H100": 227,
        "MI300X": 64,
    }


def test_a_budget_that_ends_says_what_is_missing() -> None:
    records = list(bench_compile.in_children(everything=True, budget=Budget(0.05), processes=1))
    assert records[-1]["status"] == "skipped: the budget ended before the rest was compiled"
    assert bench_compile.line_of(records[-1]).startswith("compile table skipped")


def test_without_triton_the_table_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_compile, "find_spec", lambda name: None)
    (record,) = bench_compile.in_children(everything=False, budget=Budget(1.0))
    assert record["status"] == "unavailable: the package triton is not installed"
