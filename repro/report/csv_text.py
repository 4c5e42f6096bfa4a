"""A stored summary as CSV: one line for each labelled value, quantiles side by side."""

from __future__ import annotations

import math
from typing import Any

import xarray as xr

MOST = 20_000
"""Values of one variable; raw points beyond stay in the store."""
VALUES = ["lower", "median", "upper", "value"]


def csv_text(ds: xr.Dataset) -> str:
    """Return a summary's variables as CSV with the columns: variable, labels, lower, median, upper, value, units.

    Counts of 0 in a density, undefined values and raw points are left out; six significant digits. The same text for
    the same summary. Agreement: tests/report/test_parts.py (read back).
    """
    small = [ds[name].reset_coords(drop=True) for name in sorted(map(str, ds.data_vars)) if ds[name].size <= MOST]
    labels = list(dict.fromkeys(str(dim) for array in small for dim in array.dims if dim != "quantile"))
    columns = ["variable", *labels, *VALUES, "units"]
    lines = [",".join(columns) + "\n"]
    for array in small:
        if {"prompt", "position"} <= set(array.dims):
            continue
        if set(array.dims) <= {"quantile"}:
            array = array.expand_dims("single")  # no frame without an index
        wide = array.to_dataset("quantile") if "quantile" in array.dims else array.to_dataset(name="value")
        frame = wide.to_dataframe([dim for dim in array.dims if dim != "quantile"])
        frame = frame.reset_index().reindex(columns=columns)
        if array.name == "density":
            frame = frame[frame["value"] > 0]
        frame[VALUES] = frame[VALUES].map(_shown)
        frame = frame[(frame[VALUES] != "").any(axis=1)].assign(variable=array.name, units=array.attrs.get("units", ""))
        lines.append(frame.to_csv(header=False, index=False, lineterminator="\n"))
    return "".join(lines)


def _shown(value: Any) -> str:
    """Return a number in six digits, a word as it is, and nothing for what is undefined."""
    if isinstance(value, str):
        return value
    return f"{float(value):.6g}" if math.isfinite(value) else ""
