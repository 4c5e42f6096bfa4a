"""Where the variance comes from: the writer's share of the stream by position, and variance by source."""

from __future__ import annotations

import altair as alt
import numpy as np
import xarray as xr

from .parts import data, drawn, key, layer_of, level, options, quartile_rows, quartile_tip, references, span, y_axis
from .text import number
from .theme import INK, LABEL, PAPER, SHARES, SOFT, WRITER, frame, quartile_words

OPTIONS = {"sites": "the sites to draw by position; by default after the writer, around the eraser layer, and the last"}
SOURCES = ("prompt", "position", "interaction")
EACH, TALL, DRAWN = 300, 170, 120


def _sites(ds: xr.Dataset, asked: list[str] | None) -> list[str]:
    every = [str(s) for s in ds["site"].values]
    if asked is not None:
        if missing := [s for s in asked if s not in every]:
            raise ValueError(f"option 'sites' names {', '.join(missing)}; there are {', '.join(every)}")
        return list(asked)
    writes, erases = f"resid_mid{layer_of(str(ds.attrs['writer']))}", f"resid_mid{int(ds.attrs['layer'])}"
    before = [every[every.index(erases) - 1]] if erases in every and every.index(erases) else []
    wanted = [writes, *before, erases, every[-1]]
    return [site for site in dict.fromkeys(wanted) if site in every]


def _selected(count: int) -> np.ndarray:
    """Positions to draw, evenly apart on a logarithmic scale: thinned by choosing, never by binning."""
    return np.unique(np.round(np.geomspace(1, count, min(count, DRAWN))).astype(int)) - 1


def _lines(ds: xr.Dataset, sites: list[str]) -> alt.ConcatChart:
    chosen = _selected(ds.sizes["position"])
    here = ds["pr"].sel(site=sites).isel(position=chosen).assign_coords(position=chosen)
    rows = [row | {"at": int(row["position"]) + 1} for row in quartile_rows(here)]
    domain = span(drawn(rows), 0, 1)
    count = ds.sizes["position"]
    ticks = [2**k for k in range(0, count.bit_length(), 2 if count > 64 else 1)]
    x = alt.X(
        "at:Q",
        scale=alt.Scale(type="log", base=2, domain=[1, max(count, 2)], nice=False),
        axis=alt.Axis(title="position (the first is 1; logarithmic)", values=ticks, format="d", grid=True),
    )
    panels = []
    for site in sites:
        title = f"PR({site}, {ds.attrs['writer']})"
        base = alt.Chart(data(row for row in rows if row["site"] == site)).encode(x=x)
        band = base.mark_area(color=WRITER, opacity=0.2).encode(y=y_axis("lower", domain, title), y2="upper:Q")
        line = base.mark_line(color=WRITER).encode(y=y_axis("median", domain, title), tooltip=quartile_tip("site", "position"))
        panels.append(alt.layer(references([0, 1]), band, line).properties(width=EACH, height=TALL))
    return alt.concat(*panels, columns=2, spacing={"row": 30, "column": 60})


def _shares(ds: xr.Dataset, width: int) -> alt.LayerChart:
    shares = ds["variance_share"].sel(source=list(SOURCES))
    rows = []
    for site in (str(s) for s in ds["site"].values):
        start = 0.0
        for source, colour, ink in zip(SOURCES, SHARES, (INK, PAPER, INK), strict=True):
            share = float(shares.sel(site=site, source=source))
            if np.isfinite(share):
                label = f"{number(100 * share, 0)} %" if share > 0.07 else ""
                rows.append(
                    {"site": site, "source": source, "share": share, "from": start, "to": start + share}
                    | {"colour": colour, "ink": ink, "words": label, "middle": start + share / 2}
                )
                start += share
    sites = [str(s) for s in ds["site"].values]
    heading = f"variance of PR(site, {ds.attrs['writer']}) by source"
    base = alt.Chart(data(rows)).encode(
        y=alt.Y("site:O", scale=alt.Scale(domain=sites, paddingInner=0.25), axis=alt.Axis(**level(heading))),
        tooltip=[alt.Tooltip("site:N"), alt.Tooltip("source:N"), alt.Tooltip("share:Q", format=".1%")],
    )
    scale = alt.Scale(domain=list(span([row["to"] for row in rows], 0, 1, margin=0)), nice=False)
    x = alt.X("from:Q", scale=scale, axis=alt.Axis(title=None, format="%", grid=True, tickCount=5))
    bars = base.mark_bar().encode(x=x, x2="to:Q", color=alt.Color("colour:N", scale=None))
    words = [
        base.transform_filter(alt.datum.ink == ink).mark_text(color=ink).encode(x="middle:Q", text="words:N")
        for ink in (INK, PAPER)
    ]
    legend = key([(source, colour, INK) for source, colour in zip(SOURCES, SHARES, strict=True)], width)
    return alt.layer(bars, *words, *legend).properties(width=width, height=22 * len(sites))


def chart(ds: xr.Dataset) -> alt.VConcatChart:
    """Projection ratio of a few sites onto the writer by position, and the share of its variance that each source has.

    ds:  summary of `pr_by_position`: pr[quantile, site, position] over prompts, variance_share[source, site].
    Tests: tests/test_paper_figures.py.
    """
    sites = _sites(ds, options(ds, OPTIONS).get("sites"))
    width = 2 * EACH + 92
    notes = [f"Line: median over {int(ds.attrs['n_prompts']):,} prompts; band: {quartile_words(ds)}; {len(_selected(ds.sizes['position']))} of {ds.sizes['position']:,} positions drawn.",
        "Prompt and position: variance of their means; interaction: what is left of each single value.",
    ]
    return frame(alt.vconcat(_lines(ds, sites), _shares(ds, width), spacing=34), ds, width, notes)
