"""A figure as one self-contained web page."""

from __future__ import annotations

import html as markup
import json
from typing import Any

import altair as alt

_STYLE = "body{margin:24px auto;max-width:max-content;background:#fff}#vis.vega-embed{width:auto}"


class _InsideScript(json.JSONEncoder):
    """JSON that stays inside its script element: no text from a prompt can close it or open a comment."""

    def encode(self, o: Any) -> str:
        text = super().encode(o)
        for character in "<>&\u2028\u2029":
            text = text.replace(character, f"\\u{ord(character):04x}")
        return text


def html(chart: Any) -> str:
    """Return the chart as a page that needs no network: libraries inline, prompts' text unable to act as markup.

    chart: any Altair chart. Returns the page's text, the same for the same chart.
    Tests: tests/figures/test_paper_figures.py.
    """
    page = chart.to_html(
        inline=True,
        json_kwds={"cls": _InsideScript, "sort_keys": True},
        embed_options={
            "renderer": "svg",
            "actions": {"export": True, "source": False, "compiled": False, "editor": False},
        },
    )
    name = chart.title.text if isinstance(chart.title, alt.TitleParams) else ""
    title = markup.escape(" ".join(name) if isinstance(name, list) else str(name))
    return page.replace("<html>", '<html lang="en">', 1).replace(
        "<head>", f"<head>\n  <title>{title}</title>\n  <style>{_STYLE}</style>", 1
    )
