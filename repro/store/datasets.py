"""Small labelled Datasets on disk, in zarr, with attributes that other formats hold, too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro.store import records

if TYPE_CHECKING:
    import xarray as xr


def portable(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Return attributes as netCDF holds them: numbers, texts and arrays of numbers.

    A list of texts becomes one text (`L2H2, L2H3`), true and false become 1 and 0, and a table becomes JSON.
    Agreement: tests/store/test_netcdf.py.
    """
    return {str(name): _portable(value) for name, value in records.plain(attrs).items()}


def _portable(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, list) and not all(isinstance(item, int | float) for item in value):
        return ", ".join(value) if all(isinstance(item, str) for item in value) else json.dumps(value)
    return json.dumps(value, sort_keys=True) if value is None or isinstance(value, dict) else value


def write_dataset(dataset: xr.Dataset, folder: Path, codecs: Sequence[Any]) -> None:
    """Write a small labelled Dataset, one chunk a variable, the same bytes for the same values."""
    plain = dataset.copy(deep=False).drop_encoding()
    plain.attrs = portable(plain.attrs)
    for name, variable in dataset.variables.items():
        if variable.dtype.kind in "UST":
            plain[name] = (variable.dims, variable.values.astype(object), records.plain(variable.attrs))
    encoding: dict[Any, dict[str, Any]] = {}
    for name, variable in plain.variables.items():
        encoding[name] = {"compressors": list(codecs), "chunks": variable.shape}
        if variable.dtype.kind == "f":
            encoding[name]["_FillValue"] = None
    plain.to_zarr(folder, mode="w", zarr_format=3, consolidated=False, encoding=encoding)


def open_dataset(where: Any, group: str | None = None) -> xr.Dataset:
    """Return a Dataset as it was written, by name, its strings as objects; arrays stay on disk until asked for."""
    import xarray as xr

    dataset = xr.open_zarr(
        where,
        group=group,
        consolidated=False,
        chunks=None,
        mask_and_scale=False,
        decode_times=False,
        decode_timedelta=False,
    )
    for name, variable in dataset.variables.items():
        if variable.dtype.kind in "UST":
            dataset[name] = (variable.dims, variable.values.astype(object), variable.attrs)
    # By name: zarr lists them in another order each time, and what is printed should not change.
    data, coords = ({str(n): part[n].variable for n in sorted(part)} for part in (dataset.data_vars, dataset.coords))
    return xr.Dataset(data, coords, dataset.attrs)
