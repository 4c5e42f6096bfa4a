"""What may stand at a place of the spec, in words; read from the types, so that no message can lag behind them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from repro.errors import plain
from repro.spec.types import Spec

Where = tuple[str | int, ...]
_PLAIN = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
_COUNTS = {2: "two", 3: "three"}
_LONGEST = 80


class Vocabulary:
    """What may stand where in a spec, as its type says it.

    spec: what `repro.spec.types.spec_type` returns.
    """

    def __init__(self, spec: type[Spec]) -> None:
        self.spec = spec
        union = get_args(get_args(spec.model_fields["experiment"].annotation)[1])[0]
        kinds = get_args(union) or (union,)
        self.measures: dict[str, type[BaseModel]] = {
            get_args(kind.model_fields["measure"].annotation)[0]: kind for kind in kinds
        }

    def place_of(self, location: Sequence[str | int], data: Mapping[str, Any]) -> Where:
        """Return a validation error's location without the names of union members, which no file shows."""
        where: list[str | int] = []
        value: Any = data
        for index, part in enumerate(location):
            if index == 2 and location[0] == "experiment" and part in self.measures:
                continue
            if isinstance(value, Mapping) and part in value:
                value = value[str(part)]
            elif isinstance(value, tuple) and isinstance(part, int) and part < len(value):
                value = value[part]
            elif index < len(location) - 1 or not (isinstance(part, int) or self._is_key(where, data, str(part))):
                continue
            where.append(part)
        return tuple(where)

    def _is_key(self, where: Sequence[str | int], data: Mapping[str, Any], part: str) -> bool:
        return any(part in kind.model_fields for kind in self.models_at(tuple(where), data))

    def models_at(self, where: Where, data: Mapping[str, Any]) -> list[type[BaseModel]]:
        """Return the types of table that may stand at a place."""
        value: Any = data
        for part in where:
            value = value[part]
        return [kind for kind in self._members(self._annotation_at(where, data), value) if _is_model(kind)]

    def allowed_at(self, where: Where, data: Mapping[str, Any]) -> str:
        """Say what may stand at a place: `an array of strings`, `"auto" or a head label`, `a whole number above 0`."""
        found = self._annotation_at(where, data)
        return describe(found.annotation, found.metadata) if isinstance(found, FieldInfo) else describe(found)

    def words_at(self, where: Where, data: Mapping[str, Any]) -> list[str]:
        """Return the literal words among what may stand at a place."""
        return [word for kind in _flat(self._annotation_at(where, data)) for word in _literals(kind)]

    def _annotation_at(self, where: Where, data: Mapping[str, Any]) -> Any:
        here: Any = self.spec
        value: Any = data
        for part in where:
            inside = [found for kind in self._members(here, value) if (found := _inside(kind, part)) is not None]
            if not inside:
                return None
            here = inside[0]
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                value = None
        return here

    def _members(self, annotation: Any, value: object = None) -> Iterator[Any]:
        """Yield the members of a union; where the value there names its measure, only that one."""
        measure = value.get("measure") if isinstance(value, Mapping) else None
        meant = self.measures.get(measure) if isinstance(measure, str) else None
        for kind in _flat(annotation):
            if meant is None or kind not in self.measures.values() or kind is meant:
                yield kind


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _literals(kind: object) -> list[str]:
    return [word for word in get_args(kind) if isinstance(word, str)] if get_origin(kind) is Literal else []


def _flat(annotation: Any) -> Iterator[Any]:
    """Yield the members of a union, or the one type, unwrapped."""
    if isinstance(annotation, FieldInfo):
        annotation = annotation.annotation
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from _flat(member)
    elif annotation is not NoneType:
        yield annotation


def _inside(kind: Any, part: str | int) -> Any:
    """Return the type of a member of a table or an array."""
    if _is_model(kind):
        return kind.model_fields.get(str(part))
    arguments = get_args(kind)
    if get_origin(kind) is dict:
        return arguments[1]
    return arguments[0] if get_origin(kind) is tuple and isinstance(part, int) else None


def describe(annotation: Any, constraints: Sequence[Any] = ()) -> str:
    """Return a type in the words of TOML."""
    bounds = "".join(f" above {least}" for item in constraints if (least := getattr(item, "gt", None)) is not None)
    bounds += "".join(f" from {least} on" for item in constraints if (least := getattr(item, "ge", None)) is not None)
    kinds = list(_flat(annotation))
    # Every whole number is a number.
    kinds = [kind for kind in kinds if not (kind is int and float in kinds)]
    words = [_one(kind) + (bounds if kind in (int, float) else "") for kind in kinds]
    filled = any(getattr(item, "min_length", 0) for item in constraints)
    return " or ".join(dict.fromkeys(words)).replace("an array", "a non-empty array" if filled else "an array", 1)


def _one(kind: Any) -> str:
    if kind in _PLAIN:
        return _PLAIN[kind]
    if get_origin(kind) is Literal:
        return " or ".join(json.dumps(word) for word in get_args(kind))
    if get_origin(kind) is tuple:
        arguments = get_args(kind)
        many = " or ".join(_one(member).split(" ", 1)[1] + "s" for member in _flat(arguments[0]))
        return "an array of " + ("" if arguments[-1] is Ellipsis else f"{_COUNTS[len(arguments)]} ") + many
    return "a table"


def given(value: object) -> str:
    """Return a value as the file has it, cut to one line."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except ValueError:
        return "a number of thousands of digits"
    return plain(text, _LONGEST)


def unfit(value: object, allowed: str, hint: str = "") -> str:
    """Return what to say of a value that cannot stand where it does."""
    return f": given {given(value)}; allowed: {allowed}{'.' if hint else ''}{hint}"
