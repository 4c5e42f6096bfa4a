"""What is measured: numbers per prompt and position, and their reductions. A measure is a file and an entry here."""

from repro.measures.base import Measure
from repro.measures.dla_scatter import DLAScatter
from repro.measures.find_erasers import FindErasers
from repro.measures.find_writer import FindWriter
from repro.measures.mine_examples import MineExamples
from repro.measures.projection import Projection
from repro.measures.resampled_dla import ResampledDLA
from repro.measures.v_patch import VPatch

MEASURES: tuple[type[Measure], ...] = (
    Projection,
    VPatch,
    ResampledDLA,
    DLAScatter,
    FindWriter,
    FindErasers,
    MineExamples,
)
