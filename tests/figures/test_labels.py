"""What stands on figures in words: tokens, characters that a font may lack, and many heads, none upon another."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape

from paper_figures import text, theme
from tests.figures.test_paper_figures import dataset, draw, svg, words


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
