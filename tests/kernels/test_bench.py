"""The benchmark: no speed without a green check, ratios from common rounds, budgets that end, meters that count."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import repro.bench.kernels as command
from repro.errors import Exit, ReproError
from repro.kernels import fused, reference, tiled
from repro.kernels.bench import cases, roofline, timing
from repro.kernels.bench import child as bench_child
from repro.kernels.bench import command as bench
from repro.kernels.bench import compile_all as bench_compile
from repro.kernels.bench import providers as bench_providers
from repro.kernels.bench import rows as bench_rows
from repro.kernels.bench import run as bench_run
from repro.kernels.bench import schedule as bench_schedule
from repro.kernels.bench import whole as bench_whole
from repro.kernels.bench.child import Job
from repro.kernels.bench.memory import peak_memory
from repro.kernels.bench.workers import InThisProcess
from repro.kernels.errors import UnsupportedError
from repro.kernels.registry import KERNELS
from repro.kernels.select import Kernels
from repro.kernels.work import Shape

ROOT = Path(__file__).parents[2]
TINY = Shape("paper", "tiny", 64, 4, 2, 16, sites=3, vocab=301, center=True, bias=True, positions=96)


class Turned:
    """A clock that a test turns: each look costs `step` seconds."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 100.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's cases at a tiny shape, small meters, no compilers."""
    monkeypatch.setattr(cases, "SHAPES", (TINY, replace(TINY, name="paper4", prompts=4)))
    monkeypatch.setattr(cases, "CPU_SHAPES", ("paper",))
    monkeypatch.setattr(roofline, "COPY_BYTES", {"cpu": 1 << 16, "cuda": 1 << 16})
    monkeypatch.setattr(roofline, "MATMUL_SIZE", {"cpu": 64, "cuda": 64})
    monkeypatch.setattr(timing, "MAX_ROUNDS", timing.MIN_ROUNDS)
    without = tuple(entry for entry in bench_providers.PROVIDERS if not entry.compiles)
    monkeypatch.setattr(bench_providers, "PROVIDERS", without)
    monkeypatch.setattr(bench_whole, "PROVIDERS", without)
    monkeypatch.setattr(
        bench_compile, "in_children", lambda everything, budget: iter([{"record": "compile", "status": "x"}])
    )


class Sent(InThisProcess):
    """A worker without a process, so that what is patched here holds there, too; jobs and records pass as to one."""

    def ask(self, job: Job, say: Callable[[dict[str, Any]], None]) -> None:
        """Do the job, it and its records sent as to a process and back."""
        super().ask(pickle.loads(pickle.dumps(job)), lambda record: say(pickle.loads(pickle.dumps(record))))


def run(said: list[str] | None = None, clock: Callable[[], float] | None = None, **options: Any) -> Any:
    """One run of the benchmark; its report."""
    given = bench.Options(**{"device": "cpu", "budget": "60s", **options})
    clock = clock or Turned()
    return bench.run(given, (said if said is not None else []).append, clock, lambda: Sent(clock))


def _is(record: dict[str, Any], kernel: str, provider: str) -> bool:
    """Whether a record is about a provider of a kernel."""
    return record["case"].startswith(f"{kernel}/") and record["provider"] == provider


def speeds(report: Any, kernel: str) -> list[dict[str, Any]]:
    """The rows of a kernel that hold a speed."""
    rows = [r for r in report.records if r["record"] == "speed" and r["kernel"] == kernel]
    assert rows
    return [row for row in rows if row["median_ms"] is not None]


@pytest.mark.usefixtures("small")
def test_every_provider_is_checked_and_then_timed(tmp_path: Path) -> None:
    said: list[str] = []
    report = run(said, out=tmp_path / "rows.jsonl")
    assert not report.failed
    assert not report.broken
    for kernel in KERNELS.values():
        rows = speeds(report, kernel.name)
        assert {"einsum", "tiled"} <= {row["provider"] for row in rows}
        for row in rows:
            assert row["check_error"] <= row["check_allowed"]
            assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
            assert row["meter"] == "torch.profiler, CPU allocator events"
            assert row["peak_bytes"] >= row["result_bytes"] > 0
            assert row["floor_ms"] > 0
            assert row["bound"] in ("compute", "memory")
    whole = [r for r in report.records if r["record"] == "end_to_end"]
    assert {r["provider"] for r in whole} >= {"einsum", "tiled"}
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == report.records
    assert report.records[0]["torch"] == torch.__version__
    assert any("threads" in line for line in said)


