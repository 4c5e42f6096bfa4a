"""A stored summary as CSV: one line for each labelled value, quantiles side by side."""

from __future__ import annotations

import csv
from io import StringIO
from typing import Any

import numpy as np
import xarray as xr

MOST = 20_000
"""Values of one variable; raw points beyond stay in the store."""


def csv_text(ds: xr.Dataset) -> str:
    """Return a summary's variables as CSV with the columns: variable, labels, lower, median, upper, value, units.

    Counts of 0 in a density, undefined values and raw points are left out; six significant digits. The same text for
    the same summary. Agreement: tests/report/test_parts.py (read back).
    """
    dims = [d for d in _dims(ds) if d != "quantile"]
    out = StringIO()
    write = csv.writer(out, lineterminator="\n")
    write.writerow(["variable", *dims, "lower", "median", "upper", "value", "units"])
    for name in sorted(map(str, ds.data_vars)):
        array = ds[name]
        if array.size > MOST or {"prompt", "position"} & set(map(str, array.dims)) == {"prompt", "position"}:
            continue
        units = str(array.attrs.get("units", ""))
        for labels, values in _rows(array):
            if name == "density" and not values["value"]:
                continue
            numbers = [_number(values.get(column)) for column in ("lower", "median", "upper", "value")]
            if any(numbers):
                write.writerow([name, *(labels.get(dim, "") for dim in dims), *numbers, units])
    return out.getvalue()


def _dims(ds: xr.Dataset) -> list[str]:
    """Return the dimensions of small variables, in the order in which they first occur."""
    kept = [ds[name] for name in sorted(map(str, ds.data_vars)) if ds[name].size <= MOST]
    return list(dict.fromkeys(str(dim) for array in kept for dim in array.dims))


def _rows(array: xr.DataArray) -> list[tuple[dict[str, str], dict[str, Any]]]:
    by = [str(dim) for dim in array.dims if dim != "quantile"]
    labels = {dim: [str(v) for v in array[dim].values] if dim in array.coords else None for dim in by}
    if "quantile" in array.dims:
        parts = {str(q): array.sel(quantile=q).transpose(*by).values for q in array["quantile"].values}
    else:
        parts = {"value": array.transpose(*by).values}
    rows = []
    for at in np.ndindex(*(array.sizes[dim] for dim in by)):
        named = {dim: str(i) if (known := labels[dim]) is None else known[i] for dim, i in zip(by, at, strict=True)}
        rows.append((named, {column: values[at] for column, values in parts.items()}))
    return rows


def _number(value: Any) -> str:
    if value is None:
        return ""
    number = float(value)
    return f"{number:.6g}" if np.isfinite(number) else ""
