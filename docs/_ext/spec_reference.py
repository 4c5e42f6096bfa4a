"""A directive that lists every table and field of the spec from its JSON schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

REFERENCE = "#/$defs/"


class SpecReference(SphinxDirective):
    """`{spec-reference} schema.json`: a section for each table, a row for each field."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return one section per table."""
        path = (Path(self.env.doc2path(self.env.docname)).parent / self.arguments[0]).resolve()
        self.env.note_dependency(str(path))
        schema = json.loads(path.read_text(encoding="utf-8"))
        tables = [(name, entry) for name, entry in schema["$defs"].items() if entry.get("properties")]
        return [self._section(name, entry) for name, entry in sorted(tables, key=lambda table: table[0])]

    def _section(self, name: str, entry: dict[str, Any]) -> nodes.section:
        section = nodes.section(ids=[nodes.make_id(f"spec-{name}")])
        section += nodes.title(text=entry["properties"].get("measure", {}).get("const", name))
        if entry.get("description"):
            section += self._text(entry["description"])
        required = set(entry.get("required", ()))
        rows = [
            (
                nodes.literal(text=field),
                nodes.inline(text=_kind(value)),
                nodes.inline(text="required" if field in required else _default(value)),
                _words(value.get("description", "")),
            )
            for field, value in entry["properties"].items()
        ]
        section += _table(("field", "takes", "default", "what"), rows)
        return section

    def _text(self, text: str) -> nodes.paragraph:
        inline, messages = self.state.inline_text(text.split("\n\n")[0], self.lineno)
        return nodes.paragraph("", "", *inline, *messages)


def _words(text: str) -> nodes.inline:
    """Return a text whose `code` stands in backquotes."""
    found = nodes.inline()
    for number, part in enumerate(text.split("`")):
        found += nodes.literal(text=part) if number % 2 else nodes.Text(part)
    return found


def _kind(value: dict[str, Any]) -> str:
    """Return what a field takes, in words."""
    for key in ("anyOf", "oneOf"):
        if key in value:
            return " or ".join(dict.fromkeys(_kind(option) for option in value[key]))
    if "$ref" in value:
        return str(value["$ref"]).removeprefix(REFERENCE)
    if "const" in value:
        return json.dumps(value["const"])
    if "enum" in value:
        return " or ".join(json.dumps(choice) for choice in value["enum"])
    kind = value.get("type", "anything")
    if kind == "array":
        item = value.get("items") or (value.get("prefixItems") or [{}])[0]
        return f"list of {_kind(item)}"
    return {"object": "table", "null": "nothing", "integer": "whole number"}.get(kind, str(kind))


def _default(value: dict[str, Any]) -> str:
    return json.dumps(value["default"]) if value.get("default") is not None else ""


def _table(heads: tuple[str, ...], rows: list[tuple[nodes.Node, ...]]) -> nodes.table:
    group = nodes.tgroup(cols=len(heads))
    for _ in heads:
        group += nodes.colspec(colwidth=1)
    head, body = nodes.thead(), nodes.tbody()
    head += _row([nodes.inline(text=text) for text in heads])
    for row in rows:
        body += _row(list(row))
    group += [head, body]
    return nodes.table("", group)


def _row(cells: list[nodes.Node]) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        row += nodes.entry("", nodes.paragraph("", "", cell))
    return row


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("spec-reference", SpecReference)
    return {"parallel_read_safe": True}