@pytest.mark.usefixtures("small")
def test_a_run_that_is_interrupted_has_said_and_written_what_it_knew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_child, "time_group", interrupted)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(said, out=tmp_path / "rows.jsonl")
    written = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {r["provider"] for r in written if r["record"] == "check"} >= {"einsum", "tiled"}
    assert any(line.startswith("projection/paper fp32 tiled: ok error ") for line in said)


@pytest.mark.usefixtures("small")
def test_one_flipped_sign_prints_no_speed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = tiled.projection, tiled.v_composition
    monkeypatch.setattr(tiled, "projection", lambda z, **given: right[0](z=-z, **given))
    monkeypatch.setattr(tiled, "v_composition", lambda W_O, **given: right[1](W_O=-W_O, **given))
    said: list[str] = []
    report = run(said)
    assert report.failed == ["projection/paper fp32", "v_composition/paper fp32"]
    for kernel in ("projection", "v_composition"):
        assert speeds(report, kernel) == []
        (verdict,) = (r for r in report.records if r["record"] == "check" and _is(r, kernel, "tiled"))
        assert verdict["status"] == "check failed"
        about = [line for line in said if line.startswith(f"{kernel}/")]
        assert about
        assert not any(" ms" in line or "x in time" in line for line in about)
        (row,) = (r for r in report.records if r["record"] == "speed" and _is(r, kernel, "tiled"))
        assert row["status"] == "check failed"
        assert row["check_error"] > 0.1
    (whole,) = (r for r in report.records if r["record"] == "end_to_end")
    why = "no speed is printed: a check of {} failed"
    both = "tiled" if fused.library() is None else "tiled, torch alone"
    assert whole["status"] == (
        "skipped: not every part was checked and timed: "
        f"projection/paper ({why.format(both)}), v_composition/paper ({why.format('tiled')})"
    )
    assert f"end to end: {whole['status'].replace(':', ',', 1)}" in said
    assert speeds(report, "top2_logits")
    assert bench.main(["--device", "cpu", "--budget", "30s", "--only", "projection"]) == 1
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("projection/")]
    assert printed
    assert not any("x in time" in line or "% (" in line for line in printed)


@pytest.mark.usefixtures("small")
def test_a_call_that_fails_while_it_is_timed_is_no_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(call: Callable[[], Any], device: str) -> Any:
        raise RuntimeError("no meter here")

    monkeypatch.setattr(bench_run, "peak_memory", fails)
    said: list[str] = []
    report = run(said, only="projection")
    assert not report.failed
    assert report.broken == ["projection/paper fp32"]
    rows = [r for r in report.records if r["record"] == "speed" and r["provider"] in ("einsum", "tiled")]
    assert {(row["status"], row["note"]) for row in rows} == {("failed", "while it was timed: no meter here")}
    assert all(row["check_error"] <= row["check_allowed"] for row in rows)
    assert len(rows) == 2
    assert said[-1] == "projection/paper fp32: its measurement ended in an error"
    assert not any("a check" in line for line in said)


