"""Where the variance comes from: the writer's share of the stream by position, and its variance by source."""

from __future__ import annotations

import altair as alt
import numpy as np
import xarray as xr

from .parts import (
    Row,
    data,
    drawn,
    key,
    layer_of,
    layered,
    level,
    quartile_rows,
    quartile_tip,
    references,
    span,
    y_axis,
)
from .plots import Chart
from .text import number
from .theme import INK, PAPER, SHARES, WRITER, erasers, frame, quartile_words, undefined

OPTIONS = {"sites": "the sites to draw by position; by default after the writer, around the erasers, and the last"}
SOURCES = {"prompt": (SHARES[0], INK), "position": (SHARES[1], PAPER), "interaction": (SHARES[2], INK)}
EACH, TALL, DRAWN = 300, 170, 120
WIDTH = 2 * EACH + 92


def _sites(ds: xr.Dataset, asked: list[str] | None) -> list[str]:
    every = [str(s) for s in ds["site"].values]
    if asked is not None:
        if missing := [site for site in asked if site not in every]:
            raise ValueError(f"option 'sites' names {', '.join(missing)}; there are {', '.join(every)}")
        return list(asked)
    roles = erasers(ds)
    # The site before the first eraser writes, and the one after the last.
    around = [every[min(map(_written, roles)) - 1], every[max(map(_written, roles))]] if roles else []
    wanted = [every[_written(_onto(ds))], *around, every[-1]]
    return list(dict.fromkeys(wanted))


def _written(label: str) -> int:
    """Return the index of the first site that holds what a node wrote."""
    return 2 * layer_of(label) + (2 if label.startswith("MLP") else 1)


def _onto(ds: xr.Dataset) -> str:
    """Return the node that is projected on."""
    return str(ds.attrs.get("onto", ds.attrs["writer"]))


def _chosen(count: int) -> np.ndarray:
    """Choose positions to draw, evenly apart on a logarithmic scale: thinned by choosing, never by binning."""
    return np.unique(np.round(np.geomspace(1, count, min(count, DRAWN))).astype(int)) - 1


def _lines(ds: xr.Dataset, sites: list[str]) -> alt.ConcatChart:
    """Return one small plot per site, all with the same scales: the median over prompts with its quartile band."""
    count = ds.sizes["position"]
    chosen = _chosen(count)
    here = ds["pr"].sel(site=sites).isel(position=chosen).assign_coords(position=chosen)
    rows = [row | {"at": int(row["position"]) + 1} for row in quartile_rows(here)]
    domain = span(drawn(rows), 0, 1)
    ticks = [2**k for k in range(0, count.bit_length(), 2 if count > 64 else 1)]
    x = alt.X(
        "at:Q",
        scale=alt.Scale(type="log", base=2, domain=[1, max(count, 2)], nice=False),
        axis=alt.Axis(title="position (the first is 1; logarithmic)", values=ticks, format="d", grid=True),
    )
    panels = []
    for site in sites:
        title = f"PR({site}, {_onto(ds)})"
        base = Chart(data(row for row in rows if row["site"] == site)).encode(x=x)
        band = base.mark_area(color=WRITER, opacity=0.2).encode(y=y_axis("lower", domain, title), y2=alt.Y2("upper:Q"))
        line = base.mark_line(color=WRITER).encode(
            y=y_axis("median", domain, title), tooltip=quartile_tip("site", "at")
        )
        panels.append(layered([*references([0, 1]), band, line], EACH, TALL))
    return alt.concat(*panels, columns=2, spacing={"row": 30, "column": 60})


def _share_rows(ds: xr.Dataset) -> list[Row]:
    """Return the bars' pieces, end to end from 0; a share that is undefined has no piece."""
    rows = []
    for site in (str(s) for s in ds["site"].values):
        start = 0.0
        for source, (colour, ink) in SOURCES.items():
            share = float(ds["variance_share"].sel(site=site, source=source))
            if not np.isfinite(share):
                continue
            words = f"{number(100 * share, 0)} %" if share > 0.07 else ""
            where: Row = {"from": start, "to": start + share, "middle": start + share / 2}
            rows.append(
                {"site": site, "source": source, "share": share, "colour": colour, "ink": ink, "words": words} | where
            )
            start += share
    return rows


def _shares(ds: xr.Dataset) -> alt.LayerChart:
    """Return a stacked bar per site: how much of its variance prompts, positions and their interaction have."""
    rows, sites = _share_rows(ds), [str(s) for s in ds["site"].values]
    title = level(f"variance of PR(site, {_onto(ds)}) by source")
    y = alt.Y("site:O", scale=alt.Scale(domain=sites, paddingInner=0.25), axis=alt.Axis(**title, labelOverlap=False))
    tips = [alt.Tooltip("site:N"), alt.Tooltip("source:N"), alt.Tooltip("share:Q", format=".1%")]
    base = Chart(data(rows)).encode(y=y, tooltip=tips)
    scale = alt.Scale(domain=list(span([row["to"] for row in rows], 0, 1, margin=0)), nice=False)
    x = alt.X("from:Q", scale=scale, axis=alt.Axis(title=None, format="%", grid=True, tickCount=5))
    bars = base.mark_bar().encode(x=x, x2=alt.X2("to:Q"), color=alt.Color("colour:N", scale=None))
    words = [
        base.transform_filter(alt.datum.ink == ink)
        .mark_text(color=ink)
        .encode(x=alt.X("middle:Q"), text=alt.Text("words:N"))
        for ink in (INK, PAPER)
    ]
    legend = key([(source, colour, INK) for source, (colour, _) in SOURCES.items()], WIDTH)
    return layered([bars, *words, *legend], WIDTH, 22 * len(sites))


def chart(ds: xr.Dataset) -> alt.ConcatChart:
    """Draw the projection ratio of a few sites onto the writer by position, and the shares of its variance.

    ds:  summary of `pr_by_position`: pr[quantile, site, position] over prompts, variance_share[source, site].
    Raises ValueError for an unknown site. Tests: tests/figures/test_paper_figures.py.
    """
    sites = _sites(ds, ds.attrs["options"].get("sites"))
    count = ds.sizes["position"]
    notes = [
        f"Line: median over {int(ds.attrs['n_prompts']):,} prompts; band: {quartile_words(ds)}; "
        f"{len(_chosen(count)):,} of {count:,} positions drawn.",
        "Prompt and position: variance of their means; interaction: what is left of each single value.",
        *undefined(ds, "pr", "nan_count"),
    ]
    if missing := int((~np.isfinite(ds["variance_share"])).sum()):
        notes.append(f"{missing} of {ds['variance_share'].size} shares are undefined and not drawn.")
    return frame(alt.vconcat(_lines(ds, sites), _shares(ds), spacing=34), ds, WIDTH, notes)
