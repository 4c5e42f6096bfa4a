"""What stands on figures in words: tokens, characters that a font may lack, and many heads, none upon another."""

from __future__ import annotations

import re
from itertools import combinations
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest

from paper_figures import text, theme
from tests.figures.test_paper_figures import VIEWS, Subject, dataset, draw, svg, words


def test_tokens_print_as_they_are_and_no_two_alike() -> None:
    shown = {
        " top": "·top", "top": "top", " ": "·", "  ": "··", "<62>": "<62>",
        "·": "\\xb7", "\n": "\\n", "\\n": "\\\\n", '"': '"', "'": "'",
        ' "': '·"', "模": "\\u6a21",
        "\N{GRINNING FACE}": "\\U0001f600", "\xa0": "\\xa0", "e\u0301": "e\\u0301", "é": "é",
        "ж": "ж", "\u05d0": "\\u05d0",
    }  # fmt: skip
    assert {word: text.token(word) for word in shown} == shown
    assert len(set(shown.values())) == len(shown)


def test_what_the_font_lacks_is_escaped_and_what_it_has_is_drawn() -> None:
    """Every character that is left as it is has a shape, and is neither a box nor nothing."""
    import vl_convert

    def picture(letter: str) -> bytes:
        body = f'<text x="8" y="17" font-family="{theme.FONT}" font-size="14">{escape(letter)}</text>'
        drawing: bytes = vl_convert.svg_to_png(
            f'<svg xmlns="http://www.w3.org/2000/svg" width="30" height="24">{body}</svg>'
        )
        return drawing

    letters = [chr(code) for code in range(0x21, 0x2600) if text.drawable(chr(code)) == chr(code)]
    assert len(letters) > 1000
    lacking = {picture("模"), picture(" ")}
    assert picture("a") not in lacking
    assert not [letter for letter in letters[::7] if picture(letter) in lacking]
    ds = dataset("LW 4a", title="模型 \N{GRINNING FACE}", subtitle="模 · NOT the paper's model")
    told = " ".join(words(svg(draw("LW 4a", ds.assign_coords(text=("example", ["模型"] * 4))))))
    assert told.isascii() or not re.search("[\u3000-\uffff]", told)
    assert "\\u6a21\\u578b \\U0001f600" in told
    assert "· NOT the paper's model" in told


# ------------------------------------------------------------------------------------------------------ many heads


Box = tuple[str, float, float, float, float]
"""A line of print: its words, and its left, top, right and bottom in pixels."""
_STEP = re.compile(r"(translate|rotate)\(([-\d.e]+)(?:,([-\d.e]+))?\)")


def boxes(picture: str) -> list[Box]:
    """Every level or upright line of print in a picture, once, a little smaller than it is."""
    found: dict[Box, None] = {}

    def visit(element: ElementTree.Element, x: float, y: float) -> None:
        steps = _STEP.findall(element.get("transform", ""))
        angle = sum(float(first) for kind, first, _ in steps if kind == "rotate") % 360
        turned = False
        for kind, first, second in steps:
            turned = turned or kind == "rotate"
            if kind == "translate":
                across, down = float(first), float(second or 0)
                x, y = (x + down, y - across) if turned and angle == 270 else (x + across, y + down)
        if element.tag.endswith("}text") and element.get("opacity") != "0" and angle in (0, 270):
            size, bold = float(element.get("font-size", "11px")[:-2]), element.get("font-weight") == "bold"
            lines = [span.text or "" for span in element] or [element.text or ""]
            for number, line in enumerate(lines):
                wide = 0.9 * text.text_width(line, size, bold=bold)
                along = {"start": 0.0, "middle": -wide / 2, "end": -wide}[element.get("text-anchor", "start")]
                drop = number * 1.3 * size
                if angle:
                    box = (x - 0.6 * size + drop, y - along - wide, x + drop, y - along)
                else:
                    box = (x + along, y - 0.6 * size + drop, x + along + wide, y + drop)
                found[(line, *(round(edge, 1) for edge in box))] = None  # type: ignore[index]
        for inner in element:
            visit(inner, x, y)

    visit(ElementTree.fromstring(picture), 0.0, 0.0)
    return [box for box in found if box[0].strip()]


def collisions(picture: str) -> list[tuple[str, str]]:
    """Pairs of lines of print of which one lies upon the other."""
    return [
        (one[0], two[0])
        for one, two in combinations(boxes(picture), 2)
        if one[1] < two[3] and two[1] < one[3] and one[2] < two[4] and two[2] < one[4]
    ]


MANY = {
    "24 x 16": Subject(24, 16, "L6H3", [f"L14H{head}" for head in (0, 2, 7, 8, 9, 10, 11, 13, 14)], 14),
    "30 x 9": Subject(30, 9, "L2H6", [f"L26H{head}" for head in range(2, 9)], 26),
    "48 x 25": Subject(48, 25, "L0H2", [f"L47H{head}" for head in range(25)], 47),
    "2 x 40": Subject(2, 40, "L0H0", ["L1H39"], 1),
    "70 x 1": Subject(70, 1, "L3H0", ["L69H0"], 69),
}


# Each view with the models whose size could crowd it.
CROWDED = [
    *(("24 x 16", view) for view in VIEWS if view not in ("P 2", "LW 4a", "LW 4b")),
    *(("30 x 9", view) for view in ("LW 1 bottom", "LW 2", "appendix")),
    *(("48 x 25", view) for view in ("LW 1 top", "LW 2", "LW 3b")),
    *(("2 x 40", view) for view in ("LW 1 top", "LW 3b")),
    *(("70 x 1", view) for view in ("LW 1 bottom", "LW 2")),
]


@pytest.mark.parametrize(("model", "view"), CROWDED)
def test_no_words_lie_upon_others(model: str, view: str) -> None:
    _, make, options = VIEWS[view]
    assert collisions(svg(draw(view, getattr(MANY[model], make)(options=options)))) == []


def test_every_eraser_is_named_however_many_bars_there_are() -> None:
    picture = svg(draw("LW 2", MANY["48 x 25"].nodes_onto_writer()))
    assert {*MANY["48 x 25"].erasers, "sum"} <= set(words(picture))


def test_collisions_are_seen() -> None:
    """The control: names of neighbouring bars, each below its own."""
    marks = "".join(
        f'<text font-size="11px" text-anchor="end" transform="translate({at},90) rotate(270)">L14H{at}</text>'
        for at in (10, 14, 40)
    )
    level = '<text font-size="11px" transform="translate(60,20)">one</text><text font-size="11px" x="0">two</text>'
    assert collisions(f'<svg xmlns="http://www.w3.org/2000/svg">{marks}{level}</svg>') == [("L14H10", "L14H14")]
