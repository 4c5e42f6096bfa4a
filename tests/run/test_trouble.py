"""Memory that runs out: fewer prompts at once, said and recorded, and the numbers stay what they were."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from repro.errors import Exit
from repro.measures import VPatch
from repro.measures import batch as stream
from repro.run.failures import Failures, NoMemoryError, memory_told, ran_out_of_memory
from repro.store.result import read_raw, read_summary
from tests.runs import Answer, Run, notes

Finished = Callable[[str], Run]
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB"


def test_memory_that_ran_out_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as host:
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(MemoryError) as numpys:
        np.empty(2**60, np.uint8)
    for error in (host.value, numpys.value, torch.OutOfMemoryError(CUDA), RuntimeError("CUDA error: out of memory")):
        assert ran_out_of_memory(error), error
        with pytest.raises(NoMemoryError), memory_told():
            raise error
    for other in (RuntimeError("shapes do not fit"), ValueError("out of memory"), KeyError("you tried to allocate")):
        assert not ran_out_of_memory(other)
        with pytest.raises(type(other)), memory_told():
            raise other


def test_memory_that_runs_out_elsewhere_is_one_experiments_failure() -> None:
    said: list[str] = []
    failures = Failures(said.append)

    with failures.guard("one"):
        raise MemoryError("Unable to allocate 3.00 GiB")
    advice = "free some memory, then run the same command again to go on"
    assert said == [f"one failed: MemoryError: Unable to allocate 3.00 GiB; {advice}"]
    with pytest.raises(NoMemoryError), failures.guard("two"):
        raise NoMemoryError("whoever can do with less")
    assert "two" not in failures


def short_of_memory(real: Callable[..., Any], most: int, error: Exception, where: int) -> Callable[..., Any]:
    """A step that runs out of memory with more than `most` prompts at once; where: which argument holds them."""

    def step(*given: Any, **named: Any) -> Any:
        held = given[where]
        if len(getattr(held, "tokens", held)) > most:
            raise error
        return real(*given, **named)

    return step


def again(finished: Finished, folder: Path, *names: str) -> Run:
    """A finished run without some results."""
    run = finished("native").copy(folder)
    for name in names:
        shutil.rmtree(run.store / name)
    return run


@pytest.fixture
def halved(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], tuple[Run, Answer]]:
    """most -> a run in which V-composition patching runs out of memory with more prompts at once."""

    def run(most: int) -> tuple[Run, Answer]:
        unfinished = again(finished, tmp_path, "v_patch", "nodes_onto_writer")
        short = short_of_memory(VPatch.compute, most, torch.OutOfMemoryError(CUDA), where=3)
        monkeypatch.setattr(VPatch, "compute", short)
        return unfinished, unfinished.cli("run")

    return run


def test_out_of_memory_halves_the_batch_until_it_fits(
    finished: Finished, halved: Callable[[int], tuple[Run, Answer]]
) -> None:
    run, answer = halved(1)
    assert answer.code == Exit.OK, answer.text
    told = [line for line in answer.out.splitlines() if "out of memory" in line]
    assert told == [
        "out of memory with 4 prompts at once; going on with 2 (--memory sets it)",
        "out of memory with 2 prompts at once; going on with 1 (--memory sets it)",
    ]
    assert "failed" not in answer.text
    for name in ("v_patch", "nodes_onto_writer"):
        assert notes(run.result(name)) == [{"micro_batch": 1}] * 2
        assert notes(finished("native").result(name)) == [{}] * 2
        ours, whole = read_raw(run.result(name)), read_raw(finished("native").result(name))
        for variable in whole.data_vars:
            scale = float(np.abs(whole[variable]).max())
            np.testing.assert_allclose(ours[variable], whole[variable], rtol=0, atol=1e-5 * scale)
            assert np.isfinite(scale)


def test_a_forward_pass_that_does_not_fit_is_halved_too(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
    run = again(finished, tmp_path, "v_patch", "dla_scatter")
    monkeypatch.setattr(stream, "trace", short_of_memory(stream.trace, 2, host, where=1))
    answer = run.cli("run")
    assert answer.code == Exit.OK, answer.text
    assert answer.out.count("out of memory") == 1
    assert notes(run.result("v_patch")) == [{"micro_batch": 2}] * 2


def test_what_does_not_fit_even_alone_is_one_experiments_failure(halved: Callable[[int], tuple[Run, Answer]]) -> None:
    run, answer = halved(0)
    assert answer.code == Exit.FAILED
    sentence = (
        "v_patch failed: out of memory with a single prompt of 40 tokens, which no --memory makes smaller: use prompts "
        "of fewer tokens, free some memory, or try --device cpu"
    )
    assert answer.out.count(sentence) == 1
    assert "Traceback" not in answer.text
    assert not (run.result("v_patch") / "COMMIT").exists()
    assert read_summary(run.result("nodes_onto_writer")).attrs["measure"] == "projection"
