"""Variants of a spec written out as experiments, before anything is checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from repro.spec.types import Variant


def variant_name(variant: str, of: object, base: object) -> str:
    """Return the name of the experiment that a variant makes of one that it varies."""
    return f"{base}_{variant}" if isinstance(of, tuple) else variant


def expanded(data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[str, str]]]:
    """Write the variants of a spec out as experiments, as far as what they vary is there.

    data: the file's tables. Returns them with more experiments, and for each of those its variant and what it varies.
    """
    experiments, variants = data.get("experiment"), data.get("variant")
    if not isinstance(experiments, Mapping) or not isinstance(variants, Mapping):
        return dict(data), {}
    whole, origins = dict(experiments), {}
    for name, variant in variants.items():
        of = variant.get("of") if isinstance(variant, Mapping) else None
        for base in of if isinstance(of, tuple) else (of,):
            own = variant_name(name, of, base)
            if not isinstance(base, str) or not isinstance(whole.get(base), Mapping) or own in whole:
                continue
            own_fields = {key: value for key, value in variant.items() if key not in Variant.model_fields}
            group = variant.get("group", Variant.model_fields["group"].default)
            about = [text for text in (whole[base].get("about"), variant.get("about")) if isinstance(text, str)]
            own_fields["about"] = ", ".join(about) if isinstance(of, tuple) else variant.get("about", "")
            whole[own] = {**whole[base], **own_fields, "group": group, "variant_of": base}
            origins[own] = (name, base)
    return {**data, "experiment": whole}, origins
