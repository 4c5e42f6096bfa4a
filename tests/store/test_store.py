"""The store gives back what was put in, resumes what was begun, and refuses to mix or to guess."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from repro.errors import Exit, ReproError
from repro.store.layout import key12, result_path
from repro.store.records import plain
from repro.store.result import Result, commit_reduced, open_result, read_raw, read_summary, status
from tests import campaigns, faulty

N_PROMPTS = 9  # five units, the last one short


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return result_path(tmp_path / "store", "mini", "scan", "0123456789ab")


def _open(path: Path, n_prompts: int = N_PROMPTS, unit: int = faulty.UNIT, **provenance: Any) -> Result:
    return open_result(path, faulty.layout(n_prompts), unit, {**faulty.PROVENANCE, **provenance})


def test_what_is_written_is_read_back_to_the_bit(path: Path) -> None:
    faulty.run(path, N_PROMPTS)
    everything = faulty.measure(faulty.layout(N_PROMPTS), slice(0, N_PROMPTS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raw = read_raw(path)
        direct = xr.open_zarr(path / "data.zarr", consolidated=False, chunks=None)
    result = _open(path)
    for name, expected in everything.items():
        assert raw[name].values.tobytes() == expected.tobytes()
        assert direct[name].values.tobytes() == expected.tobytes()
        assert result.read(name).tobytes() == expected.tobytes()
    assert raw["pr"].dims == ("node", "prompt", "position")
    assert list(raw["node"].values) == list(faulty.NODES)
    assert raw["node"].dtype == object
    assert raw["pr"].attrs == {"units": "1", "long_name": "projection ratio"}
    assert result.read("pr", node=1, prompt=slice(2, 5)).tobytes() == everything["pr"][1, 2:5].tobytes()
    assert result.read("pr", prompt=-1).tobytes() == everything["pr"][:, -1].tobytes()


def test_chunks_are_units_and_are_checksummed(path: Path) -> None:
    faulty.run(path, N_PROMPTS)
    metadata = json.loads((path / "data.zarr" / "pr" / "zarr.json").read_text())
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [3, faulty.UNIT, 8]
    assert [codec["name"] for codec in metadata["codecs"]] == ["bytes", "zstd", "crc32c"]
    assert metadata["dimension_names"] == ["node", "prompt", "position"]
    # A chunk of nothing but NaN (prompts 2 and 3) is a file like any other.
    assert len(list((path / "data.zarr" / "pr").glob("c.*"))) == 5
    record = json.loads((path / "units" / "000001.json").read_text())
    assert record["prompts"] == [2, 4]
    assert record["variables"]["pr"]["nan"] == 48
    assert record["environment"] == faulty.PROVENANCE["environment"]
    assert record["notes"] == {"halved": 0}


def test_status_and_missing_follow_the_work(path: Path) -> None:
    assert str(status(path)) == "absent"
    with _open(path) as result:
        assert str(status(path)) == "partial 0/5"
        assert result.n_units == 5
        assert result.unit_slice(4) == slice(8, 9)
        for i in (4, 0):
            result.write_unit(i, faulty.measure(result.layout, result.unit_slice(i)))
        assert str(status(path)) == "partial 2/5"
        assert result.missing() == [1, 2, 3]
        with pytest.raises(ReproError, match=r"units \[1\] are not recorded"):
            result.read("pr", prompt=slice(0, 3))
        with pytest.raises(ReproError, match="3 of 5 units are not recorded"):
            result.finalise(xr.Dataset())
        assert not result.write_unit(0, faulty.measure(result.layout, result.unit_slice(0)))
    faulty.run(path, N_PROMPTS)
    assert str(status(path)) == "committed"
    with _open(path) as result:
        assert result.committed
        assert result.missing() == []
        result.finalise(xr.Dataset())
    assert "pr" in read_summary(path)


def test_status_is_quick_and_needs_no_zarr(path: Path) -> None:
    faulty.run(path, N_PROMPTS)
    code = (
        "import sys; from pathlib import Path; from repro.store.result import status; import repro.store.verify;"
        f"print(status(Path({str(path)!r})), {{'zarr', 'xarray', 'torch'}} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    said = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "committed set()"


def test_uncommitted_results_are_refused(path: Path) -> None:
    for expected in ("absent", "partial 0/5"):
        for read in (read_summary, read_raw):
            with pytest.raises(ReproError, match=f"not committed.*{expected}.*repro run") as caught:
                read(path)
            assert caught.value.code == Exit.CORRUPT
        _open(path).close()
    with pytest.raises(ReproError, match="not committed"):
        commit_reduced(path, path.parents[2] / "committed" / "mini" / "scan")


def test_another_layout_or_unit_is_refused(path: Path) -> None:
    faulty.run(path, N_PROMPTS)
    sizes = r"sizes \{.*'prompt': 9\} there, \{'prompt': 10,.*\} asked for"
    for other, told in (({"n_prompts": 10}, sizes), ({"unit": 3}, "unit 2 there, 3 asked for")):
        with pytest.raises(ReproError, match=rf"another layout \({told}\): remove") as caught:
            _open(path, **other)
        assert caught.value.code == Exit.CORRUPT


def test_another_environment_is_another_result(path: Path) -> None:
    parts = {"spec": {"n": 9}, "environment": {"torch": "2.13"}}
    other = {**parts, "environment": {"torch": "2.14"}}
    assert key12(parts) == key12(dict(reversed(parts.items())))
    assert key12(parts) != key12(other)
    with _open(path) as result:
        result.write_unit(0, faulty.measure(result.layout, result.unit_slice(0)))
    changed: dict[str, Any] = {"environment": {"numpy": "3", "device": "cpu"}}
    with pytest.raises(ReproError, match="another environment") as caught:
        _open(path, **changed)
    assert caught.value.code == Exit.CORRUPT
    # What is provenance only does not matter.
    _open(path, git="1111").close()
    # Records of another environment do not count even where the manifest was lost.
    (path / "manifest.json").unlink()
    with _open(path, **changed) as result:
        assert result.missing() == [0, 1, 2, 3, 4]
    # A finished result is read as it is.
    finished = path.with_name("finished")
    faulty.run(finished, N_PROMPTS)
    assert _open(finished, **changed).committed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pr": None}, "a unit holds"),
        ({"extra": np.zeros(2)}, "a unit holds"),
        ({"pr": np.zeros((3, 2, 8))}, "must be float32 .* given float64"),
        ({"pr": np.zeros((3, 1, 8), np.float32)}, "must be float32 .*'prompt': 2"),
    ],
)
def test_arrays_that_were_not_declared_are_refused(path: Path, change: dict[str, Any], message: str) -> None:
    with _open(path) as result:
        arrays = {**faulty.measure(result.layout, slice(0, 2)), **change}
        with pytest.raises(ReproError, match=message):
            result.write_unit(0, {name: array for name, array in arrays.items() if array is not None})
        with pytest.raises(ReproError, match="no unit 5"):
            result.write_unit(5, {})
        assert result.missing() == [0, 1, 2, 3, 4]


def _summary() -> xr.Dataset:
    return xr.Dataset(
        {"pr": (("quantile", "node"), np.array([[-0.0, np.nan], [1, 2], [3, 4]], np.float32)), "n": ("node", [1, 2])},
        {
            "quantile": ["lower", "median", "upper"],
            "node": np.array(["L0H2", "MLP0"], dtype=object),
            "text": ("node", np.array(["class MyClass:\n\tdef é", "<b>"], dtype=object)),
            "ok": ("node", [True, False]),
        },
        {
            "found": np.bool_(True),
            "erasers": ["L2H2"],
            "none": [],
            "quantiles": np.array([0.25, 0.75]),
            "layer": np.int64(2),
        },
    )


def _committed(path: Path) -> Path:
    with _open(path, hf_token="hf_abcdefghijklmnopqrstuvwx") as result:
        faulty.complete(result)
        result.finalise(_summary())
    return path


def test_summaries_come_back_as_they_were(path: Path) -> None:
    _committed(path)
    copy = path.parents[2] / "committed" / "mini" / "scan"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        commit_reduced(path, copy)
        for source in (path, copy):
            got = read_summary(source)
            provenance = json.loads(got.attrs.pop("provenance"))
            assert provenance["git"] == "0000"
            expected = _summary()
            assert got.attrs == {**expected.attrs, "quantiles": [0.25, 0.75], "found": 1, "erasers": "L2H2"}
            assert list(got["quantile"].values) == ["lower", "median", "upper"]
            for name in ("pr", "n", "ok", "node", "text"):
                assert got[name].dims == expected[name].dims
                assert list(got[name].values.ravel()) == pytest.approx(list(expected[name].values.ravel()), nan_ok=True)
                assert got[name].dtype == expected[name].dtype
    with pytest.raises(ReproError, match="no raw arrays"):
        read_raw(copy)
    assert str(status(copy)) == "committed"


def test_copies_are_few_files_and_the_same_bytes(path: Path) -> None:
    _committed(path)
    copies = [path.parents[2] / "committed" / "mini" / name for name in ("one", "two")]
    for copy in copies:
        commit_reduced(path, copy)
    assert sorted(campaigns.contents(copies[0])) == ["COMMIT", "provenance.json", "summary.zarr.zip"]
    assert campaigns.contents(copies[0]) == campaigns.contents(copies[1])
    commit_reduced(path, copies[0])
    assert campaigns.contents(copies[0]) == campaigns.contents(copies[1])


def test_secrets_do_not_reach_provenance(path: Path) -> None:
    _committed(path)
    assert b"hf_abcdef" not in b"".join(campaigns.contents(path).values())
    given = {
        "hf_token": "abc",
        "API-KEY": "abc",
        "url": "https://user:pass@host/x",
        "note": "using ghp_0123456789abcdefghij now",
        "token_sha256": "feed",
        "tokens": [1, 2],
    }
    assert plain(given) == {
        "hf_token": "[removed]",
        "API-KEY": "[removed]",
        "url": "https://[removed]@host/x",
        "note": "using [removed] now",
        "token_sha256": "feed",
        "tokens": [1, 2],
    }
    with pytest.raises(ReproError, match="cannot be kept as JSON"):
        plain({"x": object()})
    assert plain({"x": np.float32(0.5), "y": (np.nan, np.arange(2))}) == {"x": 0.5, "y": ["nan", [0, 1]]}


def test_what_reads_back_differently_is_not_recorded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from repro import files

    real = files.write_durably

    def lying_disk(file: Path, content: bytes) -> None:
        real(file, content[:-1] + b"?" if file.name == "c.0.0.0" else content)

    with _open(path) as result:
        monkeypatch.setattr(files, "write_durably", lying_disk)
        with pytest.raises(ReproError, match="reads back differently"):
            result.write_unit(0, faulty.measure(result.layout, slice(0, 2)))
        monkeypatch.undo()
        assert result.missing() == [0, 1, 2, 3, 4]
        assert result.write_unit(0, faulty.measure(result.layout, slice(0, 2)))


def test_an_interrupt_leaves_nothing_half_done(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    with _open(path) as result:
        before = campaigns.contents(path)
        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            result.write_unit(0, faulty.measure(result.layout, slice(0, 2)))
        monkeypatch.undo()
        assert campaigns.contents(path) == before
        assert result.missing() == [0, 1, 2, 3, 4]
