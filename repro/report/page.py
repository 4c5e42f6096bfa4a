"""The page as text: the template filled in, scripts and data made safe to stand inside it."""

from __future__ import annotations

import base64
import gzip
import json
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from paper_figures import text

SCRIPTS = ("tables.js", "charts.js", "map.js")


def render(context: dict[str, Any], data: dict[str, Any]) -> str:
    """Return the page.

    context: what the template names, every text of it escaped; data: what the scripts read, as JSON values. Nothing on
    the page asks the network: its policy forbids every request. Agreement: tests/report/test_page.py.
    """
    environment = Environment(
        loader=PackageLoader("repro.report", "static"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template("page.html.j2").render(
        **context,
        style=Markup(_static("page.css")),  # noqa: S704 - our own files
        script=Markup(_scripts()),  # noqa: S704 - our own files
        vega=vega(),
        data=packed(json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)),
    )


def packed(content: str) -> str:
    """Return a text as the page's scripts unpack it: gzip in base64, which no text can break out of.

    The libraries and the numbers are a megabyte and more each, packed a quarter of that; nothing is unpacked before
    a chart comes near. The same bytes for the same text. Agreement: tests/report/test_page.py.
    """
    return base64.b64encode(gzip.compress(content.encode(), 9, mtime=0)).decode()


@cache
def vega() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, packed."""
    import vl_convert

    # Its stub asks for a snippet; without one it exports the libraries.
    return packed(vl_convert.javascript_bundle())  # type: ignore[call-arg]


def number(value: float | None, digits: int = 2) -> str:
    """Return a number as figures print it: with a true minus sign, an en dash where there is none."""
    return text.number(float("nan") if value is None else value, digits)


def _scripts() -> str:
    """Return the page's own scripts in a scope of their own."""
    return "\n".join(['(async () => {\n"use strict";', *map(_static, SCRIPTS), "})();"])


def _static(name: str) -> str:
    return files("repro.report").joinpath("static", name).read_text(encoding="utf-8")
