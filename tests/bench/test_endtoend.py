"""The end-to-end measurement: its child really runs the paper, and its sums are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from repro.bench import end_to_end as endtoend
from repro.bench import end_to_end_report as endtoend_report
from repro.bench import meter
from repro.bench.bare_forward import Bare
from repro.errors import ReproError
from repro.model.folder import read_folder
from repro.model.load import load

pytestmark = pytest.mark.long

SPEC = Path(__file__).parents[2] / "experiments.toml"


def test_a_child_measures_the_whole_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"d_model": 32, "n_layers": 4, "d_mlp": 64, "d_head": 8, "n_heads": 8, "n_ctx": 48, "d_vocab": 101}
    monkeypatch.setattr(endtoend, "SHAPE", small)
    spec = endtoend.make_subject(tmp_path, SPEC, prompts=6)
    row = endtoend.child(spec, 5)
    assert row["prompts"] == 5
    assert row["ratio"] == pytest.approx(row["paper_s"] / row["bare_s"])
    assert row["paper_s"] >= row["passes_s"] + row["reductions_s"] > 0
    assert row["peak_bytes"] > row["peak_above_weights_bytes"] > 0
    assert row["with_unembedding_s_per_prompt"] > 0
    assert row["figures"] == 14
    assert row["rendering_s"] > 0
    done = {path.parent.parent.name for path in (tmp_path / "store").rglob("COMMIT")}
    assert done == {"sites_onto_nodes", "nodes_onto_writer", "v_patch", "resampled_dla", "dla_scatter"}
    assert "ratio" in endtoend_report.line(row)
    json.dumps(row)


def test_the_bare_forward_is_timed_between_its_products(folders: dict[str, Path]) -> None:
    model = load(read_folder(folders["native"]))
    bare = Bare(model, torch.ones((10, 16), dtype=torch.int64), together=4)
    bare.over(range(10))
    assert (bare.prompts, len(bare.seconds)) == (10, 3)
    assert not bare.unembedded
    s = model.shape
    qkv, heads = 3 * s.n_heads * s.d_head, s.n_heads * s.d_head
    rows = 4 * 16
    sizes = [(rows, s.d_model, qkv), (rows, heads, s.d_model), (rows, s.d_model, s.d_mlp), (rows, s.d_mlp, s.d_model)]
    assert list(bare.products) == sizes
    assert {len(times) for times in bare.products.values()} == {3}, "after prompts 4, 8 and 10"
    bare.over(range(2), unembed=True)
    assert len(bare.unembedded) == 1
    bare.products = {(1, 2, 3): [2.0], (1, 2, 1): [4.0, 1.0, 2.0]}
    bare.prompts, bare.seconds = 2, [0.5, 1.5]
    rates = bare.rates()
    assert rates["matmul_flop_per_s"] == 12 / 2
    assert rates["products_flop_per_s"] == (12 + 4) / (2 + 2)
    assert rates["bare_flop_per_s"] == s.flop_per_token(16) * 16 * 2 / 2


PAPER = {
    "record": "paper", "prompts": 2, "paper_s": 2.0, "passes_s": 1.5, "reductions_s": 0.5, "bare_s": 1.0, "ratio": 2.0,
    "bare_flop_per_s": 7e9, "products_flop_per_s": 8e9, "matmul_flop_per_s": 1e10, "start_up_s": 1.0,
    "rendering_s": 4.0, "with_unembedding_s_per_prompt": 0.7, "peak_bytes": 2**30, "peak_above_weights_bytes": 2**20,
}  # fmt: skip
BASELINE = {
    "prompts": 2, "baseline_s": 20.0, "experiment_s": {"v_patch": 12.0, "dla_scatter": 8.0}, "left_out": [],
    "peak_bytes": 3 * 2**30,
}  # fmt: skip


def test_rows_are_kept_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def in_child(module: str, spec: Path, prompts: int) -> dict[str, Any]:
        asked.append((module, prompts))
        row = PAPER if module == "end_to_end" else BASELINE
        return {key: value for key, value in row.items() if key != "record"} | {"prompts": prompts}

    monkeypatch.setattr(endtoend, "make_subject", lambda root, spec, prompts: spec)
    monkeypatch.setattr(endtoend, "_in_child", in_child)
    said: list[str] = []
    rows = endtoend.end_to_end(SPEC, tmp_path, [10, 30], 2, said.append)
    both = [("end_to_end", 2), ("baseline", 2)] * 2 + [("end_to_end", 4), ("baseline", 4)] * 2
    assert asked == [("end_to_end", 10), ("end_to_end", 30)] * 2 + both, "in turn, not one after the other"
    kept = [json.loads(text) for text in (tmp_path / "bench" / "end_to_end.jsonl").read_text().splitlines()]
    assert kept == rows
    assert not (tmp_path / "bench" / "end_to_end.jsonl.part").exists()
    assert [row["record"] for row in rows] == ["paper"] * 4 + ["baseline"] * 4
    assert rows[-1]["ratio"] == 10.0
    assert rows[-1]["experiment_ratio"] == {"v_patch": 6.0, "dla_scatter": 4.0}
    assert "ratio 2.00; a prompt takes 0.10 s, with unembedding 0.70 s; forward at 7 GFLOP/s, 88% of" in said[0]
    assert (
        "plain products of its shapes (8), 70% of the largest one's 10; start-up 1.0 s and rendering 4.0 s, together"
        in said[0]
    )
    assert "baseline 10.00 s a prompt, paper 1.00 s, ratio 10.0; one figure alone beside the whole" in said[4]
    assert "v_patch 6.00 s (6x), dla_scatter 4.00 s (4x); peak 3072 MiB, the paper's 1024" in said[4]
    assert "  10 prompts, median of 2: paper 2.0 s, paper to bare forward 2.00 (2.00 to 2.00)" in said


def test_a_run_that_fails_keeps_its_rows_beside_the_last_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, part = (tmp_path / "bench" / f"end_to_end.jsonl{end}" for end in ("", ".part"))
    kept.parent.mkdir()
    kept.write_text("an earlier run\n")
    part.write_text("a run that was killed\n")

    def in_child(module: str, spec: Path, prompts: int) -> dict[str, Any]:
        if prompts == 30:
            assert len(part.read_text().splitlines()) == 1, "written before the next is measured"
            raise ReproError("the second run fails")
        return {key: value for key, value in PAPER.items() if key != "record"} | {"prompts": prompts}

    monkeypatch.setattr(endtoend, "make_subject", lambda root, spec, prompts: spec)
    monkeypatch.setattr(endtoend, "_in_child", in_child)
    with pytest.raises(ReproError, match="the second run fails"):
        endtoend.end_to_end(SPEC, tmp_path, [10, 30], 1, lambda _: None)
    assert kept.read_text() == "an earlier run\n"
    assert [json.loads(text)["prompts"] for text in part.read_text().splitlines()] == [10]
    with pytest.raises(ReproError, match=r"cannot write .*end_to_end.jsonl.part: Not a directory; free the disk"):
        endtoend.end_to_end(SPEC, part, [10], 1, lambda _: None)


def test_what_the_baseline_lacks_is_said() -> None:
    row = BASELINE | {"paper_s": 2.0, "paper_peak_bytes": 1, "ratio": 1.0, "left_out": ["mine"]}
    assert "; no baseline for mine" in endtoend_report.baseline_line(row | {"experiment_s": {}})


def test_growth_is_a_line_and_a_share() -> None:
    rows = [
        {"record": "paper", "prompts": n, "paper_s": 2.0 * n + 1, "peak_bytes": 100 + n // 100} for n in (10, 30, 100)
    ]
    lines = ["paper, time: 2.000 s a prompt +1.0 s", "paper, peak memory: +1.0% from 10 to 100 prompts"]
    other = {"record": "baseline", "prompts": 2, "baseline_s": 9.0, "paper_s": 1.0, "peak_bytes": 900}
    assert endtoend_report.growth([*rows, other]) == lines, "one size of the baseline has no slope"
    assert endtoend_report.growth(rows[:1]) == []
    assert endtoend_report.medians(rows) == []


def test_a_failure_is_a_sentence(tmp_path: Path) -> None:
    for module in ("end_to_end", "baseline"):
        with pytest.raises(ReproError, match="end-to-end run of 3 prompts failed"):
            endtoend._in_child(module, tmp_path / "none.toml", 3)


def test_the_meter_reads_this_process(tmp_path: Path) -> None:
    (file := tmp_path / "weights").write_bytes(bytes(1000))
    assert meter.peak() - meter.above([file, file]) == 2000
    assert 0 < meter.age() < 1e6
    held = np.ones(2**25)
    assert meter.peak() >= held.nbytes


@pytest.mark.parametrize("text", ["", "x", "10,-3", "0"])
def test_sizes_are_refused(text: str) -> None:
    with pytest.raises(ReproError, match="--sizes"):
        endtoend.parse_sizes(text)
    assert endtoend.parse_sizes("10, 300") == [10, 300]
