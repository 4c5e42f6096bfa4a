"""The end-to-end measurement: its child really runs the paper, and its sums are right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from repro import endtoend
from repro.errors import ReproError

SPEC = Path(__file__).parent.parent / "experiments.toml"


def test_a_child_measures_the_whole_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"d_model": 32, "n_layers": 4, "d_mlp": 64, "d_head": 8, "n_heads": 8, "n_ctx": 48, "d_vocab": 101}
    monkeypatch.setattr(endtoend, "SHAPE", small)
    spec = endtoend.make_subject(tmp_path, SPEC, prompts=6)
    row = endtoend.child(spec, 5)
    assert row["prompts"] == 5
    assert row["ratio"] == pytest.approx(row["paper_s"] / row["bare_s"])
    assert row["peak_bytes"] > row["peak_above_weights_bytes"] > 0
    done = {path.parent.parent.name for path in (tmp_path / "store").rglob("COMMIT")}
    assert done == {"sites_onto_nodes", "nodes_onto_writer", "v_patch", "resampled_dla", "dla_scatter"}
    assert "ratio" in endtoend.line(row)
    json.dumps(row)


def test_growth_is_a_line_and_a_share() -> None:
    rows = [{"prompts": n, "paper_s": 2.0 * n + 1, "peak_bytes": 100 + n // 100} for n in (10, 30, 100)]
    assert endtoend.growth(rows) == ["time: 2.000 s a prompt + 1.0 s", "peak memory: +1.0% from 10 to 100 prompts"]
    assert endtoend.growth(rows[:1]) == []


def test_rows_are_kept_and_a_failure_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {
        "prompts": 2, "paper_s": 2.0, "passes_s": 1.5, "reductions_s": 0.5, "bare_s": 1.0, "ratio": 2.0,
        "bare_flop_per_s": 7e9, "matmul_flop_per_s": 1e10, "start_up_s": 1.0, "peak_bytes": 2**30,
        "peak_above_weights_bytes": 2**20,
    }  # fmt: skip
    monkeypatch.setattr(endtoend, "make_subject", lambda root, spec, prompts: spec)
    monkeypatch.setattr(endtoend, "_in_child", lambda spec, prompts: row)
    said: list[str] = []
    endtoend.end_to_end(SPEC, tmp_path, [2], 2, said.append)
    assert len((tmp_path / "bench" / "end_to_end.jsonl").read_text().splitlines()) == 2
    assert "ratio 2.00; forward at 7 GFLOP/s, 70% of the matrix product's 10" in said[0]
    monkeypatch.undo()
    with pytest.raises(ReproError, match="end-to-end run of 3 prompts failed"):
        endtoend._in_child(tmp_path / "none.toml", 3)


@pytest.mark.parametrize("text", ["", "x", "10,-3", "0"])
def test_sizes_are_refused(text: str) -> None:
    with pytest.raises(ReproError, match="--sizes"):
        endtoend.parse_sizes(text)
    assert endtoend.parse_sizes("10, 300") == [10, 300]
