"""What may stand at a place of the spec, in words: those of its JSON Schema, so that none lags behind the types."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from repro.errors import plain

Where = tuple[str | int, ...]
Schema = Mapping[str, Any]
_WORDS = {"string": "a string", "integer": "a whole number", "number": "a number", "boolean": "true or false"}
_COUNTS = {2: "two", 3: "three"}
_LONGEST = 80


def place(schema: Schema, location: Sequence[str | int]) -> tuple[Where, list[Schema]]:
    """Return where a validation error stands in the file, and the types that may stand there.

    schema: what `repro.spec.schema.schema` returns. location: the error's, with the names of members of unions, which
    no file shows.
    """
    where: list[str | int] = []
    kinds = [schema]
    for part in location:
        tagged: Mapping[str, str] = next(
            (kind["discriminator"]["mapping"] for kind in kinds if "discriminator" in kind), {}
        )
        if isinstance(part, str) and part in tagged:
            kinds = _members(schema, {"$ref": tagged[part]})
        elif inside := [found for kind in kinds if (found := _inside(kind, part)) is not None]:
            kinds = _members(schema, inside[0])
            where.append(part)
    return tuple(where), kinds


def experiment_types(schema: Schema) -> dict[str, Schema]:
    """Return measure -> the type of its experiments."""
    (experiment,) = schema["properties"]["experiment"]["patternProperties"].values()
    tagged = experiment["discriminator"]["mapping"]
    return {measure: _members(schema, {"$ref": name})[0] for measure, name in tagged.items()}


def _inside(kind: Schema, part: str | int) -> Schema | None:
    """Return the type of a member of a table or an array; None if it has no such member."""
    if isinstance(part, int):
        each: Sequence[Schema] = kind.get("prefixItems", ())
        return each[part] if part < len(each) else kind.get("items")
    other = next(iter(kind.get("patternProperties", {}).values()), kind.get("additionalProperties"))
    found = kind.get("properties", {}).get(part, other)
    return found if isinstance(found, Mapping) else None


def _members(schema: Schema, kind: Schema) -> list[Schema]:
    """Return the members of a union, or the one type, but for null, which TOML does not have."""
    if "$ref" in kind:
        return [schema["$defs"][kind["$ref"].removeprefix("#/$defs/")]]
    members = kind.get("anyOf", kind.get("oneOf"))
    if members is None or "discriminator" in kind:
        return [kind] if kind.get("type") != "null" else []
    return [inner for member in members for inner in _members(schema, member)]


def literals(kinds: Sequence[Schema]) -> list[str]:
    """Return the literal words among some types."""
    return [word for kind in kinds for word in kind.get("enum", [kind["const"]] if "const" in kind else [])]


def described(kinds: Sequence[Schema]) -> str:
    """Return what may stand where these types may: `an array of strings`, `"auto" or a whole number above 0`."""
    # Every whole number is a number.
    numbers = any(kind.get("type") == "number" for kind in kinds)
    words = [_one(kind) for kind in kinds if not (numbers and kind.get("type") == "integer")]
    return " or ".join(dict.fromkeys(words))


def _one(kind: Schema) -> str:
    if words := literals([kind]):
        return " or ".join(json.dumps(word) for word in words)
    if kind.get("type") == "array":
        first, *others = kind.get("prefixItems", [kind.get("items")])
        many = " or ".join(_one(member).split(" ", 1)[1] + "s" for member in first.get("anyOf", [first]))
        count = f"{_COUNTS[1 + len(others)]} " if others else ""
        return f"{'a non-empty' if kind.get('minItems') == 1 else 'an'} array of {count}{many}"
    bounds = f" above {kind['exclusiveMinimum']}" if "exclusiveMinimum" in kind else ""
    bounds += f" from {kind['minimum']} on" if "minimum" in kind else ""
    return _WORDS.get(str(kind.get("type")), "a table") + bounds


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
