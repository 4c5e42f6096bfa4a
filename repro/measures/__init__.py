"""What is measured: numbers per prompt and position, and their reductions. A measure is a file, and an import here."""

# ruff: noqa: F401 - importing a measure is what registers it

from typing import get_args

from repro.measures.base import Measure
from repro.measures.dla_card import DLACard
from repro.measures.dla_scatter import DLAScatter
from repro.measures.mine_examples import MineExamples
from repro.measures.path_shares import PathShares
from repro.measures.projection import Projection
from repro.measures.resampled_dla import ResampledDLA
from repro.measures.role_shares import RoleShares
from repro.measures.v_patch import VPatch

_imported = [kind for kind in tuple(globals().values()) if isinstance(kind, type) and issubclass(kind, Measure)]
MEASURES: tuple[type[Measure], ...] = tuple(kind for kind in _imported if "measure" in kind.model_fields)
"""Every measure that is imported above."""


def measure_named(name: str) -> type[Measure] | None:
    """Return the measure that an experiment names in its field `measure`; None if there is none (any more)."""
    return {get_args(kind.model_fields["measure"].annotation)[0]: kind for kind in MEASURES}.get(name)
