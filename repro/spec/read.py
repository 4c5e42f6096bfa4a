"""Reads a spec: TOML to types, with every problem named at once by file, line, table and key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

import paper_figures
from repro.errors import ReproError, did_you_mean, listing, plain
from repro.labels import is_node
from repro.spec.charts import misfit
from repro.spec.lines import statements
from repro.spec.messages import Where, described, experiment_types, given, literals, place, unfit
from repro.spec.schema import schema
from repro.spec.source import DRIVE, ESCAPES, tables_of, text_of
from repro.spec.types import NAME, NAME_WORDS, RESERVED_SUBJECTS, Common, Loaded, Spec, spec_type
from repro.spec.variants import expanded, variant_name

_PROSE = ("about", "text", "answer", "other")
"""Keys of texts of several lines."""
_ANY_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
Problem = tuple[Where, str | Callable[[], str] | ErrorDetails]
"""A place, and what is wrong there: in words, in what gives the words, or as the types say it."""
DEFAULT_GROUP: str = Common.model_fields["group"].default
_WIDEST = 1 << 63
"""Whole numbers of TOML have 64 bits."""
_MOST_PROBLEMS = 100
_LONGEST_KEY = 80


def read_spec(path: Path, measures: tuple[type[Common], ...]) -> Loaded:
    """Return the spec in a TOML file, checked, its variants written out as experiments.

    path: a TOML file; measures: the types that an experiment may have (`repro.measures.MEASURES`). Raises ReproError
    (exit 2) naming every problem as `file:line: [table] key: given …; allowed: …`. Agreement: tests/spec/test_spec.py.
    """
    text = text_of(path)
    try:
        spec = _Report(path, text, tables_of(path, text), measures).checked()
    except RecursionError:
        raise ReproError(f"{path}:1: not a spec: nested too deeply") from None
    return Loaded(spec=spec, path=path.resolve())


def _tables(value: object) -> dict[str, Any]:
    """Return the members of a table that are tables themselves."""
    entries = value.items() if isinstance(value, Mapping) else ()
    return {name: entry for name, entry in entries if isinstance(entry, Mapping)}


class _Report:
    """All that is wrong with one file."""

    def __init__(self, path: Path, text: str, data: Mapping[str, Any], measures: tuple[type[Common], ...]) -> None:
        self.path = path
        self.text = text
        self.spec = spec_type(measures)
        self.schema = schema(measures)
        self.measures = experiment_types(self.schema)
        self.data, self.origins = expanded(data)

    def checked(self) -> Spec:
        """Return the spec, or one error that names every problem in the order of the file."""
        if bad := list(self._bad_values(self.data)):
            raise ReproError("\n".join(self._sentences(bad)))
        spec, found = None, list(self._dangling())
        try:
            spec = self.spec.model_validate(self.data)
        except ValidationError as error:
            found += self._refused(error.errors(include_url=False))
        if spec is None or found:
            raise ReproError("\n".join(self._sentences(found)))
        return spec

    def _sentences(self, found: list[Problem]) -> list[str]:
        """Return the problems in words, in the order of the file; past the first hundred they are only counted."""
        found.sort(key=lambda problem: self._line(problem[0]))
        told = [self._told(where, what) for where, what in found[:_MOST_PROBLEMS]]
        lines = sorted((self._line(where), self._table(where) + words) for where, words in told)
        said = list(dict.fromkeys(f"{self.path}:{line}: {words}" for line, words in lines))
        if len(found) > _MOST_PROBLEMS:
            said.append(f"{self.path}:{self._line(found[_MOST_PROBLEMS][0])}: and {len(found) - _MOST_PROBLEMS} more")
        return said

    def _told(self, where: Where, what: str | Callable[[], str] | ErrorDetails) -> tuple[Where, str]:
        if isinstance(what, dict):
            return self._sentence(what)
        return where, what if isinstance(what, str) else what()

    @cached_property
    def _lines(self) -> dict[Where, int]:
        """Return the line of every place that has one, and of everything around it the first line in it."""
        lines = dict(statements(self.text))
        first: dict[Where, int] = {}
        for where, line in lines.items():
            for end in range(len(where)):
                first[where[:end]] = min(line, first.get(where[:end], line))
        return first | lines

    def _location(self, where: Where) -> Where:
        """Return where a place of an experiment stands in the file, perhaps in a variant or in what that one varies."""
        if len(where) < 2 or where[0] != "experiment" or where[1] not in self.origins:
            return where
        variant, base = self.origins[str(where[1])]
        if len(where) == 2 or where[2] in self.data["variant"][variant]:
            return ("variant", variant, *where[2:])
        return self._location(("experiment", base, *where[2:]))

    def _line(self, where: Where) -> int:
        """Return the line of a place, of the first thing in it, or of the nearest thing around it that has one."""
        where = self._location(where)
        return next((self._lines[where[:end]] for end in range(len(where), 0, -1) if where[:end] in self._lines), 1)

    def _table(self, where: Where) -> str:
        where = self._location(where)
        parts = [plain(str(part), _LONGEST_KEY) for part in where]
        size = 1 if where[0] == "run" or len(where) == 1 else 2
        key = ".".join(parts[size:])
        return f"[{'.'.join(parts[:size])}]" + (f" {key}" if key else "")

    def _bad_values(self, value: Any, where: Where = ()) -> Iterator[Problem]:
        """Return values that no field may have, and that the checks to come could stumble over."""
        if isinstance(value, Mapping | tuple):
            for part, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
                yield from self._bad_values(inner, (*where, part))
        elif isinstance(value, int) and not -_WIDEST <= value < _WIDEST:
            yield where, unfit(value, "a whole number of 64 bits")
        elif isinstance(value, str) and (control := (_CONTROL if where[-1] in _PROSE else _ANY_CONTROL).search(value)):
            hint = f" {ESCAPES}" if DRIVE.match(value) else ""
            yield where, unfit(value, f"text without the control character {control[0]!a}", hint)

    def _refused(self, details: Sequence[ErrorDetails]) -> Iterator[Problem]:
        """Yield what the types refuse; of the members of a union only the one that the file seems to mean."""
        places = [place(self.schema, detail["loc"])[0] for detail in details]
        around = {where[:end] for where in places for end in range(len(where))}
        for detail, where in zip(details, places, strict=True):
            if not (where in around and detail["type"].endswith(("_type", "literal_error", "too_short"))):
                yield where, detail

    def _sentence(self, detail: ErrorDetails) -> tuple[Where, str]:
        """Return where something is that the types refuse, and what to say of it."""
        kind, value = detail["type"], detail["input"]
        *around, last = detail["loc"]
        where, allowed = place(self.schema, detail["loc"])
        if kind == "extra_forbidden":
            where, tables = place(self.schema, around)
            keys = sorted({key for table in tables for key in table.get("properties", ())})
            thing = "key" if where else "table"
            return (*where, last), f": unknown {thing}.{did_you_mean(str(last), keys)} Allowed: {listing(keys, 20)}"
        if kind == "union_tag_not_found":
            return where, f": 'measure' is missing; allowed: {listing(sorted(self.measures))}"
        if kind == "union_tag_invalid":
            tag = value.get("measure")
            hint = did_you_mean(tag, self.measures) if isinstance(tag, str) else ""
            return (*where, "measure"), unfit(tag, listing(sorted(self.measures)), hint)
        if kind == "missing" and isinstance(last, str):
            said = f": {last!r} is missing; allowed: {described(allowed)}"
            return (where[:-1], said) if around else (where, " is missing")
        if kind == "string_pattern_mismatch":
            return where, f": a name is {NAME_WORDS}" if value == where[-1] else unfit(value, NAME_WORDS)
        if kind == "value_error":
            message = detail["msg"].removeprefix("Value error, ")
            return where, f": {message}" if isinstance(value, Mapping) else unfit(value, message)
        if kind in ("missing", "too_long") and isinstance(where[-1], int):  # of an array of so many
            where, allowed = place(self.schema, around)
        hint = did_you_mean(value, literals(allowed)) if isinstance(value, str) else ""
        return where, unfit(value, described(allowed), hint)

    def _dangling(self) -> Iterator[Problem]:
        """Return names that point at nothing, and names that would be mistaken for another."""
        named = ("subject", "experiment", "figure", "variant")
        subjects, experiments, figures, variants = (_tables(self.data.get(table)) for table in named)
        run = _tables(self.data).get("run", {})
        all_groups = (entry.get("group", DEFAULT_GROUP) for entry in experiments.values())
        groups = {group for group in all_groups if isinstance(group, str)}
        for name, variant in variants.items():
            yield from self._misplaced(name, variant, experiments)
        for name, experiment in experiments.items():
            yield from self._known(
                ("experiment", name, "variant_of"), experiment.get("variant_of"), experiments, "experiment"
            )
        for name, figure in figures.items():
            yield from self._known(("figure", name, "experiment"), figure.get("experiment"), experiments, "experiment")
            yield from self._known(("figure", name, "chart"), figure.get("chart"), paper_figures.names(), "chart")
            yield from self._misfit(name, figure, experiments)
            if name in experiments and figure.get("experiment") != name:
                words = (
                    f": [experiment.{name}] is not the experiment it views; only that one may have the figure's name"
                )
                yield ("figure", name), words
            if name in groups:
                yield ("figure", name), ": a group has this name too; --only could not tell them apart"
        for key in ("default_subjects", "paper_subject"):
            asked = run.get(key)
            for name in asked if isinstance(asked, tuple) else (asked,):
                yield from self._known(("run", key), name, subjects, "subject")
        known = list(dict.fromkeys((*sorted(groups), *experiments, *figures)))
        for name in run["groups"] if isinstance(run.get("groups"), tuple) else ():
            yield from self._known(("run", "groups"), name, known, "group, experiment or figure")
        for name in RESERVED_SUBJECTS:
            if name in subjects:
                yield ("subject", name), ": the store keeps other things under this name; rename the subject"

    def _misfit(self, name: str, figure: Mapping[str, Any], experiments: Mapping[str, Any]) -> Iterator[Problem]:
        """Yield that the chart of a figure cannot draw its experiment, once both are what they may be."""
        chart, viewed = figure.get("chart"), figure.get("experiment")
        if chart not in paper_figures.names() or not isinstance(viewed, str) or viewed not in experiments:
            return
        entry = experiments[viewed]
        measure = entry.get("measure")
        if not isinstance(measure, str) or measure not in self.measures:
            return
        types = self.measures[measure]["properties"]
        fields = {key: entry.get(key, kind.get("default")) for key, kind in types.items()}
        read = {key for other in paper_figures.names() for key in paper_figures.draws(other)} & set(fields)
        node = isinstance(onto := fields.get("onto"), str) and is_node(onto)
        known = all(
            fields[key] in literals(types[key].get("anyOf", [types[key]])) or (key == "onto" and node) for key in read
        )
        if known and (words := misfit(str(chart), viewed, fields)):
            yield ("figure", name, "chart"), f": {words}"

    def _misplaced(self, name: str, variant: Mapping[str, Any], experiments: Mapping[str, Any]) -> Iterator[Problem]:
        """Yield what a variant varies must be there, and the variant's own name must not."""
        of = variant.get("of")
        for base in of if isinstance(of, tuple) else (of,):
            yield from self._known(("variant", name, "of"), base, experiments, "experiment")
            own = variant_name(name, of, base)
            if isinstance(base, str) and base in experiments and own in experiments and own not in self.origins:
                yield ("variant", name), f": an experiment is called {given(own)} already"

    def _known(
        self, where: Where, name: object, names: Sequence[str] | Mapping[str, Any], kind: str
    ) -> Iterator[Problem]:
        if isinstance(name, str) and name not in names:

            def words() -> str:
                known = [other for other in names if NAME.fullmatch(other)]
                return f": no {kind} {given(name)}.{did_you_mean(name, known)} Known: {listing(known, 40)}"

            yield where, words
