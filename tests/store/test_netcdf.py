"""Results go on as netCDF: every summary and the raw arrays of a finished run, written and read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from repro.labels import is_node
from repro.store.datasets import open_dataset, portable
from repro.store.result import read_raw, read_summary
from tests.runs import Run

# netCDF 3, which scipy writes: it has no type for whole numbers of 64 bits, and xarray narrows them if they fit.


def again(dataset: xr.Dataset, path: Path) -> xr.Dataset:
    dataset.to_netcdf(path, engine="scipy")
    with xr.open_dataset(path, engine="scipy") as opened:
        return opened.load()


def test_every_result_is_written_as_netcdf_and_comes_back(finished: Callable[[str], Run], tmp_path: Path) -> None:
    run = finished("llama")
    results = sorted(run.store.glob("*/*"))
    assert len(results) >= 7
    for result in results:
        for dataset in (read_summary(result), read_raw(result).load(), open_dataset(result / "data.zarr", "summary")):
            back = again(dataset, tmp_path / "one.nc")
            xr.testing.assert_equal(back, dataset)
            assert set(back.attrs) == set(dataset.attrs)
            for name, value in dataset.attrs.items():
                assert np.array_equal(back.attrs[name], value), name
            for name, variable in dataset.variables.items():
                assert {"units", "long_name"} <= set(variable.attrs), (result.parent.name, name)
                assert back[name].attrs["long_name"] == variable.attrs["long_name"]


def test_roles_and_provenance_are_read_from_what_netcdf_holds(finished: Callable[[str], Run]) -> None:
    run = finished("llama")
    attrs = read_summary(run.result("v_patch")).attrs
    erasers = attrs["erasers"].split(", ")
    assert erasers
    assert all(map(is_node, erasers))
    assert attrs["found"] in (0, 1)
    assert json.loads(attrs["provenance"])["experiment"] == "v_patch"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (True, 1),
        (["L2H2", "L2H3"], "L2H2, L2H3"),
        (("L2H2",), "L2H2"),
        ([0.25, 0.75], [0.25, 0.75]),
        ({"a": [1, None]}, '{"a": [1, null]}'),
        (None, "null"),
        ([1, "a"], '[1, "a"]'),
        (np.int64(3), 3),
    ],
)
def test_attributes_become_numbers_texts_and_arrays_of_numbers(given: object, kept: object, tmp_path: Path) -> None:
    attrs = portable({"one": given})
    assert attrs == {"one": kept}
    back = again(xr.Dataset({"v": ("d", [1.0])}, attrs=attrs), tmp_path / "one.nc")
    assert np.array_equal(back.attrs["one"], kept)  # type: ignore[arg-type]


def test_what_was_kept_as_lists_would_not_be_written(tmp_path: Path) -> None:
    """The control."""
    with pytest.raises((KeyError, TypeError, ValueError)):
        again(xr.Dataset({"v": ("d", [1.0])}, attrs={"erasers": ["L2H2", "L2H3"]}), tmp_path / "one.nc")
