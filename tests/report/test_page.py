"""The page as text: everything in it, nothing able to act, the same for the same data, and made once."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from markupsafe import Markup

from repro.check.compare import check
from repro.errors import Exit
from repro.report import page
from repro.report.figures import Shown
from repro.report.page import number, packed, render
from repro.report.stamp import stamp_in
from tests.report.pages import NASTY, context, nasty_drawing
from tests.runs import Run

Finished = Callable[[str], Run]
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
LIMIT = 3_000_000
"""Bytes of a page of a small model."""
FIGURES = {
    *("post_1_top", "post_1_bottom", "post_2", "post_3a", "post_3b", "post_4a", "post_4b", "post_5"),
    *("paper_2", "paper_3", "paper_5", "appendix"),
}
HEADINGS = (
    "The answer",
    "The figures",
    "Every pair that was tested",
    "What does not hold",
    "Where the numbers come from",
)


class Outline(HTMLParser):
    """Tags, headings, ids, references and the text inside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[int, str]] = []
        self.ids: list[str] = []
        self.scripts: list[str] = []
        self._inside: str = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if (own := dict(attrs).get("id")) is not None:
            self.ids.append(own)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif re.fullmatch("h[1-6]|em", self._inside) and self.headings:
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)


def read(script: str) -> str:
    return gzip.decompress(base64.b64decode(script)).decode()


@pytest.fixture(scope="module")
def text(finished: Finished) -> str:
    return (finished("native").figures / "report.html").read_text(encoding="utf-8")


def test_a_page_has_its_parts_in_order_and_stays_small(text: str) -> None:
    assert len(text.encode()) < LIMIT
    at = [text.index(f">{heading}", text.index("<main")) for heading in HEADINGS]
    assert at == sorted(at)
    levels = [level for level, _ in Outline(text).headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels)), "no level is skipped"


def test_a_page_asks_the_network_for_nothing(text: str) -> None:
    outline = Outline(text)
    for tag, attrs in outline.tags:
        assert "src" not in attrs, tag
        link = attrs.get("href") or attrs.get("xlink:href") or ""
        assert link.startswith("#") or link in ("", "data:,"), (tag, link)
    policy = next(attrs["content"] for _, attrs in outline.tags if "http-equiv" in attrs)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    assert len(outline.ids) == len(set(outline.ids)), "ids are unique, those of the drawings too"


def test_the_library_is_there_once(text: str) -> None:
    scripts = Outline(text).scripts
    assert len(scripts) == text.count("<script") == 4
    assert [read(script).count("window.vegaEmbed=") for script in scripts[1:3]] == [1, 0]


def test_a_page_says_loudly_whose_numbers_these_are(text: str, finished: Finished) -> None:
    assert "Not the paper\N{RIGHT SINGLE QUOTATION MARK}s model." in text
    assert f"Ours, on {finished('native').subject}" in text
    assert "Published, on gelu-4l" in text


def test_the_words_below_figures_are_explained_where_they_occur(text: str) -> None:
    assert "examples MINED from its prompts" in text
    assert "<dt>MINED</dt><dd>the examples are" in text
    for word in ("COMMITTED", "PARTIAL"):
        assert f"<dt>{word}</dt>" not in text


def test_every_figure_is_there_with_its_declaration(text: str) -> None:
    outline = Outline(text)
    data = json.loads(read(outline.scripts[2]))
    ours = [name for name in data["charts"]["by_id"] if not name.endswith("_published")]
    assert set(ours) == FIGURES, "those that draw the same once"
    for chart in data["charts"]["by_id"].values():
        assert data["charts"]["csv"][chart["csv"]].startswith("variable,")
        assert "title" not in chart["spec"], "the page sets the words"
    assert text.count("[experiment.v_patch]") == 3, "post 3a (paper 1), post 3b, paper 3"


def test_the_same_store_gives_the_same_page_and_it_is_made_once(finished: Finished, tmp_path: Path) -> None:
    run = finished("native").copy(tmp_path)
    path = run.figures / "report.html"
    before, bytes_before = path.stat().st_mtime_ns, path.read_bytes()
    answer = run.cli("report")
    assert answer.code == Exit.OK, answer.text
    assert answer.out.splitlines()[-1] == f"report: {path}"
    assert path.stat().st_mtime_ns == before
    path.unlink()
    assert run.cli("report").code == Exit.OK
    assert path.read_bytes() == bytes_before
    assert stamp_in(path)
    path.write_text(path.read_text(encoding="utf-8").replace(stamp_in(path), "0" * 64), encoding="utf-8")
    assert run.cli("report").code == Exit.OK
    assert path.read_bytes() == bytes_before, "a page of another stamp is made anew"


def test_texts_of_others_cannot_act() -> None:
    drawing = nasty_drawing()
    shown = Shown("paper_5", NASTY[0], NASTY[1], NASTY[2], drawing, None, NASTY)
    charts = {"x": {"spec": drawing.spec, "csv": 0, "sample": NASTY[0], "described": NASTY[1], "quantiles": ["", ""]}}
    text = render(
        context(figures=[shown], stills={"paper_5": Markup(drawing.still)}),
        {"charts": {"csv": [drawing.csv], "by_id": charts}, "map": None},
    )
    plain = Outline(render(context(), {"charts": {"csv": [], "by_id": {}}, "map": None}))
    outline = Outline(text)
    assert not [attrs for _, attrs in outline.tags if any(name.startswith("on") for name in attrs)]
    assert not [tag for tag, _ in outline.tags if tag == "img"]
    assert len(outline.scripts) == len(plain.scripts) == 4
    assert json.loads(read(outline.scripts[2]))["charts"]["csv"] == [drawing.csv], "and yet every text is whole"


@pytest.mark.parametrize("nasty", NASTY)
def test_what_is_packed_stays_inside_its_element(nasty: str) -> None:
    written = packed(nasty)
    assert re.fullmatch(r"[A-Za-z0-9+/]+=*", written)
    assert read(written) == nasty
    assert written == packed(nasty), "the same bytes for the same text"


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [(-0.5, 2, f"{MINUS}0.50"), (-0.001, 2, "0.00"), (None, 2, DASH), (float("nan"), 1, DASH)],
)
def test_numbers_have_a_true_minus_and_no_nan(value: float | None, digits: int, shown: str) -> None:
    assert number(value, digits) == shown


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2) of #rrggbb."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(scheme: str) -> None:
    css = (Path(page.__file__).parent / "static" / "page.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[:2]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", light if scheme == "light" else dark))
    for name in ("ink", "soft", "writer", "eraser", "good", "bad"):
        for ground in ("paper", "card"):
            high, low = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)


def test_the_papers_own_page_has_every_number_judged() -> None:
    rows = check({}, subject_is_papers=True, same_prompts=True)
    single = [row for row in rows if row.group is None]
    differs = dataclasses.replace(single[0], ours=-0.5, interval=(-0.6, -0.4), verdict="differs", why="outside")
    changes = {"is_papers": True, "rows": [differs, *single[1:]], "compared": "match: 0", "fallback": ""}
    text = render(context(**changes), {"charts": {"csv": [], "by_id": {}}, "map": None})
    assert text.count('class="is-not-determinable-here"') == len(single) - 1
    assert 'class="is-differs"' in text
    assert f"{MINUS}0.500" in text
    assert "Not the paper" not in text
