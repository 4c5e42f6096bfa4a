"""`python -m repro.measures` writes `repro/spec/schema.json` anew, after a measure's fields have changed."""

from repro.measures import MEASURES
from repro.spec.schema import FILE, text

FILE.write_text(text(MEASURES), encoding="utf-8")
