"""The spec's JSON Schema, made from its types, for editors that complete and check TOML.

`python -m repro.measures` writes it anew; tests/spec/test_spec.py fails while the file lags behind the types.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from repro.spec.types import Common, spec_type

FILE = Path(__file__).with_name("schema.json")


class _Untitled(GenerateJsonSchema):
    """Without titles, which would only repeat the names of fields."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@cache
def schema(measures: tuple[type[Common], ...]) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a spec of some measures, each field with its documentation."""
    made = spec_type(measures).model_json_schema(schema_generator=_Untitled)
    return {"$schema": GenerateJsonSchema.schema_dialect, **made}


def text(measures: tuple[type[Common], ...]) -> str:
    """Return the schema as it is kept in the file."""
    return json.dumps(schema(measures), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