@pytest.mark.usefixtures("small")
def test_a_flipped_order_of_the_predictions_and_a_dying_kernel_fail_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(*given: Any, **named: Any) -> Any:
        values, ids, chosen = reference.top2_logits(*given, **named)
        return values, ids.flip(1), chosen

    def dies(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("in the kernel")

    monkeypatch.setattr(tiled, "top2_logits", swapped)
    monkeypatch.setattr(tiled, "projection", dies)
    report = run()
    assert report.failed == ["projection/paper fp32", "top2_logits/paper fp32"]
    (row,) = (r for r in report.records if r["record"] == "speed" and _is(r, "projection", "tiled"))
    assert row["note"] == "ZeroDivisionError: in the kernel"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": "soon"}, "--budget 'soon' is no length of time: write 90s, 8m or 1h"),
        ({"budget": "-3s"}, "is no length of time"),
        ({"only": "projektion"}, "no case 'projektion'; kernels: projection, "),
        ({"only": ","}, "--only names no case"),
        ({"device": "tpu"}, "--device 'tpu'; allowed: auto, cpu, cuda"),
        ({"device": "cuda"}, "--device cuda, but torch sees no GPU here"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedError, match=words.replace("(", r"\(")):
        run(**options)
    with pytest.raises(ReproError) as caught:
        command.bench(bench.Options(**options), tmp_path, tmp_path, lambda _: None)
    assert caught.value.code == Exit.USAGE
    flags = [word for key, value in options.items() for word in (f"--{key}", value)]
    assert bench.main([f"{a}={b}" for a, b in zip(flags[::2], flags[1::2], strict=True)]) == 2


@pytest.mark.usefixtures("small")
def test_a_spent_budget_leaves_steps_out_and_says_so() -> None:
    # The clock jumps by 30 of 60 seconds at each look: everything is late.
    said: list[str] = []
    report = run(said, Turned(step=30.0))
    rows = [r for r in report.records if r["record"] == "speed"]
    assert rows
    assert all(r["status"] in ("skipped", "unavailable") for r in rows)
    assert {r["note"].split(";")[0] for r in rows} == {"the budget ended before it was measured"}
    (whole,) = (r for r in report.records if r["record"] == "end_to_end")
    assert whole["status"].startswith("skipped")
    assert not report.failed


@pytest.mark.usefixtures("small")
def test_a_slow_machine_measures_fewer_positions_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_schedule, "SLACK", 1e9)
    monkeypatch.setattr(bench_schedule, "FEWEST_POSITIONS", 16)
    said: list[str] = []
    report = run(said)
    (row,) = speeds(report, "projection_onto_vectors")[:1]
    whole = [r for r in report.records if r["record"] == "end_to_end"]
    assert {r["provider"] for r in whole} >= {"einsum", "tiled"}
    for record in (row, *whole):
        assert "P 12" in record["dims"]
        assert record["note"] == "12 of 96 positions: budget"
    assert any(line.startswith("end to end") and line.endswith("12 of 96 positions: budget") for line in said)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("anew", [False, True])
