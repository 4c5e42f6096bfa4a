"""Reads a spec: TOML to types, with every problem named at once by file, line, table and key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import tomli
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from repro.errors import Exit, ReproError
from repro.names import did_you_mean, listing
from repro.spec import Experiment, Loaded, Spec

_TABLE = re.compile(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"\s*([A-Za-z0-9_.\"'$-]+)\s*=")
_MEASURES: dict[str, type[BaseModel]] = {
    get_args(kind.model_fields["measure"].annotation)[0]: kind for kind in get_args(get_args(Experiment)[0])
}


def read_spec(path: Path) -> Loaded:
    """The spec in a TOML file, checked.

    path: a TOML file. Returns the typed spec with its path. Raises ReproError (exit 2) naming every problem as
    `file:line: [table] key: what was given; what is allowed`. Agreement: tests/test_spec.py.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReproError(f"{path}: cannot be read as a spec ({_reason(error)}); give a TOML file with --spec") from None
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        line = getattr(error, "lineno", None) or _line_in(str(error))
        raise ReproError(f"{path}:{line}: not TOML: {error}") from None
    except RecursionError:
        raise ReproError(f"{path}:1: not a spec: nested too deeply") from None
    lines = _line_numbers(text)
    try:
        spec = Spec.model_validate(_lists_to_tuples(data))
    except ValidationError as error:
        problems = [_sentence(path, lines, data, detail) for detail in error.errors(include_url=False)]
        raise ReproError("\n".join(dict.fromkeys(problems)), Exit.USAGE) from None
    problems = list(_dangling(path, lines, spec))
    if problems:
        raise ReproError("\n".join(problems), Exit.USAGE)
    return Loaded(spec=spec, path=path.resolve())


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


def _line_in(message: str) -> int:
    match = re.search(r"line (\d+)", message)
    return int(match[1]) if match else 1


def _lists_to_tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_lists_to_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _lists_to_tuples(item) for key, item in value.items()}
    return value


def _line_numbers(text: str) -> dict[tuple[str, ...], int]:
    """Line of every table header and key that starts a line; keys inside inline tables fall back to their parent."""
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    counts: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := _TABLE.match(line):
            table = tuple(part.strip().strip("\"'") for part in header[1].split("."))
            if line.lstrip().startswith("[["):
                index = counts.get(table, 0)
                counts[table] = index + 1
                found.setdefault(table, number)
                table = (*table, str(index))
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            found.setdefault((*table, *key[1].replace('"', "").replace("'", "").split(".")), number)
    return found


def _place(path: Path, lines: Mapping[tuple[str, ...], int], where: Iterable[object]) -> str:
    keys = tuple(str(part) for part in where)
    for end in range(len(keys), 0, -1):
        if keys[:end] in lines:
            line = lines[keys[:end]]
            break
    else:
        line = 1
    table, key = keys[:2], ".".join(keys[2:])
    if keys[:1] == ("run",):
        table, key = keys[:1], ".".join(keys[1:])
    return f"{path}:{line}: [{'.'.join(table)}]" + (f" {key}" if key else "")


def _allowed_keys(data: Mapping[str, Any], where: tuple[object, ...]) -> list[str]:
    """Keys a table may have, for did-you-mean."""
    model: type[BaseModel] | None = {"run": Spec.model_fields["run"].annotation}.get(str(where[0])) if where else Spec
    if len(where) > 2 and where[0] == "experiment":
        measure = data.get("experiment", {}).get(where[1], {}).get("measure")
        model = _MEASURES.get(measure)
    elif len(where) > 2:
        from repro.spec import Figure, Subject

        model = {"subject": Subject, "figure": Figure}.get(str(where[0]))
    elif len(where) == 1:
        model = Spec
    return list(model.model_fields) if model is not None else []


def _sentence(path: Path, lines: Mapping[tuple[str, ...], int], data: Mapping[str, Any], detail: ErrorDetails) -> str:
    where = tuple(part for part in detail["loc"] if part not in _MEASURES)
    place = _place(path, lines, where)
    given = detail.get("input")
    kind = detail["type"]
    if kind == "extra_forbidden":
        allowed = _allowed_keys(data, where)
        return f"{place}: unknown key.{did_you_mean(str(where[-1]), allowed)} Allowed: {listing(sorted(allowed), 20)}"
    if kind in ("missing", "union_tag_not_found"):
        missing = "measure" if kind == "union_tag_not_found" else str(where[-1])
        return f"{place}: {missing!r} is missing"
    if kind == "union_tag_invalid":
        tag = str(given.get("measure")) if isinstance(given, dict) else ""
        hint = did_you_mean(tag, _MEASURES)
        return f"{place} measure: unknown measure {tag!r}.{hint} Allowed: {listing(sorted(_MEASURES))}"
    if kind == "literal_error":
        allowed_text = detail.get("ctx", {}).get("expected", "")
        suggestion = did_you_mean(str(given), re.findall(r"'([^']+)'", allowed_text))
        return f"{place}: given {given!r}, allowed {allowed_text}.{suggestion}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{place}: given {_short(given)}: {message[0].lower()}{message[1:]}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _dangling(path: Path, lines: Mapping[tuple[str, ...], int], spec: Spec) -> Iterable[str]:
    """Names that point at nothing."""
    for name, figure in spec.figure.items():
        if figure.experiment not in spec.experiment:
            place = _place(path, lines, ("figure", name, "experiment"))
            hint = did_you_mean(figure.experiment, spec.experiment)
            yield f"{place}: no experiment {figure.experiment!r}.{hint} Declared: {listing(list(spec.experiment))}"
    for key, names in (("default_subjects", spec.run.default_subjects), ("paper_subject", (spec.run.paper_subject,))):
        for name in names:
            if name not in spec.subject:
                place = _place(path, lines, ("run", key))
                hint = did_you_mean(name, spec.subject)
                yield f"{place}: no subject {name!r}.{hint} Declared: {listing(list(spec.subject))}"
    clash = set(spec.figure) & set(spec.experiment)
    for name in sorted(clash):
        place = _place(path, lines, ("figure", name))
        yield f"{place}: an experiment has this name too; --only could not tell them apart"
