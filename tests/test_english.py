"""Docstrings of functions begin with an imperative, as an engineer writes them: "Return the ...", "Raise ..."."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Imperatives that open a docstring now. A new verb is added here; a noun is not.
LISTED = """
Accept Add Attend Bind Centre Check Choose Claim Close Commit Compare Compile Compute Connect Copy Count Create Cut
Declare Delete Digest Do Download Draw End Fill Fit Flush Fold Forget Form Frame Give Halve Have Hold Join Judge Keep
Label Launch Lay Layer Learn List Load Look Make Measure Multiply Name Open Pin Plan Print Project Provide Put Raise
Read Record Reduce Refuse Register Release Remove Repeat Replace Report Reset Resolve Restore Return Run Say See Serve
Set Show Start Submit Subtract Swallow Take Tell Time Turn Update Verify Wait Wrap Write Yield
"""
VERBS = frozenset(LISTED.split())


def noun_first(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and first line of every function's docstring that does not begin with one of `VERBS`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _is_property(node):
            text = ast.get_docstring(node)
            if text is not None and text.split(maxsplit=1)[0].rstrip(",:;.") not in VERBS:
                yield node.lineno, text.splitlines()[0]


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a function is read as an attribute, and may be described as one."""
    return any(ast.unparse(mark).endswith("property") for mark in node.decorator_list)


@pytest.mark.parametrize("directory", ["repro", "kernels", "paper_figures"])
def test_a_test_that_a_docstring_names_is_there(directory: str) -> None:
    named = {
        (path.name, name)
        for path in (ROOT / directory).rglob("*.py")
        for name in re.findall(r"\btests/[\w/]+\.py", path.read_text())
    }
    assert named
    assert not [pair for pair in named if not (ROOT / pair[1]).is_file()]


@pytest.mark.parametrize("directory", ["repro", "kernels", "paper_figures"])
def test_docstrings_of_functions_begin_with_an_imperative(directory: str) -> None:
    paths = sorted((ROOT / directory).rglob("*.py"))
    assert paths
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}" for path in paths for line, text in noun_first(path.read_text())
    ]
    assert not found, "begin with a verb, such as Return:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "text", ["The sum.", "Sum of x.", "Returns x.", "x: a number.", "`run` twice.", "Whether it is."]
)
def test_the_check_sees_a_docstring_that_begins_otherwise(text: str) -> None:
    source = f'class A:\n    def _f(self):\n        """{text}"""\n'
    assert [found for _, found in noun_first(source)] == [text]


def test_the_check_accepts_an_imperative_and_a_property_that_names_what_it_is() -> None:
    assert not list(noun_first('class A:\n    @property\n    def f(self):\n        """The sum."""\n'))
    assert not list(noun_first('async def f():\n    """Return, once: x."""\n\ndef g(): ...\n'))
