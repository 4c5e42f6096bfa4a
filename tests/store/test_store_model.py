"""The store against a dictionary, under any order of work, claims, kills, damage and repair."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import hypothesis.stateful as stateful
import pytest
import xarray as xr
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from repro.errors import ReproError
from repro.store.result import Result, open_result, status
from repro.store.verify import invalidate, verify_result
from tests import campaigns, faulty


class Model(stateful.RuleBasedStateMachine):
    """Two workers' store against a dictionary: which units are done, who holds which, whether all is committed."""

    n_units = 3

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        self.path = Path(self.folder.name) / "s" / "e" / "k"
        self.done: set[int] = set()
        self.held: dict[int, int] = {}
        self.committed = False
        self.results = [self._open(), self._open()]

    def _open(self) -> Result:
        return open_result(self.path, faulty.layout(5), faulty.UNIT, faulty.PROVENANCE)

    units = st.integers(0, n_units - 1)
    workers = st.integers(0, 1)

    def _mine(self, worker: int, i: int) -> bool:
        """Whether a worker may have a unit."""
        return i not in self.done and self.held.get(i, worker) == worker

    @stateful.rule(worker=workers, i=units)
    def write(self, worker: int, i: int) -> None:
        result = self.results[worker]
        arrays = faulty.measure(result.layout, result.unit_slice(i))
        if i in self.done or self._mine(worker, i):
            assert result.write_unit(i, arrays) == (i not in self.done)
            self.done.add(i)
            self.held.pop(i, None)
        else:
            with pytest.raises(ReproError, match=f"unit {i} is held by another runner"):
                result.write_unit(i, arrays)

    @stateful.rule(worker=workers, i=units)
    def claim(self, worker: int, i: int) -> None:
        assert self.results[worker].claim(i) == self._mine(worker, i)
        if self._mine(worker, i):
            self.held[i] = worker

    @stateful.rule(worker=workers, i=units)
    def release(self, worker: int, i: int) -> None:
        self.results[worker].release(i)
        if self.held.get(i) == worker:
            del self.held[i]

    @stateful.rule(worker=workers)
    def reopen(self, worker: int) -> None:
        self.results[worker].close()
        self.held = {i: holder for i, holder in self.held.items() if holder != worker}
        self.results[worker] = self._open()

    @stateful.precondition(lambda self: len(set(self.held.values())) < 2)
    @stateful.rule(worker=workers)
    def fill(self, worker: int) -> None:
        """The real unit loop, for which nobody is in the way."""
        if set(self.held.values()) <= {worker}:
            faulty.complete(self.results[worker])
            self.done = set(range(self.n_units))
            self.held.clear()

    @stateful.rule(i=units)
    def killed(self, i: int) -> None:
        """What a process leaves that dies while it writes: half a temporary file, and a chunk without its record."""
        folder = self.path / "data.zarr" / "pr"
        (folder / f".c.0.{i}.0.0123456789ab.tmp").write_bytes(b"half")
        if i not in self.done:
            (folder / f"c.0.{i}.0").write_bytes(b"whole, of another run")

    @stateful.rule(worker=workers)
    def finalise(self, worker: int) -> None:
        result = self.results[worker]
        if len(self.done) == self.n_units:
            result.finalise(faulty.summary(result))
            self.committed = True
        else:
            with pytest.raises(ReproError, match="not recorded"):
                result.finalise(xr.Dataset())

    @stateful.precondition(lambda self: self.done)
    @stateful.rule(data=st.data(), cut=st.booleans(), record=st.booleans())
    def damage(self, data: st.DataObject, cut: bool, record: bool) -> None:
        i = data.draw(st.sampled_from(sorted(self.done)))
        file = self.path / (f"units/{i:06d}.json" if record else f"data.zarr/pr/c.0.{i}.0")
        content = bytearray(file.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(content[:place] if cut else content)
        findings = verify_result(self.path)
        assert [finding.path for finding in findings] == [file]
        invalidate(findings[0])
        self.done.discard(i)
        self.committed = False

    @stateful.invariant()
    def agrees(self) -> None:
        assert self.results[0].missing() == [i for i in range(self.n_units) if i not in self.done]
        expected = "committed" if self.committed else f"partial {len(self.done)}/{self.n_units}"
        assert str(status(self.path)) == expected
        assert campaigns.after_kill(self.path) == self.done

    def teardown(self) -> None:
        self.folder.cleanup()


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=20, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
