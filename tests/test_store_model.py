"""The store against a dictionary, under any order of work, damage and repair."""

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
from repro.store import Result, open_result, status
from repro.verify import invalidate, verify_result
from tests import campaigns, faulty


class Model(stateful.RuleBasedStateMachine):
    """The store against a dictionary: which units are done, and whether the whole is committed."""

    n_units = 3

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        self.path = Path(self.folder.name) / "s" / "e" / "k"
        self.done: set[int] = set()
        self.committed = False
        self.results = [self._open(), self._open()]

    def _open(self) -> Result:
        return open_result(self.path, faulty.layout(5), faulty.UNIT, faulty.PROVENANCE)

    units = st.integers(0, n_units - 1)
    workers = st.integers(0, 1)

    @stateful.rule(worker=workers, i=units)
    def write(self, worker: int, i: int) -> None:
        result = self.results[worker]
        written = result.write_unit(i, faulty.measure(result.layout, result.unit_slice(i)))
        assert written == (i not in self.done)
        self.done.add(i)

    @stateful.rule(worker=workers)
    def reopen(self, worker: int) -> None:
        self.results[worker].close()
        self.results[worker] = self._open()

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
        assert status(self.path) == expected
        assert campaigns.after_kill(self.path) == self.done

    def teardown(self) -> None:
        self.folder.cleanup()


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=20, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
