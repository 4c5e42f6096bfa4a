"""What the variables of a summary are: `units` and `long_name` of each."""

from __future__ import annotations

import xarray as xr

from repro.store.layout import DIMENSIONS, Layout

_UNDEFINED = ("1", "how many of the values are undefined")
DERIVED = {
    "nan_count": _UNDEFINED,
    "site_nan_count": _UNDEFINED,
    "head_nan_count": _UNDEFINED,
    "variance_share": ("1", "share of the variance of the projection ratio"),
    "clean": ("logits", "DLA on the clean prompt"),
    "logit_diff": ("logits", "logit of the first answer minus that of the second"),
    "top2_named": ("1", "whether the answers are the model's two first predictions"),
    "pearson_r": ("1", "Pearson correlation of the erasers' DLA with the writer's"),
    "slope": ("1", "slope of the erasers' DLA on the writer's, by least squares"),
    "intercept": ("logits", "the fitted line where the writer's DLA is 0"),
    "n_points": ("1", "points that enter correlation and line"),
    "density": ("1", "points per bin"),
    "x": ("logits", "centre of a bin of the writer's DLA"),
    "y": ("logits", "centre of a bin of the erasers' DLA"),
    "taken_back": ("1", "minus the slope of the DLA of the erasers' paths on the writer's DLA"),
    "taken_abs": ("logits", "mean |DLA| times the share that is taken back"),
    "taken_back_r": ("1", "Pearson correlation of the DLA of the erasers' paths with the writer's DLA"),
    "mean_abs": ("logits", "mean of the absolute attribution"),
    "total_abs": ("logits", "mean of the absolute total effect"),
    "erases": ("1", "whether the component counts as an eraser of the writer"),
    "erasers_from": ("", "who says so: roles, or shares alone"),
    "component_slope": ("1", "slope of the DLA of the component's path on the writer's DLA"),
    "verdict": ("", "how far the writer's DLA is taken back, in words"),
    "indirect": ("1", "mean |net effect - DLA| over mean |DLA|"),
    "values": ("logits", "what is attributed to the writer"),
    "incomplete": ("logits", "largest |sources and biases - logit difference|"),
    "pearson": ("1", "Pearson correlation of attribution and total effect"),
    "spearman": ("1", "rank correlation of attribution and total effect"),
    "slope_of_total": ("1", "slope of the total effect on the attribution"),
    "sign_right": ("1", "share of total effects above 0.1 logits whose sign the attribution has"),
    "text": ("", "text of the prompt"),
    "answer": ("", "first answer"),
    "other": ("", "second answer"),
    "first": ("", "the model's first prediction"),
    "second": ("", "the model's second prediction"),
    "head_shown": ("", "head shown beside the writer"),
}
"""Summary variables that are no reduction of a raw variable of the same name."""


def described(dataset: xr.Dataset, layout: Layout) -> xr.Dataset:
    """Return a summary whose every variable has `units` and `long_name`; what its measure says of it comes first.

    layout: the raw variables; one of the same name lends its units, and its long name with what was done to it. A name
    that nothing tells of is its own long name. Agreement: tests/measures/test_summaries.py.
    """
    raw = {variable.name: variable for variable in layout.variables}
    for name, variable in dataset.variables.items():
        known = str(name)
        if known in raw:
            reduced = ", quantiles" if "quantile" in variable.dims else ""
            units, long_name = raw[known].units, raw[known].long_name + reduced
        elif known in DERIVED:
            units, long_name = DERIVED[known]
        else:
            units = "1" if variable.dtype.kind in "fiu" else ""
            long_name = DIMENSIONS.get(known, known.replace("_", " "))
        dataset[name].attrs = {"units": units, "long_name": long_name} | variable.attrs
    return dataset


def mark_capped(dataset: xr.Dataset, cap: float | None) -> None:
    """Say of a result in logits, in its attribute `logits`, that they are those before the model's cap, if it has one.

    Results without a variable in logits depend on no cap. Agreement: tests/measures/test_summaries.py.
    """
    if cap is not None and any(variable.attrs.get("units") == "logits" for variable in dataset.variables.values()):
        dataset.attrs["logits"] = f"before the cap {cap:g} tanh(l / {cap:g})"
