"""The page as text: the template filled in, scripts and data made safe to stand inside it."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

SCRIPTS = ("tables.js", "charts.js", "map.js")
STYLES = ("page.css",)


def render(context: dict[str, Any], data: dict[str, Any]) -> str:
    """Return the page.

    context: what the template names, every text of it escaped; data: what the scripts read, as JSON values. Nothing on
    the page asks the network: its policy forbids every request. Agreement: tests/report/test_page.py.
    """
    environment = Environment(
        loader=PackageLoader("repro.report", "static"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template("page.html.j2").render(
        **context,
        style=Markup("\n".join(_static(name) for name in STYLES)),  # noqa: S704 - our own files
        script=Markup(_scripts()),  # noqa: S704 - our own files
        vega=Markup(inert(vega())),  # noqa: S704 - the libraries' own code
        data=Markup(inside_script(data)),  # noqa: S704 - escaped for a script element
    )


def inside_script(value: Any) -> str:
    """Return JSON that stays inside its script element: no text in it can close the element or open a comment."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def inert(code: str) -> str:
    """Return a library's code as it may stand inside a script element."""
    return code.replace("</script", "<\\/script").replace("<!--", "<\\!--")


@cache
def vega() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script."""
    import vl_convert

    # Its stub asks for a snippet; without one it exports the libraries.
    return str(vl_convert.javascript_bundle())  # type: ignore[call-arg]


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with a true minus sign, an en dash where there is none."""
    if value is None or value != value:
        return "\N{EN DASH}"
    text = f"{value:.{digits}f}"
    return text.replace("-", "" if float(text) == 0 else "\N{MINUS SIGN}")


def _scripts() -> str:
    """Return the page's own scripts in a scope of their own."""
    return "\n".join(['(() => {\n"use strict";', *map(_static, SCRIPTS), "})();"])


def _static(name: str) -> str:
    return files("repro.report").joinpath("static", name).read_text(encoding="utf-8")