def test_the_whole_leaves_out_what_would_be_compiled_beyond_the_budget(
    anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def compiled(kernel: str, device: str) -> Any:
        made.append(kernel)
        return getattr(reference, kernel)

    with_compiler = (
        *bench_providers.PROVIDERS,
        bench_providers.Provider("torch.compile", compiled, compiles=True),
    )
    monkeypatch.setattr(bench_providers, "PROVIDERS", with_compiler)
    monkeypatch.setattr(bench_whole, "PROVIDERS", with_compiler)
    if anew:  # two of three parts are measured at more positions, and would be compiled again for the whole
        monkeypatch.setattr(
            bench_schedule.Schedule,
            "_positions",
            lambda self, case, *_: 12 if case.kernel.name == "top2_logits" else 24,
        )
    report = run(budget="52s")
    whole = {r["provider"]: r["status"] for r in report.records if r["record"] == "end_to_end"}
    out = "skipped: compiling it anew does not fit the budget"
    assert whole["torch.compile"] == (out if anew else "ok")
    assert whole["einsum"] == whole["tiled"] == "ok"
    assert len(made) == len(KERNELS) + 2 * anew, "what was compiled for a case serves the whole"


@pytest.mark.usefixtures("small")
def test_without_a_compiler_the_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(function: Any, **_: Any) -> Any:
        def call(**__: Any) -> Any:
            raise RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: No working C++ compiler found\nmore")

        return call

    entry = bench_providers.Provider("torch.compile", bench_providers._compiled, compiles=True)
    monkeypatch.setattr(bench_providers, "PROVIDERS", (*bench_providers.PROVIDERS, entry))
    monkeypatch.setattr(torch, "compile", no_compiler)
    report = run(only="projection")
    (row,) = (r for r in report.records if r["record"] == "speed" and r["provider"] == "torch.compile")
    assert row["status"] == "unavailable"
    assert row["note"] == "torch.compile: InvalidCxxCompiler: No working C++ compiler found"
    assert not report.failed


@pytest.fixture
def fake_gpu(small: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Everything that asks for a GPU gets an answer from the CPU; the timers that were used, as they are used."""
    timers: list[str] = []

    def timer(call: Callable[[], Any], name: str) -> list[float]:
        timers.append(name)
        call()
        return [1.0, 2.0, 3.0]

    def on_cpu(name: str, device: str, precision: str = "ieee") -> Kernels:
        assert name == "triton" or precision == "ieee"
        path = "tiled" if name == "triton" else "reference"
        return Kernels(name, {kernel: entry.function(path) for kernel, entry in KERNELS.items()})

    inputs, meters = cases.Case.inputs, (roofline.copy_meter, roofline.matmul_meter)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    seen = {"record": "environment", "device": "fake", "kind": "cuda", "system": "", "started": ""}
    monkeypatch.setattr(bench, "environment", lambda device, seconds: seen)
    monkeypatch.setattr(bench_rows, "device_name", lambda device: "fake")
    monkeypatch.setattr(cases.Case, "inputs", lambda self, dtype, device: inputs(self, dtype, "cpu"))
    monkeypatch.setattr(roofline, "copy_meter", lambda device: meters[0]("cpu"))
    monkeypatch.setattr(roofline, "matmul_meter", lambda device, precision: meters[1]("cpu", precision))
    monkeypatch.setattr(bench_providers, "kernels_of", on_cpu)
    monkeypatch.setattr(bench_run, "peak_memory", lambda call, device: peak_memory(call, "cpu"))
    monkeypatch.setattr(bench_whole, "profiled", lambda call, device: "a table")
    monkeypatch.setattr(timing, "_triton_timer", timer)
    return timers


def test_on_a_gpu_checks_times_profiles_and_runs_the_whole(fake_gpu: list[str]) -> None:
    report = run(device="cuda")
    assert not report.failed
    assert not report.broken
    kinds = [r["record"] for r in report.records]
    assert kinds.index("speed") < kinds.index("profile") < kinds.index("end_to_end")
    rows = speeds(report, "projection")
    assert {row["timer"] for row in rows} == {"do_bench", "do_bench_cudagraph"} == set(fake_gpu)
    assert {(row["dtype"], row["precision"]) for row in rows if row["provider"].startswith("triton")} == {
        ("fp32", "ieee"), ("fp32", "tf32x3"), ("fp32", "tf32"), ("bf16", "bf16"), ("fp16", "fp16")
    }  # fmt: skip
    assert all(row["median_ms"] == 2.0 and row["faster"] == 1.0 for row in rows)
    (profile,) = (r for r in report.records if r["record"] == "profile")
    assert profile["table"] == "a table"
    whole = [r for r in report.records if r["record"] == "end_to_end"]
    assert {r["provider"] for r in whole} >= {"einsum", "triton", "triton tf32x3"}
    assert {r["prompts"] for r in whole} == {4}
    assert "compile" not in kinds


@pytest.mark.usefixtures("fake_gpu")
def test_on_a_gpu_a_step_that_breaks_leaves_the_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any) -> str:
        raise RuntimeError("no profiler here")

    def unrecordable(call: Callable[[], Any], name: str) -> list[float]:
        if name == timing.CUDA_GRAPH:
            raise RuntimeError("operation not permitted when stream is capturing")
        return [1.0]

    monkeypatch.setattr(bench_whole, "profiled", breaks)
    monkeypatch.setattr(timing, "_triton_timer", unrecordable)
    report = run(device="cuda", compile_all=True)
    assert report.broken == ["profile"]
    assert {row["timer"] for row in speeds(report, "projection")} == {"do_bench"}
    assert {"end_to_end", "compile"} <= {r["record"] for r in report.records}


def test_needs_only_torch_numpy_and_triton() -> None:
    words = "import sys, repro.kernels.bench.command; print(sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.replace("'", '"')))
    assert {"torch", "repro"} <= loaded
    others = {"transformer_lens", "transformers", "zarr", "xarray", "altair", "pydantic", "scipy", "typer", "rich"}
    assert not loaded & others


@pytest.mark.usefixtures("small")
def test_the_command_keeps_rows_and_draws_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    options, places = bench.Options(device="cpu", budget="30s"), (tmp_path / "store", tmp_path / "out")
    assert command.bench(options, *places, said.append) == Exit.OK
    (rows,) = (tmp_path / "store" / "bench").iterdir()
    assert rows.suffix == ".jsonl"
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    assert {"environment", "rate", "speed", "end_to_end", "compile"} <= {r["record"] for r in records}
    picture = (tmp_path / "out" / "bench.svg").read_text()
    assert all(f"{kernel} · tiny · fp32" in picture for kernel in KERNELS)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"bench.png", "bench.svg"}

    # A selection, and a run with a failed check, leave the whole table as it is.
    before = rows.read_bytes()
    monkeypatch.setattr(tiled, "projection", lambda *_, **__: (torch.ones(1), torch.ones(1)))
    assert command.bench(replace(options, only="projection", as_json=True), *places, said.append) == Exit.FAILED
    assert rows.read_bytes() == before
    assert all(json.loads(line)["record"] for line in said[-3:])


def test_without_speeds_nothing_is_drawn(tmp_path: Path) -> None:
    assert command.draw([{"record": "environment"}], tmp_path) is None
    assert list(tmp_path.iterdir()) == []
