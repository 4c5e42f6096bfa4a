"""The page in a real browser: nothing is asked or complained of, everything draws, and what can be done works."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from markupsafe import Markup

from repro.report.figures import Shown
from repro.report.page import render
from tests.report.pages import NASTY, context, nasty_drawing
from tests.runs import Run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, ViewportSize

Finished = Callable[[str], Run]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDE: ViewportSize = {"width": 1360, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}
SLOWER = 10
"""A page may take so many times as long to show its first words as a page that has nothing but a word.
On a quiet machine it takes less than five times as long; a busy one is not to fail."""
SHOTS = os.environ.get("REPRO_SCREENSHOTS")
"""Where pictures of the page are kept; nothing: with the test's other files."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with api.sync_playwright() as playwright:
        # As root, as in a container, Chromium has no sandbox.
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def report(finished: Finished) -> Path:
    return finished("native").figures / "report.html"


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page; at the end it must have asked for nothing and complained of nothing."""
    contexts, told = [], []

    def open_page(path: Path, **options: Any) -> Page:
        made = browser.new_context(**{"viewport": WIDE, "reduced_motion": "reduce", **options})
        made.set_default_timeout(120_000)  # a busy machine is not to fail
        contexts.append(made)
        page = made.new_page()
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: told.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        return page

    yield open_page
    for made in contexts:
        made.close()
    assert [message for message in told if not message.startswith("blob:")] == []


def draw_all(page: Page) -> int:
    """Scrolls past every chart and waits until it is drawn; how many there are."""
    charts = page.locator("[data-chart]")
    for i in range(charts.count()):
        charts.nth(i).scroll_into_view_if_needed()
        charts.nth(i).locator(".live svg").wait_for(state="visible")
    return int(charts.count())


def picture(page: Page, name: str, tmp_path: Path) -> Path:
    """A picture of the whole page."""
    directory = tmp_path if SHOTS is None else Path(SHOTS)
    directory.mkdir(parents=True, exist_ok=True)
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=directory / f"{name}.png", full_page=True)
    return directory / f"{name}.png"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_chart_draws_in_the_readers_colours(
    scheme: Any, opened: Callable[..., Page], report: Path, tmp_path: Path
) -> None:
    page = opened(report, color_scheme=scheme)
    assert draw_all(page) >= 20
    assert page.locator(".still:visible").count() == 0, "what is drawn takes the place of what stood"
    text = page.locator("#post_2 .live svg text").first.evaluate("node => node.getAttribute('fill')")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (text, ground) == {
        "light": ("#5F6B78", "rgb(255, 255, 255)"),
        "dark": ("#A3AFBB", "rgb(20, 24, 28)"),
    }[scheme]
    assert picture(page, scheme, tmp_path).stat().st_size > 100_000


def test_it_changes_with_the_readers_scheme(opened: Callable[..., Page], report: Path) -> None:
    page = opened(report, color_scheme="light")
    chart = page.locator("#post_1_bottom")
    chart.scroll_into_view_if_needed()
    chart.and_(page.locator("[data-drawn=light]")).wait_for()
    page.emulate_media(color_scheme="dark")
    chart.and_(page.locator("[data-drawn=dark]")).wait_for()


def test_a_phone_scrolls_down_alone(opened: Callable[..., Page], report: Path, tmp_path: Path) -> None:
    page = opened(report, viewport=PHONE, device_scale_factor=1)
    draw_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert picture(page, "narrow", tmp_path).stat().st_size > 100_000


def test_a_mark_tells_its_numbers(opened: Callable[..., Page], report: Path) -> None:
    page = opened(report)
    chart = page.locator("#post_1_bottom")
    chart.scroll_into_view_if_needed()
    chart.locator(".live svg").wait_for(state="visible")
    chart.locator(".live .mark-symbol path").nth(3).hover()
    tip = page.locator("#tip")
    tip.wait_for(state="visible")
    said = tip.inner_text()
    for word in (
        "site",
        "resid_",
        "median",
        "25 % quantile",
        "75 % quantile",
        "n: 8 prompts \N{MULTIPLICATION SIGN} 40 positions",
    ):
        assert word in said, said
    assert not {"NaN", "null"} & set(said.split())
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_what_has_no_quartiles_tells_none(opened: Callable[..., Page], report: Path) -> None:
    page = opened(report)
    chart = page.locator("#post_2_published")
    chart.scroll_into_view_if_needed()
    chart.locator(".live svg").wait_for(state="visible")
    chart.locator(".live .mark-rect path[aria-roledescription=bar]").first.hover()
    page.locator("#tip").wait_for(state="visible")
    said = page.locator("#tip").inner_text()
    assert "median" in said
    assert "quantile" not in said, said


def test_tables_sort_by_value(opened: Callable[..., Page], report: Path) -> None:
    page = opened(report)
    table = page.locator("#provenance ~ .table table")
    column = table.locator("thead th").nth(2)

    def prompts() -> list[int]:
        return [int(text.replace(",", "")) for text in table.locator("tbody td:nth-child(3)").all_inner_texts()]

    column.locator("button").click()
    assert column.get_attribute("aria-sort") == "descending"
    assert prompts() == sorted(prompts(), reverse=True)
    column.locator("button").press("Enter")
    assert column.get_attribute("aria-sort") == "ascending"
    assert prompts() == sorted(prompts())
    names = table.locator("tbody th")
    before = names.all_inner_texts()
    table.locator("thead th").nth(0).locator("button").click()
    assert names.all_inner_texts() == sorted(before)


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("svg", b"<svg"), ("csv", b"variable,")])
def test_a_figure_can_be_saved(kind: str, start: bytes, opened: Callable[..., Page], report: Path) -> None:
    page = opened(report, color_scheme="dark", accept_downloads=True)
    with page.expect_download() as told:
        # By the keyboard: a chart that is drawn meanwhile may move the button from under a mouse.
        page.locator(f"#post_2 [data-save={kind}]").press("Enter")
    assert told.value.suggested_filename == f"post_2.{kind}"
    saved = Path(told.value.path()).read_bytes()
    assert saved.startswith(start)
    if kind == "svg":
        assert b"#1F2933" in saved, "in the colours of paper, whatever the page's are"
    if kind == "csv":
        rows = list(csv.DictReader(io.StringIO(saved.decode())))
        assert {"component", "lower", "median", "upper"} <= set(rows[0])


def test_the_map_is_read_by_keyboard(opened: Callable[..., Page], report: Path) -> None:
    page = opened(report)
    canvas, chosen = page.locator("#map-canvas"), page.locator("#map-pair h3")
    first = chosen.inner_text()
    writer, component = first.split(" → ")
    assert f"Presence of {writer} along the stream" in page.locator("#map-pair").inner_text()
    canvas.focus()
    page.keyboard.press("ArrowUp")
    assert chosen.inner_text() != first
    assert chosen.inner_text().endswith(component)
    page.keyboard.press("ArrowDown")
    assert chosen.inner_text() == first
    page.locator("#map-stratum").select_option("first")
    assert "The first position" in page.locator("#map-pair").inner_text()
    for _ in range(40):
        canvas.press("ArrowRight")
    assert chosen.inner_text().startswith(writer), "no step leaves the row"


def test_the_keyboard_reaches_everything_and_shows_where_it_is(opened: Callable[..., Page], report: Path) -> None:
    page = opened(report)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(400):
        page.keyboard.press("Tab")
        told = page.evaluate(
            "(() => { const a = document.activeElement, s = getComputedStyle(a);"
            " return [a.tagName, a.id, s.outlineStyle, parseFloat(s.outlineWidth)]; })()"
        )
        if told[0] == "BODY":
            break
        assert told[2] == "solid", told
        assert told[3] >= 2, told
        reached.add(told[0] if not told[1] else told[1])
    assert {"A", "BUTTON", "SUMMARY", "map-canvas", "map-stratum", "map-value"} <= reached


def test_without_scripts_every_chart_stands(opened: Callable[..., Page], report: Path) -> None:
    page = opened(report, java_script_enabled=False)
    stills = page.locator(".still svg")
    assert stills.count() == page.locator("[data-chart]").count() >= 20
    assert all(stills.nth(i).is_visible() for i in range(stills.count()))
    assert page.get_by_text("Scripts are off: the charts stand still").is_visible()
    assert not page.locator("[data-save]").first.is_visible()


def test_texts_of_others_do_not_act(opened: Callable[..., Page], tmp_path: Path) -> None:
    d = nasty_drawing()
    shown = Shown("paper_5", NASTY[0], NASTY[1], NASTY[2], d, None, NASTY)
    chart = {"spec": d.spec, "csv": 0, "sample": NASTY[0], "described": NASTY[1], "quantiles": ["low", "high"]}
    text = render(
        context(figures=[shown], stills={"paper_5": Markup(d.still)}),
        {"charts": {"csv": [d.csv], "by_id": {"paper_5": chart}}, "map": None},
    )
    path = tmp_path / "nasty.html"
    path.write_text(text, encoding="utf-8")
    page = opened(path)
    assert draw_all(page) == 1
    page.locator("#paper_5 .live .mark-rect path[aria-roledescription=bar]").first.hover()
    page.locator("#tip").wait_for(state="visible")
    assert page.evaluate("window.broken") is None
    assert page.locator("img").count() == 0
    assert NASTY[0] in page.locator("h1").inner_text()


def test_the_first_words_come_soon(browser: Browser, report: Path, tmp_path: Path) -> None:
    """The browser's own timing, least of five, beside a page with nothing but a word."""
    empty = tmp_path / "empty.html"
    empty.write_text('<!doctype html><html lang="en"><title>empty</title><p>word</p></html>')

    def first_words(path: Path) -> float:
        page = browser.new_page(viewport=WIDE)
        page.goto(path.as_uri())
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        paints: list[float] = []
        for _ in range(200):  # the browser reports it when it gets to it
            paints = page.evaluate("performance.getEntriesByName('first-contentful-paint').map(one => one.startTime)")
            if paints:
                break
            page.wait_for_timeout(50)
        page.close()
        return float(paints[0])

    taken = {path: min(first_words(path) for _ in range(5)) for path in (empty, report)}
    assert taken[report] < SLOWER * taken[empty], taken
